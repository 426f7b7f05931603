"""What runs that take nothing but sums can be set to."""

from typing import Any

import pytest

from common.config.file import parse_config
from common.errors import ConfigError

RUN = {
    "model.path": "none",
    "task.labels": ("no", "yes"),
    "alignment.steps": 0,
    "privacy.secure": True,
    "privacy.insecure_keys": True,
    "rounds.workers": 5,
    "rounds.minimum": 4,
}


def test_sums_of_four_of_five_are_a_run() -> None:
    privacy = parse_config(RUN, "a test").privacy
    assert (privacy.colluding_of(5), privacy.needed_of(5), privacy.bits) == (1, 4, 64)
    equal = parse_config(RUN | {"privacy.weights": "equal"}, "a test").privacy
    assert equal.bits == 32


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"privacy.insecure_keys": False}, r"privacy.secure needs \[tls\]"),
        (
            {"rounds.minimum": 3},
            "rounds.minimum must be >= 4 for privacy.secure with 5 workers of which",
        ),
        ({"rounds.workers": 2, "rounds.minimum": 2}, "rounds.minimum must be >= 3"),
        ({"rounds.workers": 10, "rounds.minimum": 6}, "rounds.minimum must be >= 7"),
        # All that are asked count, also those that are more than needed.
        ({"rounds.sample": 5, "rounds.over_select": 2}, "rounds.minimum must be >= 5 .* with 7 workers"),
        ({"privacy.most_examples": 2**19 + 1}, "privacy.most_examples must be <= 524288"),
        ({"privacy.colluding": 4}, "privacy.colluding must be < 4 with 5 workers, got 4"),
        ({"privacy.colluding": 3}, "rounds.minimum must be >= 5"),
        ({"rounds.workers": 129, "rounds.minimum": 129}, "128 workers a round at most"),
        ({"aggregation.rule": "median"}, 'aggregation.rule must be "mean" for privacy.secure, got "median"'),
        ({"aggregation.rule": "ties"}, 'aggregation.rule must be "mean"'),
        ({"aggregation.norm_limit": 3.0}, "aggregation.norm_limit must be unset for privacy.secure"),
        ({"aggregation.lora": "exact"}, 'aggregation.lora must not be "exact" for privacy.secure'),
        ({"task.labels": "ask"}, "task.labels must be listed"),
        ({"training.class_weights": "balanced"}, "class_weights none for privacy.secure"),
        ({"validation.every": 1}, "validation.every must be 0 for privacy.secure"),
        ({"privacy.clip": 0.0}, "privacy.clip must be > 0"),
        ({"privacy.ring": 16}, "privacy.ring must be"),
    ],
)
def test_what_cannot_be_summed_is_said_before_anybody_waits(setting: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(RUN | setting, "a test")


def test_without_secure_sums_all_of_that_is_allowed() -> None:
    plain = {"privacy.secure": False, "aggregation.rule": "median", "validation.every": 1}
    assert not parse_config(RUN | plain, "a test").privacy.secure
