"""The state machine of a round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.rounds import (
    Event,
    IllegalTransition,
    Left,
    Received,
    Returned,
    RoundPhase,
    RoundState,
    Tick,
    step,
)

WORKERS = ("a", "b", "c")


def opened(minimum: int = 1) -> RoundState:
    return RoundState(number=1, selected=frozenset(WORKERS), minimum=minimum, closes_at=10.0)


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


def test_a_worker_that_returned_is_waited_for_again() -> None:
    state = after(opened(), Left("c"), Returned("c"), Received("a"), Received("b"))
    assert state.phase is RoundPhase.OPEN
    assert state.missing == {"c"}


@pytest.mark.parametrize(("minimum", "phase"), [(1, RoundPhase.CLOSED), (2, RoundPhase.SHORT)])
def test_the_deadline_closes_a_round_with_its_minimum_and_shortens_it_without(
    minimum: int, phase: RoundPhase
) -> None:
    state = after(opened(minimum), Received("a"))
    assert step(state, Tick(), 9.9).phase is RoundPhase.OPEN
    assert step(state, Tick(), 10.0).phase is phase


def test_updates_of_strangers_and_of_closed_rounds_are_illegal() -> None:
    with pytest.raises(IllegalTransition):
        step(opened(), Received("stranger"), 0.0)
    closed = after(opened(), *map(Received, WORKERS))
    with pytest.raises(IllegalTransition):
        step(closed, Received("a"), 0.0)


events = st.one_of(
    st.builds(Received, st.sampled_from(WORKERS)),
    st.builds(Left, st.sampled_from((*WORKERS, "stranger"))),
    st.builds(Returned, st.sampled_from((*WORKERS, "stranger"))),
    st.builds(Tick),
)


@given(st.lists(st.tuples(events, st.floats(0, 20)), max_size=20), st.integers(1, 3))
def test_no_sequence_of_events_loses_an_update_or_reopens_a_round(
    sequence: list[tuple[Event, float]], minimum: int
) -> None:
    state, counted = opened(minimum), set()
    for event, now in sorted(sequence, key=lambda pair: pair[1]):
        before = state
        if isinstance(event, Received) and state.phase is not RoundPhase.OPEN:
            continue
        state = step(state, event, now)
        if isinstance(event, Received):
            counted.add(event.worker)
        assert state.received == counted
        assert before.phase is RoundPhase.OPEN or state.phase is before.phase
        if state.phase is RoundPhase.CLOSED:
            assert len(state.received) >= minimum
