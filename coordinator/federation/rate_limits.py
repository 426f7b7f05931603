"""How much of the coordinator a single worker may take at once and per second. Lives on the event loop."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from common.errors import TooMany

# A worker that was quiet may make the calls of so many seconds at once.
_BURST_SECONDS = 10.0
# Workers whose pace is remembered; who has been quiet long enough is as one never seen.
_REMEMBERED = 10_000


@dataclass
class _Bucket:
    """Calls that a worker may still make, as of a moment."""

    left: float
    at: float


class RateLimiter:
    """Counts each worker's calls. `clock` gives seconds on a monotonic clock."""

    def __init__(self, calls: float, streams: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`calls` per second in the long run, `streams` at the same time, for each worker."""
        self._calls, self._streams, self._clock = calls, streams, clock
        self._buckets: dict[str, _Bucket] = {}
        self._open: Counter[str] = Counter()

    def call(self, worker: str) -> None:
        """Note a call. Raises TooMany when the worker makes them faster than it may."""
        now, most = self._clock(), self._calls * _BURST_SECONDS
        bucket = self._buckets.get(worker)
        if bucket is None:
            self._forget(now)
            bucket = self._buckets[worker] = _Bucket(most, now)
        bucket.left = min(most, bucket.left + (now - bucket.at) * self._calls)
        bucket.at = now
        if bucket.left < 1:
            raise TooMany(f"worker {worker} makes more than {self._calls:g} calls a second; try again later")
        bucket.left -= 1

    def _forget(self, now: float) -> None:
        if len(self._buckets) >= _REMEMBERED:
            recent = {w: b for w, b in self._buckets.items() if now - b.at < _BURST_SECONDS}
            self._buckets = recent if len(recent) < _REMEMBERED else {}

    @contextmanager
    def stream(self, worker: str) -> Iterator[None]:
        """While a stream of the worker's is open. Raises TooMany when it has too many."""
        if self._open[worker] >= self._streams:
            raise TooMany(f"worker {worker} has {self._streams} streams open already; end one first")
        self._open[worker] += 1
        try:
            yield
        finally:
            self._open[worker] -= 1
            if not self._open[worker]:
                del self._open[worker]
