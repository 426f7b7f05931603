"""Masked updates at the door: of those with whom masks are agreed on, of this try, one each."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import BadUpdate, StaleRound
from common.records import ArtifactKind, ArtifactRef, UpdateHeader
from common.storage.schema import TensorSpec
from common.storage.tensors import to_bytes
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import RoundState
from coordinator.storage.store import Store

CONTEXT = b"c" * 32
ADAPTER = ArtifactRef(ArtifactKind.ADAPTER, "ab" * 32, 100)
CONTENT = to_bytes({"delta.x": torch.arange(4)})
HEADER = UpdateHeader("", 1, ADAPTER.sha256, len(CONTENT), "cd" * 32, 0, 0.0, 0.0, 2, CONTEXT)
SCHEMA = {"delta.x": TensorSpec((4,), torch.int64)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "run")
    yield opened
    opened.close()


async def opened(store: Store, senders: str = "ab", received: str = "") -> Inbox:
    inbox = Inbox(store)
    state = RoundState(1, frozenset("abcd"), 3, 1e12, attempt=2, received=frozenset(received))
    inbox.open(state, Expected(ADAPTER, SCHEMA, CONTEXT, lambda: frozenset(senders)))
    return inbox


async def test_one_that_fits_is_taken(store: Store) -> None:
    assert (await opened(store)).admit("a", 0, HEADER) is True


@pytest.mark.parametrize(
    ("worker", "changes", "error", "told"),
    [
        ("c", {}, StaleRound, "no masked update of c is due: no masks are agreed on with it"),
        ("a", {"attempt": 1}, StaleRound, "masked for another try than 2 at round 1"),
        ("a", {"context": b"d" * 32}, StaleRound, "masked for another try"),
        ("a", {"context": b""}, StaleRound, "masked for another try"),
        ("a", {"examples": 5}, BadUpdate, "must not tell its examples, loss, seconds or tokens"),
        ("a", {"loss": 0.5}, BadUpdate, "must not tell its examples, loss, seconds or tokens"),
        ("a", {"targets": 5}, BadUpdate, "must not tell its examples, loss, seconds or tokens"),
        ("a", {"seconds": 0.5}, BadUpdate, "must not tell its examples, loss, seconds or tokens"),
    ],
)
async def test_what_would_spoil_the_sum_or_tells_something_is_refused(
    worker: str, changes: dict[str, Any], error: type[Exception], told: str, store: Store
) -> None:
    inbox = await opened(store)
    with pytest.raises(error, match=told):
        inbox.admit(worker, 0, replace(HEADER, **changes))


async def test_before_masks_are_agreed_on_nobodys_is_due(store: Store) -> None:
    with pytest.raises(StaleRound, match="no masked update of a is due"):
        (await opened(store, senders="")).admit("a", 0, HEADER)


async def test_of_two_under_the_same_masks_the_second_is_refused(store: Store) -> None:
    """Their difference would be plain: this coordinator does not want it."""
    inbox = await opened(store, received="a")
    with pytest.raises(BadUpdate, match="another masked update of a is here"):
        inbox.admit("a", 0, replace(HEADER, sha256="ef" * 32))
