"""Classes of clients brought together; how they weigh."""

from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from common.config.file import parse_config
from common.config.run import RunConfig
from common.errors import ConfigError, RunFailed
from common.records import ClassCounts, TaskKind
from coordinator.context import class_weights
from coordinator.modelling.classes import agreed
from coordinator.storage.class_counts import StoredClasses


def config(**settings: Any) -> RunConfig:
    given = {
        "model.path": "m",
        "task.labels": "ask",
        "alignment.steps": 0,
    }
    return parse_config(given | {k.replace("__", "."): v for k, v in settings.items()}, "a test")


def told(*counts: dict[str, int]) -> list[ClassCounts]:
    return [ClassCounts(f"w{i}", sum(one.values()) or 1, one) for i, one in enumerate(counts)]


def test_numbers_come_by_size_and_names_by_alphabet() -> None:
    found = agreed(config(), told({"10": 1, "b": 2}, {"9": 3, "a": 4, "b": 5}))
    assert found == StoredClasses(("9", "10", "a", "b"), (3, 1, 4, 7), 15, 2)


def test_the_owners_test_data_add_theirs(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label\nx,c\ny,a\n")
    found = agreed(config(data__test__path=tmp_path / "t.csv"), told({"a": 1}, {"b": 1}))
    assert found.labels == ("a", "b", "c") and found.counts == (1, 1, 0)


@pytest.mark.parametrize(
    ("kind", "counts", "says"),
    [
        ("text-classification", ({"a": 1}, {"a": 2}), "must name at least 2 classes"),
        ("text-classification", ({"a": 1, "B": 1}, {"b ".strip(): 2}), "look like one: 'B' and 'b'"),
        ("text-multi-label", ({"a;b": 1}, {"c": 2}), "must not hold any of"),
    ],
)
def test_what_are_no_classes_is_told(kind: str, counts: tuple[dict[str, int], ...], says: str) -> None:
    with pytest.raises(RunFailed, match=says) as failure:
        agreed(config(task__kind=kind), told(*counts))
    assert "list the classes in task.labels" in str(failure.value)


@settings(deadline=None)
@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=20))
def test_balanced_weights_are_scikit_learns(counts: list[int]) -> None:
    classes = StoredClasses(tuple(map(str, range(len(counts)))), tuple(counts), sum(counts), 1)
    answers = numpy.repeat(numpy.arange(len(counts)), counts)
    wanted = compute_class_weight("balanced", classes=numpy.arange(len(counts)), y=answers)
    assert class_weights(classes, TaskKind.TEXT_CLASSIFICATION) == pytest.approx(wanted, rel=1e-6)


def test_a_class_that_nobody_has_changes_no_weight() -> None:
    without = class_weights(StoredClasses(("a", "b"), (3, 1), 4, 1), TaskKind.TOKEN_CLASSIFICATION)
    assert class_weights(StoredClasses(("a", "b", "c"), (3, 1, 0), 4, 1), TaskKind.TOKEN_CLASSIFICATION) == (
        *without,
        1.0,
    )


def test_where_there_are_several_a_class_weighs_as_the_others_outnumber_it() -> None:
    classes = StoredClasses(("a", "b", "c"), (2, 8, 10), 10, 1)
    assert class_weights(classes, TaskKind.TEXT_MULTI_LABEL) == (4.0, 0.25, 1.0)


@pytest.mark.parametrize("kind", ["causal-lm", "text-regression"])
def test_what_has_no_classes_is_not_asked_for_them(kind: str) -> None:
    with pytest.raises(ConfigError, match="labels must be left out"):
        config(task__kind=kind)
    with pytest.raises(ConfigError, match='class_weights must be "none"'):
        config(task__kind=kind, task__labels=(), training__class_weights="balanced")
