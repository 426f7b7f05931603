"""Bytes of gRPC messages to and from each worker, by round and content."""

from collections import defaultdict

from common.records import Traffic
from coordinator.metrics import Metrics
from coordinator.storage.store import Store


class TrafficCounter:
    """Counts in memory; `save` makes the counts durable. Lives on the event loop."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self.round = 0
        # By worker; then by round and content, bytes down and up.
        self._counts: defaultdict[str, dict[tuple[int, str], list[int]]] = defaultdict(dict)
        self._changed: set[tuple[str, int, str]] = set()
        for worker, counts in store.traffic().items():
            for t in counts:
                self._counts[worker][t.round, t.kind] = [t.bytes_down, t.bytes_up]

    def down(self, worker: str, kind: str, size: int) -> None:
        """Count a message to a worker."""
        self._count(worker, kind)[0] += size
        self._metrics.transferred.labels(kind, "down").inc(size)

    def up(self, worker: str, kind: str, size: int) -> None:
        """Count a message from a worker."""
        self._count(worker, kind)[1] += size
        self._metrics.transferred.labels(kind, "up").inc(size)

    def _count(self, worker: str, kind: str) -> list[int]:
        self._changed.add((worker, self.round, kind))
        return self._counts[worker].setdefault((self.round, kind), [0, 0])

    def of(self, worker: str) -> tuple[Traffic, ...]:
        """A worker's counts."""
        return tuple(Traffic(*key, *both) for key, both in sorted(self._counts.get(worker, {}).items()))

    def save(self) -> None:
        """Make the counts so far durable."""
        changed, self._changed = sorted(self._changed), set()
        self._store.save_traffic(
            (worker, Traffic(number, kind, *self._counts[worker][number, kind]))
            for worker, number, kind in changed
        )
