"""Waiting: no longer than something moves, however long that is."""

from itertools import count
from pathlib import Path

import pytest

from tests.waiting import sizes, until


def test_as_long_as_something_moves_it_goes_on() -> None:
    moves = count()
    waiting = until("nothing", lambda: next(moves), patience=0.05, pause=0.01)
    assert sum(1 for _ in zip(range(20), waiting, strict=False)) == 20


def test_without_progress_it_gives_up_and_says_what_it_waited_for() -> None:
    with pytest.raises(AssertionError, match="waiting for: a miracle\nthe log"):
        for _ in until("a miracle", lambda: 0, lambda: "the log", patience=0.05, pause=0.01):
            pass


def test_a_file_that_is_not_there_has_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("abc")
    assert sizes([tmp_path / "there", tmp_path / "gone", tmp_path / "there" / "below"]) == (3, 0, 0)
