"""What workers bring to a sum: on disk before it counts, so another process goes on as if it had been it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadShare, StaleRound, StoreError
from common.runtime import fault_points
from common.secagg import member
from common.secagg.context import digest
from common.secagg.news import Ended, Endorsements, Roster, Said, Sharers, Survivors
from common.secagg.records import Endorsement, Kind, Opening, PublicKeys
from common.secure_task import SecureTask
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.secure_phases import SecurePhase
from coordinator.storage.store import Store
from tests.common.secagg.parties import Parties, a_round, flipped, until_opened

Content = Any


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "run")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def parties() -> Parties:
    """Three, of whom the last goes before it has opened: two open."""
    return until_opened(3, signed=False, colluding=0)


def exchange_of(store: Store, parties: Parties, keys_seconds: float = 60.0) -> SecureExchange:
    made = SecureExchange(store, keys_seconds)
    made.begin(parties.round)
    return made


def said(parties: Parties, content: Content, **changes: Any) -> Said:
    told = parties.round
    return replace(Said("s", told.round, told.attempt, digest(told), content), **changes)


def brings(parties: Parties) -> list[tuple[str, Content]]:
    """All that the workers bring, in order; None closes the round."""
    names = parties.round.drawn
    endorsements = parties.endorse()
    opened = parties.open(endorsements[:2])
    return [
        *((name, parties.all[name].keys) for name in names),
        *((name, parties.dealt(name).offer) for name in names),
        ("", None),
        *((given.worker, given) for given in endorsements[:2]),
        *((name, opened[name]) for name in names[1:]),
    ]


def bring(exchange: SecureExchange, parties: Parties, worker: str, content: Content) -> None:
    if content is None:
        exchange.close(parties.survivors)
    else:
        assert exchange.take(worker, said(parties, content)) is False


def seen(exchange: SecureExchange, parties: Parties) -> list[object]:
    """What everybody is told, and whether the sum can be opened, with which masks."""
    assert exchange.state is not None
    masks = exchange.masks() if exchange.state.phase is SecurePhase.DONE else ()
    timeless = replace(exchange.state, until=0.0)
    return [timeless, masks, *(exchange.news(name) for name in (*parties.round.drawn, "stranger"))]


async def test_another_process_goes_on_alike_wherever_the_one_before_ended(
    store: Store, parties: Parties
) -> None:
    exchange = exchange_of(store, parties)
    for worker, content in brings(parties):
        bring(exchange, parties, worker, content)
        before = seen(exchange, parties)
        exchange = exchange_of(store, parties)
        assert seen(exchange, parties) == before
    assert exchange.state is not None and exchange.state.phase is SecurePhase.DONE
    assert exchange.masks() == parties.recover(parties.open(parties.endorse()))
    kinds = [type(news.content) for news in exchange.news("w000")]
    assert kinds == [Roster, Sharers, Survivors, Endorsements]


async def test_what_was_kept_but_not_decided_on_is_decided_on_by_the_next_process(
    store: Store, parties: Parties
) -> None:
    """Killed between the record of the last keys and that of who is in the roster."""
    for name in parties.round.drawn:
        store.secure.say(1, 1, "keys", name, parties.all[name].keys)
    exchange = exchange_of(store, parties)
    assert exchange.state is not None and exchange.state.roster == set(parties.round.drawn)
    assert set(store.secure.decided(1, 1)["roster"]) == set(parties.round.drawn)


async def test_the_same_again_is_a_duplicate_in_every_step(store: Store, parties: Parties) -> None:
    exchange = exchange_of(store, parties)
    done: list[tuple[str, Content]] = []
    for worker, content in brings(parties):
        bring(exchange, parties, worker, content)
        if content is not None:
            done.append((worker, content))
        before = seen(exchange, parties)
        for again, what in done:
            assert exchange.take(again, said(parties, what)) is True
        assert seen(exchange, parties) == before


def until(step: int) -> Callable[[SecureExchange, Parties], None]:
    def go(exchange: SecureExchange, parties: Parties) -> None:
        for worker, content in brings(parties)[:step]:
            bring(exchange, parties, worker, content)

    return go


def other_keys(parties: Parties) -> PublicKeys:
    from common.secagg.keys import Secrets

    return member.offer_keys(Secrets.generate(), parties.round, "w000", None, b"")


def opened_by(parties: Parties, name: str) -> tuple[Opening, ...]:
    return parties.open(parties.endorse())[name]


# After how many of `brings`, who brings what, and what comes of it.
REFUSED: dict[str, tuple[int, str, Callable[[Parties], Content], type[Exception], str]] = {
    "other keys": (1, "w000", other_keys, BadShare, "w000 has brought other keys before in this try"),
    "another's keys": (
        1,
        "w001",
        lambda p: replace(p.all["w000"].keys, worker="w001"),
        BadShare,
        "w001 shows a key a second time",
    ),
    "keys of one not drawn": (0, "w9", lambda p: p.all["w000"].keys, StaleRound, "no keys of w9 are due"),
    "keys after the roster": (
        3,
        "w9",
        lambda p: p.all["w000"].keys,
        StaleRound,
        "the keys of round 1 are complete without w9's",
    ),
    "shares before the roster": (
        1,
        "w000",
        lambda p: p.dealt("w000").offer,
        StaleRound,
        "no shares of w000 are due in round 1",
    ),
    "another's shares": (
        3,
        "w000",
        lambda p: replace(p.dealt("w001").offer, worker="w000"),
        BadShare,
        "w000",
    ),
    "too few shares": (
        3,
        "w000",
        lambda p: replace(p.dealt("w000").offer, sealed={}),
        BadShare,
        "w000 must deal shares to each other worker of the roster",
    ),
    "an endorsement before the survivors": (
        6,
        "w000",
        lambda p: p.endorse()[0],
        StaleRound,
        "no endorsements of w000 are due",
    ),
    "a signature where there are none": (
        7,
        "w000",
        lambda p: Endorsement("w000", b"signed"),
        BadShare,
        "without TLS there is nothing to check it by",
    ),
    "openings before endorsements": (7, "w000", lambda p: opened_by(p, "w000"), StaleRound, "no openings"),
    "a late endorsement": (
        9,
        "w002",
        lambda p: p.endorse()[2],
        StaleRound,
        "the endorsements of round 1 are complete without w002's",
    ),
    "the other kind of share": (
        9,
        "w000",
        lambda p: (
            replace(opened_by(p, "w000")[0], kind=Kind.MASK, share=p.held("w000").shares["w000"][1]),
            *opened_by(p, "w000")[1:],
        ),
        BadShare,
        "of the secret asked for",
    ),
    "a share that was not dealt": (
        9,
        "w000",
        lambda p: (
            replace(opened_by(p, "w000")[0], share=flipped(opened_by(p, "w000")[0].share)),
            *opened_by(p, "w000")[1:],
        ),
        BadShare,
        "is not the one it was dealt",
    ),
    "too few openings": (
        9,
        "w000",
        lambda p: opened_by(p, "w000")[:1],
        BadShare,
        "must open one share of each",
    ),
    "a late opening": (11, "w000", lambda p: opened_by(p, "w000"), StaleRound, "complete without w000's"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_does_not_fit_is_refused_and_leaves_no_trace(
    case: str, store: Store, parties: Parties
) -> None:
    step, worker, content, error, told = REFUSED[case]
    exchange = exchange_of(store, parties)
    until(step)(exchange, parties)
    before = seen(exchange, parties)
    with pytest.raises(error, match=told):
        exchange.take(worker, said(parties, content(parties)))
    assert seen(exchange, parties) == before
    assert seen(exchange_of(store, parties), parties) == before


@pytest.mark.parametrize(
    ("changes", "error", "told"),
    [
        ({"context": bytes(32)}, BadShare, "take round 1 for different ones"),
        ({"attempt": 2}, StaleRound, "try 2 at round 1 is not under way"),
        ({"round": 2}, StaleRound, "try 1 at round 2 is not under way"),
    ],
)
async def test_what_is_of_another_try_is_refused_before_it_is_looked_at(
    changes: dict[str, Any], error: type[Exception], told: str, store: Store, parties: Parties
) -> None:
    exchange = exchange_of(store, parties)
    with pytest.raises(error, match=told):
        exchange.take("w000", said(parties, parties.all["w000"].keys, **changes))
    assert store.secure.keys(1, 1) == {}


async def test_nothing_is_due_before_a_try_and_after_it(store: Store, parties: Parties) -> None:
    exchange = SecureExchange(store, 60.0)
    keys = said(parties, parties.all["w000"].keys)
    with pytest.raises(StaleRound):
        exchange.take("w000", keys)
    exchange.begin(parties.round)
    told = parties.round
    task = SecureTask(
        told.drawn, told.electorate, told.colluding, told.threshold, told.minimum, told.clip, digest(told)
    )
    exchange.over(1, 1, task, "round 1 is summed")
    with pytest.raises(StaleRound):
        exchange.take("w000", keys)
    # And who was in it hears so, also while the next try is under way.
    assert [n.content for n in exchange.news("w000")] == [Ended("round 1 is summed")]
    assert exchange.news("stranger") == ()
    exchange.begin(a_round(3, 0, attempt=2))
    assert [n.content for n in exchange.news("w000")] == [Ended("round 1 is summed")]


async def test_who_does_not_come_in_time_is_left_out_or_ends_the_try(store: Store, parties: Parties) -> None:
    exchange = exchange_of(store, parties, keys_seconds=0.0)
    assert exchange.state is not None and exchange.state.phase is SecurePhase.SHORT
    assert store.secure.decided(1, 1) == {}, "a try that came to nothing decides on nobody"


@pytest.mark.parametrize(
    ("point", "step"),
    [("secure-roster", 2), ("secure-sharers", 5), ("secure-endorsers", 8), ("secure-openers", 10)],
)
async def test_what_a_full_disk_held_up_follows_when_it_is_brought_again(
    point: str, step: int, store: Store, parties: Parties
) -> None:
    exchange = exchange_of(store, parties)
    until(step)(exchange, parties)
    worker, content = brings(parties)[step]
    fault_points.arm({fault_points.VARIABLE: f"transaction-made/{point}=enospc"})
    try:
        with pytest.raises(StoreError, match="No space left"):
            exchange.take(worker, said(parties, content))
    finally:
        fault_points.arm({})
    which = point.partition("-")[2]
    assert which not in store.secure.decided(1, 1)
    assert exchange.take(worker, said(parties, content)) is True
    assert which in store.secure.decided(1, 1)


async def test_keys_brought_again_are_no_shares(store: Store, parties: Parties) -> None:
    exchange = exchange_of(store, parties)
    until(3)(exchange, parties)
    for name in parties.round.drawn:
        exchange.take(name, said(parties, parties.all[name].keys))
    assert exchange.state is not None and exchange.state.brought == frozenset()
