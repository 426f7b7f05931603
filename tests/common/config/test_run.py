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


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"sub_fm.attention_rank": 0}, "sub_fm.attention_rank must be >= 1, got 0"),
        (
            {"sub_fm.attention_rank": 4, "sub_fm.construction": "full"},
            'sub_fm.attention_rank must be unset for sub_fm.construction = "full"',
        ),
        ({"alignment.keep_margin": 1.0}, "alignment.keep_margin must be < 1"),
        ({"alignment.keep_margin": -0.1}, "alignment.keep_margin must be >= 0"),
        (
            {"alignment.keep_margin": 0.5, "alignment.method": "both"},
            'alignment.method = "gradient", got "ffn-pruning" and "both"',
        ),
        (
            {"alignment.keep_margin": 0.5, "sub_fm.construction": "layer-drop"},
            'alignment.method = "gradient", got "layer-drop" and "gradient"',
        ),
    ],
)
def test_a_lever_of_the_margin_that_could_do_nothing_is_refused(said: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(CLASSES | said, "a test")


def test_the_margin_of_a_language_model_wants_its_alignment_by_gradient() -> None:
    with pytest.raises(ConfigError, match='got "ffn-pruning" and "closed-form"'):
        parse_config(LANGUAGE | {"alignment.keep_margin": 0.5}, "a test")
    said = {"alignment.keep_margin": 0.5, "alignment.method": "gradient"}
    assert parse_config(LANGUAGE | said, "a test").alignment.keep_margin == 0.5


def test_the_owners_margin_is_off_unless_asked_for() -> None:
    config = parse_config(CLASSES, "a test")
    assert (config.sub_fm.attention_rank, config.alignment.keep_margin) == (None, 0.0)


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
