"""Differential privacy in run.toml: what goes with it, and what is told of what does not."""

from typing import Any

import pytest

from common.config.dp import counting_noise, dp_spec, noise_beside_count
from common.config.file import parse_config
from common.errors import ConfigError
from common.privacy.gaussian import divergence, epsilon_at
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
        ({"privacy.dp.unit": "person"}, "privacy.dp.unit must be 'none', 'example' or 'worker'"),
        ({"privacy.dp.clip_quantile": 0.5}, 'clip_quantile must be unset for privacy.dp.unit = "example"'),
        ({"privacy.dp.epsilonn": 1}, "unknown key privacy.dp.epsilonn"),
    ],
)
def test_what_does_not_go_with_it_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(BASE | settings, "here")


BY_WORKER = BASE | {
    "privacy.dp.unit": "worker",
    "privacy.weights": "equal",
    "rounds.count": 5,
    "rounds.workers": 20,
    "rounds.minimum": 20,
}
SECURE = {"privacy.secure": True, "privacy.insecure_keys": True}
# Noise without end.
ENDLESS = {"rounds.count": 10**9, "privacy.dp.epsilon": 1e-6}


def test_by_worker_the_noise_of_the_promise_is_told() -> None:
    spec = dp_spec(parse_config(BY_WORKER, "here"))
    assert spec is not None and spec.unit is DpUnit.WORKER
    assert epsilon_at(spec.rounds * divergence([spec.noise]), spec.delta) == pytest.approx(8.0, rel=1e-4)
    # Nothing that a gradient of each example would take.
    config = parse_config(BY_WORKER | SECURE | {"training.checkpointing": True}, "here")
    assert dp_spec(config) == spec and config.sums_only and not config.private_examples
    parse_config(BY_WORKER | {"adapter.targets": "neurons"}, "here")
    # What language models weigh by is no matter: all are equal.
    model = {"task.kind": "causal-lm", "task.labels": []}
    assert not parse_config(BY_WORKER | model, "here").weighs_tokens


def test_a_clip_that_follows_the_norms_takes_a_share_of_the_noise() -> None:
    config = parse_config(BY_WORKER | {"privacy.dp.clip_quantile": 0.5, "rounds.minimum": 20}, "here")
    assert config.privacy.dp.clip_quantile == 0.5
    beside = noise_beside_count(1.5, counting_noise(30))
    assert divergence([beside, 3.0]) == pytest.approx(divergence([1.5]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"privacy.weights": "examples"}, 'privacy.weights must be "equal" for privacy.dp.unit = "worker"'),
        ({"aggregation.rule": "median"}, 'aggregation.rule must be "mean" for privacy.dp.unit = "worker"'),
        ({"aggregation.rule": "ties"}, 'aggregation.rule must be "mean" for privacy.dp.unit = "worker"'),
        ({"aggregation.norm_limit": 3.0}, "aggregation.norm_limit must be unset"),
        ({"aggregation.lora": "exact"}, 'aggregation.lora must not be "exact"'),
        ({"realignment.every": 1}, 'realignment.choice must be "random" for privacy.dp'),
        ({"validation.every": 1}, "validation.every must be 0 for privacy.dp"),
        ({"training.class_weights": "balanced"}, "training.class_weights none for privacy.dp"),
        ({"privacy.dp.delta": 0.06}, "privacy.dp.delta must be <= 1 / rounds.workers, 0.05, for"),
        ({"privacy.dp.clip_quantile": 1.0}, "privacy.dp.clip_quantile must be < 1"),
        (
            {"privacy.dp.clip_quantile": 0.5, "privacy.dp.epsilon": 3},
            r"rounds.minimum must be > 40 for privacy.dp.clip_quantile with noise 3\.\d+, got 20",
        ),
        (SECURE | {"privacy.dp.clip_quantile": 0.5}, "clip_quantile must be unset for privacy.secure"),
        (SECURE | {"privacy.ring": 64}, 'privacy.ring must be 32 or "auto"'),
        (
            {
                "task.kind": "causal-lm",
                "task.labels": [],
                "aggregation.weights": "target-tokens",
            },
            'aggregation.weights must be "examples" for privacy.dp',
        ),
        (SECURE | ENDLESS, "privacy.dp.epsilon: 32 bits have no room for sums of 20 workers"),
        (ENDLESS, "privacy.dp.epsilon: noise must be <= "),
    ],
)
def test_what_does_not_go_with_a_promise_to_workers_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(BY_WORKER | settings, "here")
