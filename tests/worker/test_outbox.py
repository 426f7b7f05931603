"""A finished update survives its worker, and answers only what it was made for."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StoreError
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    RunSpec,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    UpdateHeader,
)
from worker.outbox import Outbox, question_of

BASE = ArtifactRef(ArtifactKind.SUB_MODEL, "0" * 64, 1)
ADAPTER = ArtifactRef(ArtifactKind.ADAPTER, "1" * 64, 1)
TASK = TrainTask(1, SubModelRef("{}", (8,), BASE, (), ()), ADAPTER, 0.5, (0,), 60.0, 1)
RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
)
HEADER = UpdateHeader("", 1, ADAPTER.sha256, 0, "", 5, 0.5, 1.5)
QUESTION = question_of(RUN, "w", 5, TASK)


def test_an_update_is_found_again_with_its_header(tmp_path: Path) -> None:
    header, path = Outbox(tmp_path).keep(QUESTION, HEADER, b"update")
    assert (header.size, path.read_bytes()) == (6, b"update")
    assert Outbox(tmp_path).find(QUESTION) == (header, path)


def test_another_try_at_the_round_asks_the_same(tmp_path: Path) -> None:
    again = replace(TASK, attempt=2, seconds_left=3.0)
    assert question_of(RUN, "w", 5, again) == QUESTION


@pytest.mark.parametrize(
    "other",
    [
        question_of(replace(RUN, run_id="other"), "w", 5, TASK),
        question_of(RUN, "v", 5, TASK),
        question_of(RUN, "w", 6, TASK),
        question_of(RUN, "w", 5, replace(TASK, round=2)),
        question_of(RUN, "w", 5, replace(TASK, adapter=BASE)),
        question_of(RUN, "w", 5, replace(TASK, apoz_layers=())),
        question_of(RUN, "w", 5, replace(TASK, sub_model=replace(TASK.sub_model, patches=(ADAPTER,)))),
    ],
)
def test_anything_else_is_another_question(tmp_path: Path, other: str) -> None:
    Outbox(tmp_path).keep(QUESTION, HEADER, b"update")
    assert other != QUESTION
    assert Outbox(tmp_path).find(other) is None


@pytest.mark.parametrize("damage", [b"", b"updatf", b"update and more"])
def test_a_damaged_update_is_not_delivered(tmp_path: Path, damage: bytes) -> None:
    _, path = Outbox(tmp_path).keep(QUESTION, HEADER, b"update")
    path.write_bytes(damage)
    assert Outbox(tmp_path).find(QUESTION) is None


@pytest.mark.parametrize("about", [b"", b"{}", b'{"question": 1}', b"\xff"])
def test_an_unreadable_description_is_no_update(tmp_path: Path, about: bytes) -> None:
    Outbox(tmp_path).keep(QUESTION, HEADER, b"update")
    (tmp_path / "update.json").write_bytes(about)
    assert Outbox(tmp_path).find(QUESTION) is None


@pytest.mark.parametrize("odd", [{"loss": math.nan}, {"loss": math.inf}, {"seconds": math.nan}])
def test_an_update_that_no_coordinator_takes_is_not_delivered(tmp_path: Path, odd: dict[str, float]) -> None:
    Outbox(tmp_path).keep(QUESTION, replace(HEADER, **odd), b"update")  # type: ignore[arg-type]
    assert Outbox(tmp_path).find(QUESTION) is None


def test_what_is_dropped_is_gone(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.keep(QUESTION, HEADER, b"update")
    for _ in range(2):
        outbox.drop()
        assert not list(tmp_path.iterdir())


def test_an_empty_outbox_holds_nothing(tmp_path: Path) -> None:
    assert Outbox(tmp_path / "not there").find(QUESTION) is None


def test_what_a_process_that_died_was_writing_does_not_stay(tmp_path: Path) -> None:
    """It may be a whole update, and nothing else would ever delete it."""
    Outbox(tmp_path).keep(QUESTION, HEADER, b"update")
    (tmp_path / ".update.safetensors.0123.part").write_bytes(b"half an up")
    assert Outbox(tmp_path).find(QUESTION) is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["update.json", "update.safetensors"]


def test_the_key_of_the_noise_stays_with_the_update(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    with pytest.raises(StoreError, match="holds no key for noise"):
        outbox.noise_key()
    outbox.keep(QUESTION, HEADER, b"update")
    key = outbox.noise_key()
    assert len(key) == 32 and Outbox(tmp_path).noise_key() == key
    outbox.keep(QUESTION, HEADER, b"update")
    assert outbox.noise_key() != key
    # Whoever finds it can take the noise off: it goes with the update.
    outbox.drop()
    assert not list(tmp_path.iterdir())
