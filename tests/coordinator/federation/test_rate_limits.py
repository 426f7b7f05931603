"""A worker makes calls at its own pace, up to a limit, and no other worker feels it."""

import pytest

from common.errors import TooMany
from coordinator.federation.rate_limits import RateLimiter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def calls(pace: RateLimiter, worker: str, most: int = 1000) -> int:
    """How many calls in a row are taken."""
    for number in range(most):
        try:
            pace.call(worker)
        except TooMany:
            return number
    return most


def test_ten_seconds_worth_of_calls_may_come_at_once_and_then_only_so_many_a_second() -> None:
    clock = Clock()
    pace = RateLimiter(calls=5, streams=1, clock=clock)
    assert calls(pace, "a") == 50
    clock.now += 2
    assert calls(pace, "a") == 10
    clock.now += 1000
    assert calls(pace, "a") == 50


def test_one_workers_haste_is_not_anothers() -> None:
    pace = RateLimiter(calls=1, streams=1, clock=Clock())
    assert calls(pace, "a") == 10
    assert calls(pace, "b") == 10


def test_names_without_end_are_not_remembered_without_end() -> None:
    clock = Clock()
    pace = RateLimiter(calls=1, streams=1, clock=clock)
    for number in range(25_000):
        pace.call(f"w{number}")
        clock.now += 0.01
    assert len(pace._buckets) <= 10_000


def test_streams_are_counted_while_they_are_open() -> None:
    pace = RateLimiter(calls=1, streams=2)
    with pace.stream("a"), pace.stream("a"), pace.stream("b"):
        assert pace._open == {"a": 2, "b": 1}
        with pytest.raises(TooMany, match="2 streams"), pace.stream("a"):
            pass
    with pytest.raises(ZeroDivisionError), pace.stream("a"):
        raise ZeroDivisionError
    with pace.stream("a"), pace.stream("a"):
        pass
    assert not pace._open
