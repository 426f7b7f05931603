"""Whom a try at a sum asks, and how many of them it needs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunFailed
from common.secagg.context import electorates_ok
from common.secure_task import SecureTask
from coordinator.campaign.secure_gathering import drawn_again, needed_of, told
from coordinator.context import RunContext
from coordinator.storage.secure import StoredSum
from coordinator.storage.store import Store
from tests.contexts import context

A_TO_E = ["a", "b", "c", "d", "e"]
TASK = SecureTask(tuple(A_TO_E), tuple(A_TO_E), 1, 4, 4, 32.0, b"c" * 32)
NOBODY = frozenset[str]()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "run")
    yield opened
    opened.close()


def a_run(store: Store, **settings: Any) -> RunContext:
    given = {"privacy.secure": True, "privacy.insecure_keys": True, "rounds.workers": 5, "rounds.minimum": 4}
    return context(store, given | {"realignment.every": 0} | settings)


def test_a_first_try_needs_its_own_threshold(store: Store) -> None:
    assert told(a_run(store), 1, ["e", "d", "c", "b", "a"], {}) == replace(TASK, context=b"")


@pytest.mark.parametrize(
    ("selected", "needed"), [(A_TO_E, 4), (["a", "b", "c", "d", "f"], 4), (["a", "b", "c", "f", "g"], 5)]
)
def test_a_further_try_needs_so_many_that_no_two_sums_can_be_opened(
    selected: list[str], needed: int, store: Store
) -> None:
    found = told(a_run(store), 1, selected, {1: TASK})
    assert set(found.electorate) == {*A_TO_E, *selected}
    assert (found.threshold, found.minimum) == (needed, max(needed, 4))
    assert electorates_ok((TASK.threshold, found.threshold), len(found.electorate), found.colluding)


def test_where_even_all_would_be_too_few_it_is_said_how_many_it_takes(store: Store) -> None:
    with pytest.raises(RunFailed, match="with 5 workers: of 8 that were asked in its tries 6 would have to"):
        told(a_run(store), 1, ["a", "b", "f", "g", "h"], {1: TASK})


def test_colluding_workers_are_counted_as_in_the_try_that_feared_most(store: Store) -> None:
    found = told(a_run(store, **{"privacy.colluding": 0}), 1, A_TO_E, {1: replace(TASK, colluding=2)})
    assert found.colluding == 2


def test_fewer_present_than_configured_need_the_minimum_that_was(store: Store) -> None:
    config = a_run(store).config
    assert [needed_of(config, n) for n in (4, 5, 8)] == [4, 4, 6]


def test_the_clip_doubles_after_every_round_in_which_it_was_too_small(store: Store) -> None:
    run = a_run(store)
    for number, clipped in ((1, 2), (2, 0), (3, 1)):
        file = store.artifacts.add("update", bytes([number]))  # type: ignore[arg-type]
        store.secure.commit_sum(number, file, StoredSum(file.sha256, 5, 50, 0.5, clipped))
    assert [told(run, number, A_TO_E, {}).clip for number in (1, 2, 3, 4)] == [32.0, 64.0, 64.0, 128.0]


@pytest.mark.parametrize(
    ("selected", "present", "failed", "again"),
    [
        # Whoever is still there of the first try, whomever a new draw would have taken.
        (["f", "g", "h", "i", "j"], "abcdefghij", "", "abcde"),
        (["b", "f", "g", "h", "i"], "bcdefghi", "", "bcdef"),
        # Who failed is the last that is asked again.
        (["a", "b", "f", "g", "h"], "abcdefgh", "ab", "cdefg"),
        (["a", "b", "c", "d"], "abcd", "ab", "abcd"),
    ],
)
def test_a_further_try_asks_those_of_the_first(
    selected: list[str], present: str, failed: str, again: str
) -> None:
    assert drawn_again(selected, list(present), {1: TASK}, frozenset(failed)) == list(again)


def test_a_first_try_asks_whom_the_draw_says() -> None:
    assert drawn_again(["b", "x"], ["a", "b", "x"], {}, NOBODY) == ["b", "x"]
