"""A coordinator that tells workers whatever it likes, in any order, never learns more than one sum."""

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from common.secagg import context
from common.secagg.records import SecureRound
from tests.common.secagg.adversary import Coordinator
from tests.common.secagg.parties import a_round, workers
from tests.common.secagg.test_secrecy import Mutate, both_kinds, masked_again, until_sent


class Lies(RuleBasedStateMachine):
    """Every step is one phase, for some workers, with lists that need not be what others are told."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[SecureRound] = []
        self.who = Coordinator.of(())

    @initialize(n=st.integers(3, 6), data=st.data())
    def begin(self, n: int, data: st.DataObject) -> None:
        names = workers(n)
        c = data.draw(st.integers(0, (n - 1) // 2), "colluding")
        league = names[n - data.draw(st.integers(0, c), "in league") :]
        self.who = Coordinator.of(names[: n - len(league)], league)
        first = a_round(n, c)
        self.rounds = [first, replace(first, task_digest=b"T" * 32), replace(first, attempt=2)]
        if n > 4:
            # Attempts at the round with some of them only, as far as a worker that knows no other allows.
            for attempt, some in ((1, names[:4]), (2, (names[0], *names[-3:]))):
                limit = context.threshold(4, min(c, 3))
                if limit <= 4:
                    less = replace(
                        first,
                        drawn=some,
                        electorate=some,
                        colluding=min(c, 3),
                        threshold=limit,
                        minimum=max(limit, 3),
                    )
                    self.rounds.append(replace(less, attempt=attempt))
                    self.rounds.append(replace(less, attempt=attempt + 1, electorate=names))

        if data.draw(st.booleans(), "begun"):
            until_sent(self.who, first, names)

    def pick(self, data: st.DataObject, of: tuple[str, ...], label: str) -> tuple[str, ...]:
        """Mostly all of them."""
        if not of:
            return ()
        left_out = data.draw(
            st.one_of(st.just(frozenset[str]()), st.sets(st.sampled_from(of), max_size=2)), label
        )
        return tuple(name for name in of if name not in left_out)

    def told(self, data: st.DataObject) -> SecureRound:
        """Mostly the first."""
        return data.draw(st.one_of(st.just(self.rounds[0]), st.sampled_from(self.rounds)), "round")

    @rule(data=st.data())
    def ask(self, data: st.DataObject) -> None:
        told = self.told(data)
        for name in self.pick(data, told.drawn, "not asked"):
            self.who.ask(name, told)

    @rule(data=st.data())
    def deal(self, data: st.DataObject) -> None:
        told = self.told(data)
        roster = self.who.roster(told, self.pick(data, told.drawn, "not in roster"))
        there = {keys.worker for keys in roster}
        for name in self.pick(data, told.drawn, "not told"):
            if name in there and (name in self.who.honest or (name, told) in self.who.secrets):
                self.who.deal(name, told, roster)

    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        told = self.told(data)
        sharers = self.pick(data, told.drawn, "not sharing")
        for name in self.pick(data, sharers, "not told"):
            self.who.send(name, told, sharers)

    @rule(data=st.data())
    def endorse(self, data: st.DataObject) -> None:
        told = self.told(data)
        sharers = self.pick(data, told.drawn, "not sharing")
        survivors = self.pick(data, sharers, "not surviving")
        for name in self.pick(data, told.drawn, "not told"):
            self.who.endorse(name, told, sharers, survivors)

    @rule(data=st.data())
    def open(self, data: st.DataObject) -> None:
        told = self.told(data)
        sharers = self.pick(data, told.drawn, "not sharing")
        survivors = self.pick(data, sharers, "not surviving")
        for name in self.pick(data, told.drawn, "not told"):
            self.who.open(name, told, sharers, survivors)

    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        """All phases by the rules, from wherever the workers are; most may refuse."""
        told = self.told(data)
        there = self.pick(data, told.drawn, "gone")
        survivors = self.pick(data, there, "late")
        for name in there:
            self.who.ask(name, told)
        roster = self.who.roster(told, there)
        for name in there:
            if any(keys.worker == name for keys in roster):
                self.who.deal(name, told, roster)
        for name in there:
            self.who.send(name, told, there)
        for name in survivors:
            self.who.endorse(name, told, there, survivors)
        for name in self.pick(data, survivors, "not opening"):
            self.who.open(name, told, there, survivors)

    @rule(data=st.data())
    def impersonate(self, data: st.DataObject) -> None:
        told = self.told(data)
        victim = data.draw(st.sampled_from(told.drawn), "victim")
        if victim in self.who.honest and (victim, told) in self.who.keys:
            self.who.impersonate_all(victim, told)

    @rule()
    def restart(self) -> None:
        for worker in self.who.honest.values():
            worker.restart()

    @invariant()
    def learns_no_more_than_sums(self) -> None:
        assert self.who.leaks() == []


SETTINGS = settings(
    deadline=None, max_examples=500, stateful_step_count=15, suppress_health_check=list(HealthCheck)
)


@pytest.mark.slow
def test_no_lies_in_any_order_tell_more_than_sums() -> None:
    run_state_machine_as_test(Lies, settings=SETTINGS)  # type: ignore[no-untyped-call]


@pytest.mark.slow
@pytest.mark.parametrize("mutate", [both_kinds, masked_again])
def test_lies_in_any_order_find_out_that_a_rule_is_missing(
    monkeypatch: pytest.MonkeyPatch, mutate: Mutate
) -> None:
    mutate(monkeypatch)
    found = settings(SETTINGS, max_examples=600, phases=[Phase.generate], database=None)
    with pytest.raises(AssertionError, match=r"a sum of|more than sums|told different"):
        run_state_machine_as_test(Lies, settings=found)  # type: ignore[no-untyped-call]
