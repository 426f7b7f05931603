"""Secure aggregation's steps as a pure state machine: no set grows again, none is below its least."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.federation.secure_phases import Brought, Closed, Look, SecurePhase, SecureState, step

ORDER = [p for p in SecurePhase if p is not SecurePhase.SHORT]
SETS = ("roster", "sharers", "survivors", "endorsers", "openers")
NAMES = [f"w{i}" for i in range(7)]

Event = Brought | Closed | Look


def a_state(n: int = 5, threshold: int = 4, minimum: int = 4) -> SecureState:
    return SecureState(frozenset(NAMES[:n]), threshold, minimum, until=60.0, seconds=30.0)


def brought(state: SecureState, *workers: str, now: float = 1.0) -> SecureState:
    for worker in workers:
        state = step(state, Brought(worker), now)
    return state


def agreed(state: SecureState) -> SecureState:
    """With everybody's keys and shares."""
    return brought(brought(state, *sorted(state.drawn)), *sorted(state.drawn))


@st.composite
def histories(draw: st.DrawFn) -> tuple[SecureState, list[tuple[Event, float]]]:
    n = draw(st.integers(3, 7))
    threshold = draw(st.integers(n // 2 + 1, n))
    minimum = draw(st.integers(max(threshold, 3), n))
    some = st.sets(st.sampled_from(NAMES)).map(frozenset)
    event: st.SearchStrategy[Event] = st.one_of(
        *([st.builds(Brought, st.sampled_from(NAMES[:n]))] * 4),
        st.builds(Brought, st.sampled_from(NAMES)),
        st.builds(Closed, st.sets(st.sampled_from(NAMES[:n])).map(frozenset)),
        st.builds(Look, some),
    )
    times = draw(st.lists(st.tuples(event, st.floats(0, 20)), max_size=60))
    now, events = 0.0, []
    for what, later in times:
        now += later
        events.append((what, now))
    return a_state(n, threshold, minimum), events


@given(histories())
@settings(max_examples=40, deadline=None)
def test_steps_follow_each_other_and_what_is_decided_stays(
    history: tuple[SecureState, list[tuple[Event, float]]],
) -> None:
    state, events = history
    least = max(state.threshold, state.minimum)
    for event, now in events:
        before, state = state, step(state, event, now)
        if before.phase in (SecurePhase.SHORT, SecurePhase.DONE):
            assert state == before
        elif state.phase is not SecurePhase.SHORT:
            assert ORDER.index(state.phase) - ORDER.index(before.phase) in (0, 1)
        for which in SETS:
            if (decided := getattr(before, which)) is not None:
                assert getattr(state, which) == decided
        if isinstance(event, Brought) and event.worker not in before.asked:
            assert state == step(before, Look(), now)
        assert state.brought <= state.asked or state.phase is SecurePhase.SHORT
        if state.phase is not SecurePhase.SHORT:
            for smaller, larger in (("sharers", "roster"), ("endorsers", "survivors")):
                if (found := getattr(state, smaller)) is not None:
                    assert found <= getattr(state, larger)
            for which in ("roster", "sharers", "survivors"):
                assert (found := getattr(state, which)) is None or len(found) >= least
            for which in ("endorsers", "openers"):
                assert (found := getattr(state, which)) is None or len(found) >= state.threshold


def test_all_that_may_still_come_are_waited_for_until_their_time_is_over() -> None:
    state = brought(a_state(), *NAMES[:4])
    assert state.phase is SecurePhase.KEYS and state.missing == {"w4"}
    assert step(state, Look(), 59.9).phase is SecurePhase.KEYS
    assert step(state, Look(), 60.0).roster == set(NAMES[:4])
    assert step(state, Look(frozenset({"w4"})), 2.0).roster == set(NAMES[:4])
    late = step(state, Look(), 60.0)
    assert late.until == 90.0
    assert step(late, Brought("w4"), 61.0) == late


def test_too_few_keys_or_shares_end_the_try() -> None:
    assert step(brought(a_state(), *NAMES[:3]), Look(), 60.0).phase is SecurePhase.SHORT
    dealt = brought(brought(a_state(), *NAMES[:5]), *NAMES[:3])
    short = step(dealt, Look(frozenset(NAMES[3:])), 2.0)
    assert short.phase is SecurePhase.SHORT
    assert brought(short, *NAMES[:5]) == short


@pytest.mark.parametrize(("many", "phase"), [(3, SecurePhase.SHORT), (4, SecurePhase.ENDORSEMENTS)])
def test_a_sum_is_of_the_minimum_at_least(many: int, phase: SecurePhase) -> None:
    closed = step(agreed(a_state(threshold=3)), Closed(frozenset(NAMES[:many])), 2.0)
    assert closed.phase is phase


def test_updates_that_close_before_masks_are_agreed_on_change_nothing() -> None:
    state = brought(a_state(), "w0")
    assert step(state, Closed(frozenset(NAMES[:5])), 2.0) == state


def test_endorsements_and_openings_are_waited_for_without_end_and_the_threshold_is_enough() -> None:
    state = step(agreed(a_state()), Closed(frozenset(NAMES[:5])), 2.0)
    three = brought(state, *NAMES[:3])
    assert step(three, Look(frozenset(NAMES)), 1e9) == three
    opening = brought(three, "w4")
    assert opening.phase is SecurePhase.OPENINGS
    assert opening.endorsers == {"w0", "w1", "w2", "w4"}
    # Who did not endorse may open.
    done = brought(opening, *NAMES[1:5])
    assert done.phase is SecurePhase.DONE and done.openers == set(NAMES[1:5])
    assert brought(done, "w0") == replace(done)
