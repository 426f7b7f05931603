"""Bytes of gRPC messages to and from each worker, by round and content."""

from collections import defaultdict

from common.run_status import Traffic
from coordinator.metrics import Metrics
from coordinator.storage.store import Store

# By worker and content, bytes down and up.
Counts = defaultdict[tuple[str, str], list[int]]


class TrafficCounter:
    """Counts the present round in memory, and earlier ones as sums; `save` makes the counts durable.

    Lives on the event loop.
    """

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self._round = 0
        self._saved = self._sums()
        self._now = self._counts_of(0)

    @property
    def round(self) -> int:
        """The round that messages are counted for."""
        return self._round

    def enter_round(self, number: int) -> None:
        """From now on messages are counted for this round."""
        if number != self._round:
            self.save()
            self._round, self._saved = number, self._sums()
            self._now = self._counts_of(number)

    def _sums(self) -> dict[str, dict[str, tuple[int, int]]]:
        totals = self._store.traffic.in_all()
        return {worker: {t.kind: (t.bytes_down, t.bytes_up) for t in each} for worker, each in totals.items()}

    def _counts_of(self, number: int) -> Counts:
        """What is recorded of this round: another process, or try, may have begun it."""
        counts: Counts = defaultdict(lambda: [0, 0])
        for worker, t in self._store.traffic.of_round(number):
            counts[worker, t.kind] = [t.bytes_down, t.bytes_up]
            down, up = self._saved[worker][t.kind]
            self._saved[worker][t.kind] = (down - t.bytes_down, up - t.bytes_up)
        return counts

    def down(self, worker: str, kind: str, size: int) -> None:
        """Count a message to a worker."""
        self._now[worker, kind][0] += size
        self._metrics.transferred.labels(kind, "down").inc(size)

    def up(self, worker: str, kind: str, size: int) -> None:
        """Count a message from a worker."""
        self._now[worker, kind][1] += size
        self._metrics.transferred.labels(kind, "up").inc(size)

    def of(self, worker: str) -> tuple[Traffic, ...]:
        """A worker's bytes, all rounds together."""
        before = self._saved.get(worker, {})
        kinds = sorted(before.keys() | {kind for name, kind in self._now if name == worker})
        found = []
        for kind in kinds:
            (down, up), now = before.get(kind, (0, 0)), self._now.get((worker, kind), (0, 0))
            found.append(Traffic(0, kind, down + now[0], up + now[1]))
        return tuple(found)

    def save(self) -> None:
        """Make the counts so far durable."""
        self._store.traffic.save(
            (worker, Traffic(self._round, kind, *both)) for (worker, kind), both in sorted(self._now.items())
        )
