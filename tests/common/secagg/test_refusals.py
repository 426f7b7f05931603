"""Whatever is changed on its way is refused, and the one whose doing it is is named."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.errors import BadShare, SecureRefused
from common.secagg import collector, member
from common.secagg.history import History, begin, dealing, endorsing, masking, opening
from common.secagg.keeping import Dealt, Held
from common.secagg.keys import Secrets, public
from common.secagg.records import Endorsement, Kind, Opening, PublicKeys, SecureRound, VectorSpec
from tests.common.secagg.parties import (
    Parties,
    Signatures,
    a_round,
    flipped,
    until_opened,
    with_entry,
    workers,
)

ALL = workers(5)
V, A, B, C, D = ALL


@pytest.fixture(scope="module")
def played() -> Parties:
    """All phases but the last; D is late. Not to be changed."""
    return until_opened(late=[D])


def by(parties: Parties, name: str) -> PublicKeys:
    return parties.all[name].keys


# The round.


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"run_id": ""}, "run_id must not be empty"),
        ({"run_digest": b"r"}, "run_digest must have 32 bytes, got 1"),
        ({"task_digest": b""}, "task_digest must have 32 bytes, got 0"),
        ({"round": -1}, "round must be from 0"),
        ({"attempt": -1}, "attempt must be from 0"),
        ({"most_examples": 0}, "most_examples must be from 1"),
        ({"drawn": ALL[:2]}, "3 to 128 workers must be drawn, got 2"),
        ({"drawn": workers(129), "electorate": workers(129)}, "3 to 128 workers must be drawn, got 129"),
        ({"drawn": ALL[::-1]}, "drawn must be names in order, each once"),
        ({"drawn": (V, *ALL)}, "drawn must be names in order, each once"),
        ({"drawn": ("", *ALL[1:])}, "drawn must be names in order"),
        ({"electorate": ALL[::-1]}, "electorate must be names in order, each once"),
        ({"electorate": ALL[1:]}, "must hold all that are drawn; w000 is not in it"),
        ({"colluding": -1}, "colluding must be from 0 to 4 of 5 workers, got -1"),
        ({"colluding": 5}, "colluding must be from 0 to 4"),
        ({"threshold": 6, "minimum": 6}, "threshold must be <= 5"),
        ({"threshold": 3}, "above half of 5 workers plus 1 colluding, got 3"),
        ({"minimum": 3}, "minimum must be from 4 to 5, got 3"),
        ({"minimum": 6}, "minimum must be from 4 to 5, got 6"),
        ({"colluding": 0, "threshold": 3, "minimum": 2}, "minimum must be from 3"),
        ({"clip": float("nan")}, "clip must be a finite number > 0, got nan"),
        ({"step": 0.0}, "step must be a finite number > 0"),
        ({"step": 16.0}, "clip / step must be >= 1"),
        ({"step": 1e-18}, "fit 64 bits"),
        ({"vectors": ()}, "there must be a vector"),
        ({"vectors": (VectorSpec("a", (), 32), VectorSpec("a", (), 64))}, "the same name"),
    ],
)
def test_a_round_that_breaks_a_rule_is_refused_at_birth(changes: dict[str, Any], rule: str) -> None:
    with pytest.raises(SecureRefused) as caught:
        a_round(5, **changes)
    assert rule in str(caught.value)
    assert str(caught.value).startswith("secure round: ")


@pytest.mark.parametrize("changes", [{"name": ""}, {"shape": (-1,)}, {"bits": 16}])
def test_a_vector_that_breaks_a_rule_is_refused_at_birth(changes: dict[str, Any]) -> None:
    with pytest.raises(SecureRefused, match="must"):
        replace(VectorSpec("v", (1,), 32), **changes)


# Keys and roster.

FLIPS: list[tuple[str, Callable[[PublicKeys], PublicKeys]]] = [
    ("channel", lambda k: replace(k, channel=flipped(k.channel))),
    ("mask", lambda k: replace(k, mask=flipped(k.mask))),
    ("commitment", lambda k: replace(k, commitment=flipped(k.commitment))),
    ("certificate", lambda k: replace(k, certificate=flipped(k.certificate))),
    ("signature", lambda k: replace(k, signature=flipped(k.signature))),
    ("no signature", lambda k: replace(k, signature=b"")),
    ("no certificate", lambda k: replace(k, certificate=b"")),
    ("short channel", lambda k: replace(k, channel=k.channel[1:])),
    ("short mask", lambda k: replace(k, mask=k.mask[1:])),
    ("short commitment", lambda k: replace(k, commitment=k.commitment[1:])),
    ("zero channel", lambda k: replace(k, channel=bytes(32))),
    ("zero mask", lambda k: replace(k, mask=bytes(32))),
    ("swapped", lambda k: replace(k, channel=k.mask, mask=k.channel)),
    ("one for both", lambda k: replace(k, channel=k.mask)),
]


@pytest.mark.parametrize("change", [c for _, c in FLIPS], ids=[name for name, _ in FLIPS])
def test_changed_keys_are_refused_by_both_sides(
    played: Parties, change: Callable[[PublicKeys], PublicKeys]
) -> None:
    changed = change(by(played, A))
    with pytest.raises(BadShare) as told:
        collector.check_keys(played.round, changed, played.verify)
    assert told.value.blamed == A
    roster = tuple(changed if keys.worker == A else keys for keys in played.roster)
    with pytest.raises(SecureRefused) as refused:
        member.check_roster(played.round, V, by(played, V), roster, played.verify)
    assert refused.value.blamed == A
    with pytest.raises(SecureRefused, match="other keys for w001 than this worker offered"):
        member.check_roster(played.round, A, by(played, A), roster, played.verify)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (lambda r: r[1:], "does not hold this worker"),
        (lambda r: r[:3], "4 workers are needed, got 3"),
        (lambda r: (*r, r[-1]), "listed twice"),
        (lambda r: (*r, replace(r[-1], worker="x")), "x cannot be among them"),
        (
            lambda r: with_entry(r, A, channel=r[2].channel),
            "shows a key a second time; w001 showed it before",
        ),
        (lambda r: with_entry(r, A, mask=r[2].channel), "shows a key a second time"),
    ],
)
def test_a_roster_that_does_not_fit_is_refused(
    played: Parties, changes: Callable[[Sequence[PublicKeys]], Sequence[PublicKeys]], rule: str
) -> None:
    with pytest.raises(SecureRefused, match=rule):
        member.check_roster(played.round, V, by(played, V), changes(played.roster), played.verify)


@pytest.mark.parametrize("changes", [{"attempt": 2}, {"task_digest": b"T" * 32}, {"run_id": "other"}])
def test_keys_of_another_round_are_refused(played: Parties, changes: dict[str, Any]) -> None:
    other = replace(played.round, **changes)
    with pytest.raises(SecureRefused, match="signature does not fit") as caught:
        member.check_roster(other, V, by(played, V), played.roster, played.verify)
    assert caught.value.blamed == A


def test_a_signature_where_nobody_can_check_it_is_refused(played: Parties) -> None:
    with pytest.raises(BadShare, match="w001 signs, but without TLS"):
        collector.check_keys(played.round, by(played, A), None)
    unsigned = replace(by(played, A), signature=b"", certificate=b"")
    collector.check_keys(played.round, unsigned, None)


def test_keys_of_a_worker_that_was_not_drawn_or_shows_anothers_are_refused(played: Parties) -> None:
    with pytest.raises(BadShare, match="'x' was not drawn"):
        collector.check_keys(played.round, replace(by(played, A), worker="x"), played.verify)
    with pytest.raises(SecureRefused, match="'x' was not drawn"):
        member.offer_keys(Secrets.generate(), played.round, "x", None, b"")
    parties = Parties(played.round, None)
    parties.offer_keys()
    stolen = replace(by(parties, B), mask=by(parties, A).mask)
    with pytest.raises(BadShare, match="second time; w001 showed it before") as caught:
        collector.check_keys(parties.round, stolen, None, parties.roster)
    assert caught.value.blamed == B
    # The same worker again is not another.
    collector.check_keys(parties.round, by(parties, B), None, parties.roster)


# Shares.


def received(parties: Parties, name: str, sealed: dict[str, bytes], digests: dict[str, Any]) -> Held:
    secrets = parties.all[name].secrets
    return member.receive(secrets, parties.round, name, parties.roster, sealed, digests, parties.dealt(name))


@pytest.mark.parametrize("at", [0, 11, 12, 50, 93])
def test_shares_changed_on_their_way_are_blamed_on_their_sender(played: Parties, at: int) -> None:
    sealed, digests = played.sent_to(V)
    with pytest.raises(SecureRefused, match="shares that w002 dealt to w000: it does not decrypt") as caught:
        received(played, V, sealed | {B: flipped(sealed[B], at)}, digests)
    assert caught.value.blamed == B


@pytest.mark.parametrize("which", [0, 1])
def test_shares_that_do_not_fit_their_digests_are_blamed_on_their_sender(played: Parties, which: int) -> None:
    sealed, digests = played.sent_to(V)
    pair = list(digests[B])
    pair[which] = flipped(pair[which])
    with pytest.raises(SecureRefused, match="w002 dealt to w000: they do not fit") as caught:
        received(played, V, sealed, digests | {B: tuple(pair)})
    assert caught.value.blamed == B


def test_shares_of_another_sender_holder_or_round_do_not_decrypt(played: Parties) -> None:
    sealed, digests = played.sent_to(V)
    elsewhere, _ = played.sent_to(C)
    for wrong in (sealed[A], elsewhere[B], played.dealt(V).offer.sealed[B], b""):
        with pytest.raises(SecureRefused) as caught:
            received(played, V, sealed | {B: wrong}, digests)
        assert caught.value.blamed == B
    secrets, later = played.all[V].secrets, replace(played.round, attempt=2)
    with pytest.raises(SecureRefused, match="does not decrypt"):
        member.receive(secrets, later, V, played.roster, sealed, digests, played.dealt(V))


def test_shares_of_too_few_or_of_strangers_are_refused(played: Parties) -> None:
    sealed, digests = played.sent_to(V)
    few = {name: sealed[name] for name in (A, B)}
    for wrong, told, rule in (
        (few, {name: digests[name] for name in few}, "4 workers are needed, got 3"),
        (few, digests, "must be of the same workers"),
        (sealed | {V: sealed[A]}, digests | {V: digests[A]}, "this one left out"),
        (sealed | {"x": sealed[A]}, digests | {"x": digests[A]}, "x cannot be among them"),
    ):
        with pytest.raises(SecureRefused, match=rule):
            received(played, V, wrong, told)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        (lambda o: replace(o, worker="x"), "x deals shares, but is not in the roster"),
        (lambda o: replace(o, sealed={A: o.sealed[A]}), "to each other worker"),
        (lambda o: replace(o, sealed={**o.sealed, V: o.sealed[A]}), "and nobody else"),
        (lambda o: replace(o, sealed={**o.sealed, A: o.sealed[A][1:]}), "must have 94 bytes"),
        (lambda o: replace(o, digests={(A, Kind.SELF): b"d" * 32}), "two digests for each"),
        (lambda o: replace(o, digests={**o.digests, (A, Kind.SELF): b"d" * 31}), "must have 32 bytes"),
    ],
)
def test_an_offer_that_does_not_fit_is_blamed_on_its_sharer(
    played: Parties, changes: Callable[[Any], Any], rule: str
) -> None:
    offer = changes(played.dealt(V).offer)
    with pytest.raises(BadShare, match=rule) as caught:
        collector.check_offer(played.round, played.roster, offer)
    assert caught.value.blamed == offer.worker


@pytest.mark.parametrize(
    ("cheat", "field", "kind"), [(A, "self_seed", "self"), (D, "mask", "mask")], ids=["seed", "key"]
)
def test_shares_of_another_secret_are_blamed_on_their_sharer(cheat: str, field: str, kind: str) -> None:
    told = a_round(5)
    parties = Parties(told, Signatures(told.drawn))
    parties.offer_keys()
    parties.deal()
    party = parties.all[cheat]
    other = replace(party.secrets, **{field: Secrets.generate().self_seed})  # type: ignore[arg-type]
    party.dealt = member.deal(other, told, cheat, parties.roster)
    collector.check_offer(told, parties.roster, party.dealt.offer)
    parties.receive()
    parties.survive([D])
    openings = parties.open(parties.endorse())
    with pytest.raises(BadShare, match=f"{cheat} dealt are not of the {kind} secret") as caught:
        parties.recover(openings)
    assert caught.value.blamed == cheat


# Lists and endorsements.


@pytest.mark.parametrize(
    ("sharers", "survivors", "floor", "rule"),
    [
        (ALL, (A, B, C, D), 3, "this worker, w000, is not among them"),
        (ALL, (V, A, B), 3, "4 workers are needed, got 3"),
        (ALL, (V, A, B, C), 5, "5 workers are needed, got 4"),
        ((V, A, B, C), (V, A, B, D), 3, "w004 cannot be among them"),
        ((V, A, B), (V, A, B), 3, "who dealt shares: 4 workers are needed"),
        ((*ALL, "x"), ALL, 3, "x cannot be among them"),
        (ALL, (V, V, A, B), 3, "listed twice"),
        ((V, V, A, B, C), (V, A, B, C), 3, "listed twice"),
    ],
)
def test_lists_that_do_not_fit_are_neither_signed_nor_opened_for(
    played: Parties, sharers: tuple[str, ...], survivors: tuple[str, ...], floor: int, rule: str
) -> None:
    sign = played.signer(V)
    with pytest.raises(SecureRefused, match=rule):
        member.endorse(played.round, V, played.roster, sharers, survivors, floor, sign)
    with pytest.raises(SecureRefused, match=rule):
        opened(played, sharers, survivors, played.endorse(), floor)


@pytest.mark.parametrize(
    ("sharers", "rule"),
    [
        ((A, B, C, D), "who dealt shares: this worker, w000, is not among them"),
        ((V, A, B), "4 workers are needed, got 3"),
        ((*ALL, "x"), "x cannot be among them"),
        ((V, *ALL), "listed twice"),
    ],
)
def test_for_sharers_that_do_not_fit_nothing_is_masked(
    played: Parties, sharers: tuple[str, ...], rule: str
) -> None:
    with pytest.raises(SecureRefused, match=rule):
        member.masks_of(played.all[V].secrets, played.round, V, played.roster, sharers)


def opened(
    parties: Parties,
    sharers: Sequence[str],
    survivors: Sequence[str],
    endorsements: Sequence[Endorsement],
    floor: int = 0,
) -> tuple[Opening, ...]:
    lists = parties.held(V), sharers, survivors
    return member.open_shares(parties.round, V, parties.roster, *lists, endorsements, parties.verify, floor)


def test_of_each_sharer_one_share_is_opened(played: Parties) -> None:
    found = opened(played, ALL, played.survivors, played.endorse())
    assert {o.about: o.kind for o in found} == dict.fromkeys(ALL[:-1], Kind.SELF) | {D: Kind.MASK}
    held = played.held(V).shares
    assert [o.share for o in found] == [held[name][0] for name in ALL[:-1]] + [held[D][1]]


def test_endorsements_that_do_not_fit_open_nothing(played: Parties) -> None:
    good = list(played.endorse())
    sign = played.signer(A)
    everyone = member.endorse(played.round, A, played.roster, ALL, ALL, 3, sign)
    less = member.endorse(played.round, A, played.roster, ALL[:-1], ALL[:-1], 3, sign)
    for wrong, rule in (
        (good[:3], "4 endorsements are needed, got 3"),
        ([*good[:3], good[0]], "a worker endorses twice"),
        ([*good[:3], replace(good[3], signature=b"")], "w003 shows no certificate and signature"),
        ([*good[:3], replace(good[3], signature=flipped(good[3].signature))], "does not fit"),
        ([*good[:3], replace(good[2], worker=C)], "w003's signature does not fit"),
        ([*good, Endorsement(D, b"s")], "w004 endorses a sum that it is not part of"),
        ([good[0], everyone, *good[2:]], "w001's signature does not fit"),
        ([good[0], less, *good[2:]], "w001's signature does not fit"),
    ):
        with pytest.raises(SecureRefused, match=rule):
            opened(played, ALL, played.survivors, wrong)
    with pytest.raises(SecureRefused, match="told otherwise now"):
        opened(played, ALL[:-1], ALL[:-1], good)
    for given in (everyone, less, Endorsement(D, b"s"), replace(good[1], signature=b"")):
        with pytest.raises(BadShare) as caught:
            collector.check_endorsement(
                played.round, played.roster, ALL, played.survivors, given, played.verify
            )
        assert caught.value.blamed == given.worker


# Openings.


def test_changed_openings_are_blamed_on_their_opener(played: Parties) -> None:
    openings = played.open(played.endorse())
    own = list(openings[B])
    dropped = own[4]
    assert (dropped.about, dropped.kind) == (D, Kind.MASK)
    other = Opening(D, Kind.SELF, played.held(B).shares[D][0])
    for wrong in (
        [*own[:4], replace(dropped, share=flipped(dropped.share))],
        [*own[:4], replace(dropped, kind=Kind.SELF)],
        [*own[:4], other],
        [*own[:4], replace(dropped, about=C)],
        [*own[:4], replace(dropped, share=openings[A][4].share)],
        [*own[:4], replace(dropped, share=b"")],
        [*own, other],
        own[:4],
        [*own, own[4]],
    ):
        with pytest.raises(BadShare) as caught:
            played.recover(openings | {B: tuple(wrong)})
        assert caught.value.blamed == B
    with pytest.raises(BadShare, match="not asked for") as caught:
        collector.check_opening(played.round, D, own[0], played.digests, ALL, played.survivors)
    assert caught.value.blamed == D
    assert len(played.recover(openings)) == 4 + 4


# What is kept.


def test_what_is_kept_is_the_same_when_it_is_read(played: Parties) -> None:
    party = played.all[V]
    assert Secrets.from_bytes(party.secrets.to_bytes()) == party.secrets
    assert PublicKeys.from_bytes(party.keys.to_bytes()) == party.keys
    assert Dealt.from_bytes(played.dealt(V).to_bytes()) == played.dealt(V)
    assert Held.from_bytes(played.held(V).to_bytes()) == played.held(V)
    done = opening(masking(dealing(begin(None, played.round), played.roster), ALL), ALL, ALL)
    assert History.from_bytes(done.to_bytes()) == done


@pytest.mark.parametrize("kind", [Secrets, PublicKeys, Dealt, Held, History])
def test_what_is_kept_and_damaged_is_not_used(played: Parties, kind: type[Any]) -> None:
    party = played.all[V]
    records = party.secrets, party.keys, party.dealt, party.held, begin(None, played.round)
    whole = next(record.to_bytes() for record in records if isinstance(record, kind))  # type: ignore[union-attr]
    foreign = next(record.to_bytes() for record in records if not isinstance(record, kind))  # type: ignore[union-attr]
    damaged = [flipped(whole, at) for at in range(0, len(whole), 7)]
    for content in (*damaged, whole[:-1], whole + b"\0", b"", foreign):
        with pytest.raises(SecureRefused, match="is damaged; it sits this attempt out"):
            kind.from_bytes(content)


def test_no_secret_is_in_what_a_log_would_show(played: Parties) -> None:
    party = played.all[V]
    shown = repr([party.secrets, party.dealt, party.held, played.open(played.endorse()), played.masks_of(V)])
    for secret in (party.secrets.channel, party.secrets.mask, party.secrets.self_seed, *played.dealt(V).own):
        assert repr(secret)[2:-1] not in shown
    assert public(party.secrets.mask) == party.keys.mask


# Once only.


def test_a_deed_again_is_the_same_and_another_is_refused(played: Parties) -> None:
    roster = played.roster
    start = begin(None, played.round)
    assert begin(start, played.round) == start
    dealt = dealing(start, roster)
    assert dealing(dealt, roster) == dealt
    with pytest.raises(SecureRefused, match="another roster than before"):
        dealing(dealt, roster[:-1])
    with pytest.raises(SecureRefused, match="dealt no shares"):
        masking(start, ALL)
    masked = masking(dealt, ALL)
    assert masking(masked, list(ALL)) == masked
    with pytest.raises(SecureRefused, match="other sharers than before"):
        masking(masked, ALL[1:])
    with pytest.raises(SecureRefused, match="not masked for these sharers"):
        endorsing(masked, ALL[1:], ALL[1:])
    with pytest.raises(SecureRefused, match="not masked for these sharers"):
        opening(dealt, ALL, ALL)
    endorsed = endorsing(masked, ALL, ALL)
    assert endorsing(endorsed, ALL, ALL) == endorsed
    done = opening(endorsed, ALL, ALL)
    assert opening(masked, ALL, ALL) == done == opening(done, ALL, ALL)
    for deed, state in ((endorsing, endorsed), (opening, endorsed), (endorsing, done), (opening, done)):
        with pytest.raises(SecureRefused, match="other survivors than before"):
            deed(state, ALL, ALL[1:])


def test_attempts_go_forward_and_keep_all_that_were_drawn(played: Parties) -> None:
    first = begin(None, a_round(5))
    second = replace(played.round, attempt=2)
    for wrong, rule in (
        (replace(second, attempt=1, clip=16.0), "tells it otherwise than before"),
        (replace(second, attempt=0), "has taken part in a later one"),
        (replace(second, round=0), "has taken part in a later one"),
        (replace(second, run_id="other"), "are of run 'run', not 'other'"),
        (a_round(4, attempt=2), "w004 was drawn for an earlier attempt, which it leaves out"),
        (
            a_round(3, attempt=2, drawn=ALL[:3], electorate=ALL),
            "with threshold 2 among 5 workers, two sums could be opened",
        ),
    ):
        with pytest.raises(SecureRefused, match=rule):
            begin(first, wrong)
    later = begin(masking(dealing(first, played.roster), ALL), second)
    assert (later.attempt, later.dealt, later.masked, later.endorsed) == (2, b"", b"", b"")
    assert later.thresholds == (4, 4)
    done = opening(masking(dealing(later, played.roster), ALL), ALL, ALL)
    assert begin(done, second) == done
    with pytest.raises(SecureRefused, match="has opened shares of an earlier attempt"):
        begin(done, replace(second, attempt=3))
    # The next round is another matter.
    assert begin(done, replace(second, round=2)).opened == b""
    assert isinstance(second, SecureRound)
