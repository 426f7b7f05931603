"""A coordinator that lies learns one sum or nothing; with a rule left out it learns more, and this shows."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.errors import SecureRefused
from common.secagg import history, member
from common.secagg.history import History
from common.secagg.keeping import Held
from common.secagg.records import Kind, Opening, SecureRound
from common.secagg.statements import names_digest
from tests.common.secagg.adversary import Coordinator
from tests.common.secagg.parties import a_round, workers

ALL = workers(5)
V, A, B, C, D = ALL


def until_sent(who: Coordinator, told: SecureRound, names: Collection[str]) -> None:
    """The first phases, by the rules, with these workers."""
    for name in names:
        who.ask(name, told)
    roster = who.roster(told, names)
    for name in names:
        who.deal(name, told, roster)
    for name in names:
        who.send(name, told, names)


def until_opened(
    who: Coordinator, told: SecureRound, sharers: Collection[str], survivors: Collection[str]
) -> None:
    """The last phases, by the rules."""
    for name in survivors:
        who.endorse(name, told, sharers, survivors)
    for name in survivors:
        who.open(name, told, sharers, survivors)


def fair(who: Coordinator, told: SecureRound, survivors: Collection[str] | None = None) -> None:
    until_sent(who, told, told.drawn)
    until_opened(who, told, told.drawn, survivors or told.drawn)


def test_who_plays_by_the_rules_learns_the_sum_and_nothing_else() -> None:
    for survivors in (ALL, ALL[1:], ALL[:-1]):
        who = Coordinator.of(ALL)
        fair(who, a_round(5, 1), survivors)
        assert [{at[1] for at in row} for row in who.known()] == [set(survivors)]
        assert who.leaks() == []


def test_until_shares_are_opened_nothing_is_known() -> None:
    who = Coordinator.of(ALL[:-1], [D])
    until_sent(who, a_round(5, 1), ALL)
    for name in ALL:
        assert who.endorse(name, a_round(5, 1), ALL, ALL)
    assert len(who.rows) == 4
    assert who.known() == []


# Attacks: what the coordinator does, and the rule that keeps it from success.


def open_both_secrets() -> Coordinator:
    """One worker in league: half of the others are told that the rest dropped out, and vice versa."""
    who = Coordinator.of(ALL[:-1], [D])
    told = a_round(5, 1, threshold=3, minimum=3)
    until_sent(who, told, ALL)
    until_opened(who, told, ALL, [V, A, D])
    until_opened(who, told, ALL, [B, C, D])
    return who


# V's and A's seeds are opened and all others' keys, though no list has V and A alone.
LISTS = {V: [V, A, B], A: [V, A, C], B: [V, A, B], C: [V, A, C], D: [V, A, D]}


def tell_each_other_survivors() -> Coordinator:
    """The sum of two, out of lists of three, with forged endorsements."""
    who, told = Coordinator.of(ALL), a_round(5, 0)
    until_sent(who, told, ALL)
    for name, survivors in LISTS.items():
        who.open(name, told, ALL, survivors)
    return who


def have_all_lists_endorsed() -> Coordinator:
    """The same with real endorsements of each list."""
    who, told = Coordinator.of(ALL), a_round(5, 0)
    until_sent(who, told, ALL)
    for survivors in LISTS.values():
        for name in ALL:
            who.endorse(name, told, ALL, survivors)
    for name, survivors in LISTS.items():
        who.open(name, told, ALL, survivors)
    return who


def ask_for_the_same_round_by_the_rules() -> Coordinator:
    """Nothing more than a fair round in which one drops out."""
    who = Coordinator.of(ALL[:-1], [D])
    fair(who, a_round(5, 1), ALL[1:])
    return who


def ask_one_another_question() -> Coordinator:
    """V's answer is to a question of its own, and still part of the sum."""
    who, told = Coordinator.of(ALL), a_round(5, 1)
    other = replace(told, task_digest=b"T" * 32)
    for name in ALL:
        who.ask(name, other if name == V else told)
    roster = who.roster(told, ALL)
    for act in (who.deal, who.send):
        for name in ALL:
            act(name, other if name == V else told, roster if act == who.deal else ALL)
    for phase in (who.endorse, who.open):
        for name in ALL:
            phase(name, other if name == V else told, ALL, ALL)
    return who


def have_a_vector_masked_again() -> Coordinator:
    """V masks for all sharers but one, each in turn: differences are its masks."""
    who, told = Coordinator.of(ALL), a_round(5, 0)
    until_sent(who, told, ALL)
    for left_out in ALL[1:]:
        who.send(V, told, [name for name in ALL if name != left_out])
    who.send(V, told, ALL)
    until_opened(who, told, ALL, ALL)
    return who


def open_two_attempts() -> Coordinator:
    """A sum with V, and one without."""
    who, told = Coordinator.of(ALL), a_round(5, 1)
    fair(who, told)
    fair(who, replace(told, attempt=2), ALL[1:])
    return who


def draw_others_beside_one() -> Coordinator:
    """V is in two attempts whose other workers are not the same: two sums with it."""
    names = workers(7)
    who = Coordinator.of(names)
    first, second = names[:4], (V, *names[4:])
    one = a_round(4, 0, minimum=4, drawn=first, electorate=first)
    two = replace(one, attempt=2, drawn=second, electorate=names)
    until_sent(who, one, first)
    for name in first:
        who.endorse(name, one, first, first)
    for name in first[1:]:
        who.open(name, one, first, first)
    fair(who, two)
    return who


def show_keys_of_its_own() -> Coordinator:
    """All others in V's roster are the coordinator."""
    who, told = Coordinator.of(ALL), a_round(5, 1)
    who.ask(V, told)
    who.impersonate_all(V, told)
    return who


Mutate = Callable[[pytest.MonkeyPatch], None]


def any_threshold(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("common.secagg.records._check_workers", lambda told: None)


def no_endorsement(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(member, "check_endorsed", lambda *given: None)


def many_endorsements(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(history, "endorsing", lambda before, sharers, survivors: before)


def both_kinds(patch: pytest.MonkeyPatch) -> None:
    real = member.open_shares

    def open_all(round: SecureRound, name: str, roster: Any, held: Held, *rest: Any) -> Sequence[Opening]:
        real(round, name, roster, held, *rest)
        return [
            Opening(about, kind, share)
            for about, shares in held.shares.items()
            for kind, share in zip(Kind, shares, strict=True)
        ]

    patch.setattr(member, "open_shares", open_all)


def no_context(patch: pytest.MonkeyPatch) -> None:
    for module in ("member", "history", "context"):
        patch.setattr(f"common.secagg.{module}.digest", lambda told: bytes(32))


def masked_again(patch: pytest.MonkeyPatch) -> None:
    def masking(before: History, sharers: Collection[str]) -> History:
        return replace(before, masked=names_digest(sharers))

    patch.setattr(history, "masking", masking)


def opened_again(patch: pytest.MonkeyPatch) -> None:
    real = history.begin

    def begin(before: History | None, round: SecureRound) -> History:
        return real(before and replace(before, opened=b""), round)

    patch.setattr(history, "begin", begin)


def any_electorate(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(history, "electorates_ok", lambda *given: True)


def no_signatures(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(member, "check_public", lambda *given: None)


ATTACKS: list[tuple[Callable[[], Coordinator], Mutate]] = [
    (open_both_secrets, any_threshold),
    (tell_each_other_survivors, no_endorsement),
    (have_all_lists_endorsed, many_endorsements),
    (ask_for_the_same_round_by_the_rules, both_kinds),
    (ask_one_another_question, no_context),
    (have_a_vector_masked_again, masked_again),
    (open_two_attempts, opened_again),
    (draw_others_beside_one, any_electorate),
    (show_keys_of_its_own, no_signatures),
]


@pytest.mark.parametrize(("attack", "mutate"), ATTACKS)
def test_an_attack_fails_and_would_succeed_without_its_rule(
    monkeypatch: pytest.MonkeyPatch, attack: Callable[[], Coordinator], mutate: Mutate
) -> None:
    try:
        assert attack().leaks() == []
    except SecureRefused as refused:
        # The round itself is one that no worker takes part in.
        assert "threshold must be" in str(refused)
    mutate(monkeypatch)
    assert attack().leaks() != []
