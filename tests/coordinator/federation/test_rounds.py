"""The state machine of a round."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coordinator.federation.rounds import (
    Abandoned,
    Cannot,
    Event,
    IllegalTransition,
    Left,
    Lost,
    Outcome,
    Progressed,
    Received,
    Refused,
    Restarted,
    Returned,
    RoundPhase,
    RoundState,
    Stalled,
    Tick,
    step,
)

WORKERS = ("a", "b", "c")


def opened(minimum: int = 1, needed: int | None = None, grace: float = 2.0) -> RoundState:
    return RoundState(1, frozenset(WORKERS), minimum, closes_at=10.0, needed=needed, grace=grace)


def after(state: RoundState, *events: Event, now: float = 0.0) -> RoundState:
    for event in events:
        state = step(state, event, now)
    return state


def test_a_round_closes_when_every_selected_worker_has_reported() -> None:
    almost = after(opened(), Received("a"), Received("b"))
    assert almost.phase is RoundPhase.OPEN
    assert after(almost, Received("c")).phase is RoundPhase.CLOSED


def test_a_round_does_not_wait_for_workers_that_left() -> None:
    assert after(opened(), Received("a"), Received("b"), Left("c")).phase is RoundPhase.CLOSED


@pytest.mark.parametrize("came", [(), ("a",), ("a", "b")])
def test_a_try_of_which_nothing_can_come_is_short_at_once(came: tuple[str, ...]) -> None:
    state = after(opened(), *map(Received, came), Abandoned())
    assert state.phase is RoundPhase.SHORT
    assert after(state, Abandoned()) == state
    closed = after(opened(), *map(Received, WORKERS))
    assert after(closed, Abandoned()) == closed


def test_a_worker_that_returned_is_waited_for_again() -> None:
    state = after(opened(), Left("c"), Returned("c"), Received("a"), Received("b"))
    assert state.phase is RoundPhase.OPEN
    assert state.missing == {"c"}


def test_a_lost_worker_is_waited_for_until_its_grace_is_over() -> None:
    state = after(opened(), Received("a"), Received("b"))
    state = step(state, Lost("c"), 3.0)
    assert (state.phase, state.next_change(3.0)) == (RoundPhase.OPEN, 5.0)
    # Lost again, or by another way: the first time counts.
    state = step(state, Lost("c"), 4.0)
    assert step(state, Tick(), 4.9).phase is RoundPhase.OPEN
    assert step(state, Tick(), 5.0).phase is RoundPhase.CLOSED


def test_a_lost_worker_that_is_heard_again_has_time_until_the_deadline() -> None:
    state = after(opened(), Received("a"), Received("b"), Lost("c"), Returned("c"))
    assert state.next_change(0.0) == 10.0
    assert step(state, Tick(), 9.9).phase is RoundPhase.OPEN
    assert step(state, Received("c"), 9.9).received == set(WORKERS)


@pytest.mark.parametrize("event", [Refused("c", "NaN"), Cannot("c", "no memory"), Stalled("c", "stuck")])
def test_a_round_does_not_wait_for_a_worker_whose_turn_is_over(event: Event) -> None:
    state = after(opened(), Received("a"), event)
    assert (state.phase, state.awaited(0.0)) == (RoundPhase.OPEN, {"b"})
    assert after(state, Received("b")).phase is RoundPhase.CLOSED
    assert state.outcomes(0.0)["c"].reason == getattr(event, "reason", None)


@pytest.mark.parametrize("event", [Refused("c"), Cannot("c")])
@pytest.mark.parametrize(
    "again", [Returned("c"), Restarted("c", True), Progressed("c"), Left("c"), Lost("c")]
)
def test_only_an_update_undoes_what_is_final(event: Event, again: Event) -> None:
    state = after(opened(), Received("a"), event, again)
    assert "c" not in state.awaited(0.0)
    assert state.over["c"].outcome in (Outcome.REFUSED, Outcome.CANNOT)
    assert after(state, Received("c")).received == {"a", "c"}
    assert not after(state, Received("c")).over


def test_what_becomes_of_a_worker_after_its_update_is_here_changes_nothing() -> None:
    state = after(opened(), Received("a"))
    for event in (Refused("a"), Cannot("a"), Stalled("a"), Left("a"), Lost("a"), *3 * (Restarted("a"),)):
        assert after(state, event) == state


def test_a_worker_that_dies_again_and_again_without_coming_further_is_given_up() -> None:
    state = after(opened(), Received("a"), Received("b"), Restarted("c"), Restarted("c"))
    assert state.phase is RoundPhase.OPEN
    state = after(state, Restarted("c"))
    assert state.phase is RoundPhase.CLOSED
    assert state.outcomes(0.0)["c"].reason == "has died 3 times in round 1"


def test_the_last_death_counts_when_the_worker_falls_silent() -> None:
    state = after(opened(grace=9.0), Received("a"), Received("b"), Restarted("c"), Restarted("c"), Lost("c"))
    assert (state.phase, state.over["c"].outcome) == (RoundPhase.CLOSED, Outcome.DIED)


def test_a_worker_that_comes_further_with_each_start_is_waited_for() -> None:
    state = after(opened(), Received("a"), Received("b"), *9 * (Restarted("c", further=True),))
    assert (state.phase, state.deaths) == (RoundPhase.OPEN, {"c": 1})


def test_a_worker_that_says_goodbye_and_returns_again_and_again_is_given_up() -> None:
    state = after(opened(), Received("a"), *2 * (Left("c", "error"), Returned("c")), Left("c"), Returned("c"))
    assert state.outcomes(0.0)["c"].reason == "has left 3 times in round 1"
    assert state.awaited(0.0) == {"b"}


def test_of_a_worker_that_was_given_up_before_one_death_is_enough() -> None:
    for death in (Restarted("c"), Lost("c")):
        state = after(replace(opened(), suspects=frozenset({"c"})), Received("a"), death)
        assert state.outcomes(0.0)["c"].reason == "has died again in round 1"


def test_a_worker_that_is_lost_once_has_not_died_even_if_one_death_is_the_limit() -> None:
    state = after(replace(opened(), most_deaths=1), Lost("c"))
    assert "c" in state.awaited(0.0) and not state.over


def test_all_absences_of_a_worker_count_together_until_it_comes_further() -> None:
    state = after(opened(grace=4.0), Received("a"), Received("b"))
    for lost, back in ((0.0, 1.5), (2.0, 3.5)):
        state = step(step(state, Lost("c"), lost), Returned("c"), back)
    assert state.absent == {"c": 3.0}
    assert step(state, Lost("c"), 5.0).next_change(5.0) == 6.0
    state = step(state, Progressed("c", further=False), 5.0)
    assert step(state, Lost("c"), 5.0).next_change(5.0) == 6.0
    state = step(state, Progressed("c"), 5.0)
    assert step(state, Lost("c"), 5.0).next_change(5.0) == 9.0


def test_a_worker_that_stood_still_and_comes_further_is_waited_for_again() -> None:
    state = after(opened(), Received("a"), Stalled("c", "stuck"), Returned("c"))
    assert "c" not in state.awaited(0.0)
    assert "c" in after(state, Progressed("c", further=False)).awaited(0.0)


def test_outcomes_name_those_that_are_lost_for_too_long() -> None:
    state = step(opened(), Lost("c"), 1.0)
    assert not state.outcomes(2.9)
    assert state.outcomes(3.0)["c"].outcome is Outcome.LOST


def test_a_round_closes_early_with_as_many_updates_as_it_needs() -> None:
    state = after(opened(minimum=1, needed=2), Received("c"))
    assert state.phase is RoundPhase.OPEN
    state = after(state, Received("a"))
    assert (state.phase, state.received) == (RoundPhase.CLOSED, {"a", "c"})


@pytest.mark.parametrize(("minimum", "phase"), [(1, RoundPhase.CLOSED), (2, RoundPhase.SHORT)])
def test_the_deadline_closes_a_round_with_its_minimum_and_shortens_it_without(
    minimum: int, phase: RoundPhase
) -> None:
    state = after(opened(minimum), Received("a"))
    assert step(state, Tick(), 9.9).phase is RoundPhase.OPEN
    assert step(state, Tick(), 10.0).phase is phase


def test_a_round_is_short_at_once_when_nobody_is_left_to_wait_for() -> None:
    state = after(opened(minimum=2), Received("a"), Left("b"), Lost("c"))
    assert state.phase is RoundPhase.OPEN
    assert step(state, Tick(), 2.0).phase is RoundPhase.SHORT


def test_updates_of_strangers_and_of_closed_rounds_are_illegal() -> None:
    with pytest.raises(IllegalTransition):
        step(opened(), Received("stranger"), 0.0)
    closed = after(opened(), *map(Received, WORKERS))
    with pytest.raises(IllegalTransition):
        step(closed, Received("a"), 0.0)


names = st.sampled_from(("a", "b", "c", "d", "e"))
anybody = st.sampled_from(("a", "b", "c", "d", "e", "stranger"))


class Round(RuleBasedStateMachine):
    """Everything that can happen to a round, in any order, as time goes on."""

    @initialize(
        selected=st.frozensets(names, min_size=1),
        received=st.frozensets(names),
        minimum=st.integers(1, 5),
        needed=st.none() | st.integers(1, 5),
        grace=st.floats(0, 20),
        most_deaths=st.integers(1, 4),
        suspects=st.frozensets(names, max_size=2),
    )
    def open(
        self,
        selected: frozenset[str],
        received: frozenset[str],
        minimum: int,
        needed: int | None,
        grace: float,
        most_deaths: int,
        suspects: frozenset[str],
    ) -> None:
        """A round, perhaps with updates that an earlier try has received."""
        self.now = 0.0
        self.counted = set(received & selected)
        self.closed_times = 0
        self.state = RoundState(
            1,
            selected,
            minimum,
            30.0,
            needed=needed,
            grace=grace,
            received=frozenset(self.counted),
            most_deaths=most_deaths,
            suspects=suspects,
        )
        self.happens(Tick())

    def happens(self, event: Event) -> None:
        before = self.state
        self.state = step(self.state, event, self.now)
        if before.phase is RoundPhase.OPEN and self.state.phase is not RoundPhase.OPEN:
            self.closed_times += 1
            self.check_why()
        elif before.phase is not RoundPhase.OPEN:
            assert (self.state.phase, self.state.received) == (before.phase, before.received)

    def check_why(self) -> None:
        """A round closes for a reason, and the result follows from what it has received."""
        s = self.state
        everybody = len(s.received) >= (len(s.selected) if s.needed is None else s.needed)
        waiting = s.selected - s.received
        nobody = all(w in s.over or (w in s.lost and self.now >= s.lost[w]) for w in waiting)
        assert everybody or nobody or self.now >= s.closes_at
        assert (s.phase is RoundPhase.CLOSED) == (len(s.received) >= s.minimum)

    @rule(seconds=st.floats(0, 10))
    def time_goes_on(self, seconds: float) -> None:
        self.now += seconds
        self.happens(Tick())

    @rule()
    def time_goes_to_the_next_change(self) -> None:
        """The loop sleeps until then: it must be later, and bring something."""
        if self.state.phase is RoundPhase.OPEN:
            awaited = self.state.awaited(self.now)
            until = self.state.next_change(self.now)
            assert until > self.now
            self.now = until
            self.happens(Tick())
            assert self.state.phase is not RoundPhase.OPEN or self.state.awaited(self.now) < awaited

    @precondition(lambda self: self.state.phase is RoundPhase.OPEN)
    @rule(worker=names)
    def an_update_comes(self, worker: str) -> None:
        if worker in self.state.selected:
            self.happens(Received(worker))
            self.counted.add(worker)
        else:
            with pytest.raises(IllegalTransition):
                step(self.state, Received(worker), self.now)

    @precondition(lambda self: self.state.phase is not RoundPhase.OPEN)
    @rule(worker=names)
    def an_update_comes_late(self, worker: str) -> None:
        with pytest.raises(IllegalTransition):
            step(self.state, Received(worker), self.now)

    @rule(worker=anybody, kind=st.sampled_from((Left, Lost, Returned, Restarted, Refused, Cannot, Stalled)))
    def something_becomes_of_a_worker(self, worker: str, kind: Callable[[str], Event]) -> None:
        final = {w: over for w, over in self.state.over.items() if over.outcome.final}
        self.happens(kind(worker))
        assert final.items() <= self.state.over.items(), "only an update undoes what is final"

    @rule(worker=anybody, kind=st.sampled_from((Left, Lost, Restarted, Progressed)))
    def a_worker_comes_further(self, worker: str, kind: Callable[..., Event]) -> None:
        deaths = self.state.deaths.get(worker, 0)
        self.happens(kind(worker, further=True))
        assert self.state.deaths.get(worker, 0) == deaths or deaths == 0

    @rule(worker=names)
    def a_worker_dies_until_it_is_given_up(self, worker: str) -> None:
        """As often as it may, and no more, whatever became of it before."""
        for _ in range(self.state.most_deaths):
            self.happens(Restarted(worker))
        assert worker not in self.state.awaited(self.now)

    @invariant()
    def no_received_update_is_lost(self) -> None:
        assert self.state.received == self.counted

    @invariant()
    def it_closes_at_most_once_and_not_after_its_deadline(self) -> None:
        assert self.closed_times <= 1
        assert self.state.phase is not RoundPhase.OPEN or self.now < self.state.closes_at

    @invariant()
    def an_open_round_waits_for_somebody(self) -> None:
        if self.state.phase is RoundPhase.OPEN:
            assert self.state.awaited(self.now)
            assert not self.state.awaited(self.now) & self.state.outcomes(self.now).keys()
            assert self.now < self.state.next_change(self.now) <= self.state.closes_at


TestRound = Round.TestCase
TestRound.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)


@given(st.permutations(list(WORKERS)), st.integers(1, 3))
def test_the_order_of_arrival_does_not_matter_when_all_report(order: list[str], minimum: int) -> None:
    state = after(opened(minimum), *map(Received, order))
    assert (state.phase, state.received) == (RoundPhase.CLOSED, set(WORKERS))
