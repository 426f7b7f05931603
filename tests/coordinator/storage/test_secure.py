"""What the database remembers of sums, and what it forgets."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from common.secagg.records import Endorsement, Kind, Opening, PublicKeys, ShareOffer
from common.secure_task import SecureTask
from coordinator.storage.store import Store

KEYS = PublicKeys("a", b"1" * 32, b"2" * 32, b"3" * 32, b"certificate", b"signature")
OFFER = ShareOffer("a", {"b": b"sealed"}, {(w, kind): b"d" * 32 for w in "ab" for kind in Kind})
OPENED = (Opening("a", Kind.SELF, b"opened share " * 2), Opening("b", Kind.MASK, b"m" * 33))
TASK = SecureTask(("a", "b", "c"), ("a", "b", "c", "d"), 1, 3, 3, 32.0, b"c" * 32)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def filled(store: Store) -> None:
    store.secure.open(1, 1, TASK)
    for step, content in (("keys", KEYS), ("shares", OFFER), ("openings", OPENED)):
        store.secure.say(1, 1, step, "a", content)
    store.secure.say(1, 1, "endorsements", "a", Endorsement("a", b"signature"))
    store.secure.decide(1, 1, "roster", {"b", "a"})


def remembered(store: Store) -> list[object]:
    secure = store.secure
    return [
        secure.tries(1),
        secure.keys(1, 1),
        secure.shares(1, 1),
        secure.endorsements(1, 1),
        secure.openings(1, 1),
        secure.decided(1, 1),
    ]


def test_what_workers_brought_is_there_for_the_next_process(store: Store) -> None:
    filled(store)
    expected = [
        {1: TASK},
        {"a": KEYS},
        {"a": OFFER},
        {"a": Endorsement("a", b"signature")},
        {"a": OPENED},
        {"roster": ("a", "b")},
    ]
    assert remembered(store) == expected
    store.close()
    assert remembered(Store(store.directory)) == expected


def test_nobody_brings_two_of_a_kind_in_a_try(store: Store) -> None:
    filled(store)
    with pytest.raises(sqlite3.IntegrityError):
        store.secure.say(1, 1, "keys", "a", KEYS)
    with pytest.raises(sqlite3.IntegrityError):
        store.secure.decide(1, 1, "roster", {"a"})


def test_what_opens_something_is_in_no_file_any_more_and_who_endorsed_is(store: Store) -> None:
    filled(store)
    secret = OPENED[0].share.hex().encode()

    def files_with(content: bytes) -> set[str]:
        return {path.name for path in store.directory.glob("run.sqlite*") if content in path.read_bytes()}

    assert files_with(secret)
    store.secure.forget_secrets(1)
    assert files_with(secret) == set(), "deleted rows are overwritten, and the log with them is cut"
    assert store.secure.openings(1, 1) == store.secure.shares(1, 1) == store.secure.keys(1, 1) == {}
    assert store.secure.endorsements(1, 1) == {"a": Endorsement("a", b"signature")}
    assert store.secure.decided(1, 1) == {"roster": ("a", "b")}


def test_who_looks_at_the_run_meanwhile_is_not_waited_for(store: Store) -> None:
    filled(store)
    with closing(sqlite3.connect(store.directory / "run.sqlite")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM secure_said").fetchone()
        store.secure.forget_secrets(1)
    assert store.secure.openings(1, 1) == {}
