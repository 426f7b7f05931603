"""The worker's Prometheus metrics."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from common.observability import tracing
from common.records import Activity, Progress


class Metrics:
    """One registry per process, so that several services can live in one process."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self._build = Info("fedpft_worker_build", "Version of the software", registry=r)
        self._build.info({"version": version("fedpft")})
        self.contact = Gauge(
            "fedpft_worker_last_contact_timestamp_seconds",
            "Unix time of the coordinator's last answer to a heartbeat; 0 before the first",
            registry=r,
        )
        self.absent_since = Gauge(
            "fedpft_worker_coordinator_absent_timestamp_seconds",
            "Unix time since which the coordinator of a worker that stays has not answered; 0 while it does",
            registry=r,
        )
        self.runs = Counter(
            "fedpft_worker_runs",
            "Runs of this process: finished, ended before that, declined",
            ["result"],
            registry=r,
        )
        self.round = Gauge(
            "fedpft_worker_round",
            "Round it works for, or last worked for; 0 before its first task",
            registry=r,
        )
        self._activity = Gauge(
            "fedpft_worker_activity",
            "1 for what the worker does now, 0 for the rest",
            ["activity"],
            registry=r,
        )
        self.loss = Gauge(
            "fedpft_worker_training_loss_nats", "Mean loss of the present training; 0 without one", registry=r
        )
        self.epsilon = Gauge(
            "fedpft_worker_epsilon_spent",
            "Epsilon that the data have paid for differential privacy, in all runs; 0 without it",
            registry=r,
        )
        self.steps = Counter("fedpft_worker_steps", "Optimiser steps done", registry=r)
        self.seconds = Histogram(
            "fedpft_worker_task_seconds",
            "Time spent on the parts of a training task",
            ["part"],
            buckets=(0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 7200, 21600, 86400),
            registry=r,
        )
        self.updates = Counter(
            "fedpft_worker_updates",
            "Updates sent: accepted, duplicate, refused",
            ["result"],
            registry=r,
        )
        self.transferred = Counter(
            "fedpft_worker_transfer_bytes",
            "Bytes of gRPC messages, by content and direction (down: to this worker)",
            ["kind", "direction"],
            registry=r,
        )
        self.reconnects = Counter(
            "fedpft_worker_reconnects",
            "Calls made again after an error that may pass",
            registry=r,
        )
        for activity in Activity:
            self._activity.labels(activity).set(activity is Activity.IDLE)
        for result in ("accepted", "duplicate", "refused"):
            self.updates.labels(result)
        for result in ("finished", "ended", "declined"):
            self.runs.labels(result)
        for part in ("download", "train", "upload", "score"):
            self.seconds.labels(part)

    def transferred_bytes(self, direction: str) -> int:
        """Bytes of messages so far, "up" or "down"."""
        samples = (s for metric in self.transferred.collect() for s in metric.samples)
        return int(
            sum(s.value for s in samples if s.name.endswith("_total") and s.labels["direction"] == direction)
        )

    def progressed(self, progress: Progress) -> None:
        """What the worker does now."""
        self.round.set(progress.round)
        self.loss.set(progress.loss)
        for activity in Activity:
            self._activity.labels(activity).set(activity is progress.activity)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Around a part of a round, which is a span, too."""
        begun = time.monotonic()
        with tracing.span(part):
            yield
        self.seconds.labels(part).observe(time.monotonic() - begun)
