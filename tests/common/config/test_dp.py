"""Differential privacy in run.toml: what goes with it, and what is told of what does not."""

from typing import Any

import pytest

from common.config.dp import dp_spec
from common.config.file import parse_config
from common.errors import ConfigError
from common.private_task import DpSpec, DpUnit

BASE: dict[str, Any] = {
    "model.path": "m",
    "task.labels": ["a", "b"],
    "data.public.path": "p.csv",
    "privacy.dp.unit": "example",
}


def test_it_is_off_unless_asked_for() -> None:
    config = parse_config({k: v for k, v in BASE.items() if not k.startswith("privacy")}, "here")
    assert not config.private and dp_spec(config) is None


def test_workers_are_told_the_promise_of_the_whole_run() -> None:
    config = parse_config(BASE | {"privacy.dp.epsilon": 3, "rounds.count": 7}, "here")
    assert config.private
    assert dp_spec(config) == DpSpec(DpUnit.EXAMPLE, 3.0, 1e-5, 1.0, 256, 7)


def test_it_goes_with_secure_sums_and_with_alignments_that_need_no_counts() -> None:
    secure = {"privacy.secure": True, "privacy.insecure_keys": True, "rounds.minimum": 3}
    parse_config(BASE | secure | {"realignment.every": 1, "realignment.choice": "random"}, "here")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"realignment.every": 1}, 'realignment.choice must be "random" for privacy.dp, got "highest"'),
        ({"realignment.drift": 0.5}, 'realignment.choice must be "random" for privacy.dp'),
        ({"training.class_weights": "balanced"}, "training.class_weights none for privacy.dp"),
        ({"validation.every": 1}, "validation.every must be 0 for privacy.dp"),
        ({"adapter.targets": "neurons"}, 'or "none" for privacy.dp, got "neurons"'),
        ({"adapter.targets": "attention+neurons"}, 'or "none" for privacy.dp, got "attention.neurons"'),
        (
            {"task.kind": "causal-lm", "task.labels": []},
            'aggregation.weights must be "examples" for privacy.dp',
        ),
        ({"training.checkpointing": True}, "training.checkpointing must be false for privacy.dp"),
        ({"privacy.dp.epsilon": 0}, "privacy.dp.epsilon must be > 0"),
        ({"privacy.dp.epsilon": 101}, "privacy.dp.epsilon must be <= 100"),
        ({"privacy.dp.delta": 1}, "privacy.dp.delta must be < 1"),
        ({"privacy.dp.clip": 0}, "privacy.dp.clip must be > 0"),
        ({"privacy.dp.batch_size": 0}, "privacy.dp.batch_size must be >= 1"),
        ({"privacy.dp.unit": "person"}, "privacy.dp.unit must be 'none' or 'example'"),
        ({"privacy.dp.epsilonn": 1}, "unknown key privacy.dp.epsilonn"),
    ],
)
def test_what_does_not_go_with_it_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(BASE | settings, "here")
