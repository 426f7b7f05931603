"""How long a worker waits between tries. Calls themselves are tested against a coordinator."""

from itertools import islice

import pytest

from worker.retries import backoff


@pytest.mark.parametrize("attempt", range(20))
def test_delays_double_up_to_the_most_with_up_to_half_taken_off(attempt: int) -> None:
    full = [min(3.0, 0.2 * 2**i) for i in range(10)]
    for delay, most in zip(backoff(first=0.2, most=3.0), full, strict=False):
        assert most / 2 <= delay <= most


def test_workers_do_not_come_back_all_at_once() -> None:
    assert len({next(backoff()) for _ in range(20)}) > 10


def test_tries_do_not_run_out() -> None:
    assert all(5.0 <= delay <= 10.0 for delay in islice(backoff(), 50, 200))
