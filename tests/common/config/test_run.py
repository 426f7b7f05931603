"""What holds where nothing is said: it depends on the kind of task."""

import tomllib
from typing import Any

import pytest

from common.config.choices import AlignmentMethod, Saliency
from common.config.file import parse_config, template
from common.config.run import RunConfig
from common.errors import ConfigError

LANGUAGE = {"model.path": "m", "task.kind": "causal-lm", "data.public.path": "p.csv"}
CLASSES = {"model.path": "m", "task.labels": ("a", "b"), "data.public.path": "p.csv"}
TEST = {"data.test.path": "t.csv"}


def chosen(config: RunConfig) -> tuple[Saliency, AlignmentMethod]:
    return config.sub_fm.saliency, config.alignment.method


def test_a_language_model_is_cut_by_activation_and_aligned_in_closed_form() -> None:
    assert chosen(parse_config(LANGUAGE, "a test")) == (Saliency.ACTIVATION, AlignmentMethod.CLOSED_FORM)
    assert chosen(parse_config(CLASSES, "a test")) == (Saliency.L2, AlignmentMethod.GRADIENT)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"sub_fm.saliency": "l2"}, (Saliency.L2, AlignmentMethod.CLOSED_FORM)),
        ({"alignment.method": "both"}, (Saliency.ACTIVATION, AlignmentMethod.BOTH)),
        ({"sub_fm.drop_ratio": 0.5}, (Saliency.ACTIVATION, AlignmentMethod.CLOSED_FORM)),
    ],
)
def test_what_is_said_counts(said: dict[str, Any], expected: tuple[Saliency, AlignmentMethod]) -> None:
    assert chosen(parse_config(LANGUAGE | said, "a test")) == expected


def test_without_public_data_there_is_nothing_to_do_it_on() -> None:
    alone = {"model.path": "m", "task.kind": "causal-lm", "alignment.steps": 0}
    assert chosen(parse_config(alone, "a test")) == (Saliency.L2, AlignmentMethod.GRADIENT)


@pytest.mark.parametrize("values", [LANGUAGE, CLASSES])
def test_what_is_written_to_start_from_is_what_holds_without_it(values: dict[str, Any]) -> None:
    written = RunConfig.model_validate(tomllib.loads(template(values | TEST)))
    assert written == parse_config(values | TEST, "a test")


def test_a_run_is_read_again_as_it_was_begun() -> None:
    begun = parse_config(LANGUAGE | {"sub_fm.saliency": "l2", "alignment.method": "gradient"}, "a test")
    assert RunConfig.model_validate_json(begun.model_dump_json()) == begun


def test_labels_that_are_asked_for_stay_so_when_read_again() -> None:
    asks = parse_config(CLASSES | {"task.labels": "ask"}, "a test")
    assert asks.task.asks and asks.asks_classes
    assert RunConfig.model_validate_json(asks.model_dump_json()) == asks
    known = asks.with_labels(("x", "y"))
    assert not known.task.asks and known.task.labels == ("x", "y") and not known.asks_classes
    with pytest.raises(ConfigError, match="at least 2 classes"):
        parse_config(CLASSES | {"task.labels": ("only",)}, "a test")
