"""Estimates of how long what is under way will take."""

import pytest

from common.run_status import Event
from coordinator.campaign.time_left import Pace, of_rounds


def test_a_computation_takes_as_long_as_it_has_taken() -> None:
    pace = Pace()
    for step in range(11):
        pace.on_step(step, 100, 1000 + 0.5 * step)
    assert pace.left(1005.0) == pytest.approx(45.0)
    # Of the time that has passed since the last step, so much less is left; never less than none.
    assert pace.left(1007.0) == pytest.approx(43.0)
    assert pace.left(9999.0) == 0.0
    pace.on_step(100, 100, 1050.0)
    assert pace.left(1050.0) == 0.0


def test_what_went_on_in_the_middle_is_reckoned_from_there() -> None:
    pace = Pace()
    pace.on_step(150, 200, 0.0)
    pace.on_step(160, 200, 5.0)
    assert pace.left(5.0) == pytest.approx(20.0)


def test_without_anything_to_go_by_nothing_is_said() -> None:
    pace = Pace()
    assert pace.left(1.0) == 0.0
    pace.on_step(0, 10, 0.0)
    pace.on_step(1, 10, 60.0)
    assert pace.left(60.0) == 0.0
    pace.on_step(2, 10, 60.5)
    assert pace.left(60.5) > 0
    # Another computation begins: of it nothing is known.
    pace.on_step(0, 10, 61.0)
    assert pace.left(61.0) == 0.0
    pace.on_step(5, 7, 70.0)
    assert pace.left(70.0) == 0.0


def closed(number: int, at: float) -> Event:
    return Event(number, at, "round_closed", "", number)


def test_rounds_take_as_long_as_the_last_ones() -> None:
    lately = [closed(3, 300.0), closed(2, 200.0), closed(1, 100.0)]
    assert of_rounds(lately, 10) == pytest.approx(700.0)
    # One night in between changes nothing.
    assert of_rounds([*lately, closed(4, 40_000.0), closed(5, 40_100.0)], 10) == pytest.approx(500.0)
    assert of_rounds(lately, 3) == 0.0
    assert of_rounds([closed(1, 5.0)], 10) == of_rounds([], 10) == 0.0
    # Rounds 3 and 5 are no neighbours: what is between is not known.
    assert of_rounds([closed(3, 0.0), closed(5, 10.0)], 10) == 0.0
