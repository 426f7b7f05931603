"""Bytes of gRPC messages to and from each worker, by round and content."""

from collections import Counter

from common.records import Traffic
from coordinator.metrics import Metrics
from coordinator.store import Store


class Meter:
    """Counts in memory; `save` makes the counts durable. Lives on the event loop."""

    def __init__(self, store: Store, metrics: Metrics) -> None:
        self._store, self._metrics = store, metrics
        self.round = 0
        self._down: Counter[tuple[str, int, str]] = Counter()
        self._up: Counter[tuple[str, int, str]] = Counter()
        for worker, counts in store.traffic().items():
            for t in counts:
                self._down[worker, t.round, t.kind] = t.bytes_down
                self._up[worker, t.round, t.kind] = t.bytes_up

    def down(self, worker: str, kind: str, size: int) -> None:
        """Count a message to a worker."""
        self._down[worker, self.round, kind] += size
        self._metrics.transferred.labels(kind, "down").inc(size)

    def up(self, worker: str, kind: str, size: int) -> None:
        """Count a message from a worker."""
        self._up[worker, self.round, kind] += size
        self._metrics.transferred.labels(kind, "up").inc(size)

    def of(self, worker: str) -> tuple[Traffic, ...]:
        """A worker's counts."""
        keys = sorted(key for key in self._down.keys() | self._up.keys() if key[0] == worker)
        return tuple(Traffic(k[1], k[2], self._down[k], self._up[k]) for k in keys)

    def save(self) -> None:
        """Make the counts so far durable."""
        for worker in {key[0] for key in self._down.keys() | self._up.keys()}:
            for traffic in self.of(worker):
                self._store.save_traffic(worker, traffic)
