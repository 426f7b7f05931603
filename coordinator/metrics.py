"""The coordinator's Prometheus metrics."""

import math
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from common.errors import BadScores, BadUpdate, LateUpdate, NotSelected, StaleRound, UnknownRound
from common.records import Activity, Phase
from common.run_status import Evaluation, GradientGap, Validation

# Why an update is refused, whoever is right; other errors get their series when they occur.
_REFUSALS = (LateUpdate, StaleRound, UnknownRound, NotSelected, BadUpdate)
# From a test on one machine to a day: a round lasts as long as its slowest worker.
ROUND_SECONDS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
# From a head alone to a dense residual of a large model.
UPDATE_BYTES = tuple(float(4**i) for i in range(6, 17))
# From a heartbeat on loopback to a transfer over a slow line.
CALL_SECONDS = (0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60, 300, 1800)


class Metrics:
    """One registry per process, so that several services can live in one process."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        self._build = Info("fedpft_build", "Version of the software", registry=r)
        self._build.info({"version": version("fedpft")})
        self._run = Info("fedpft_run", "The run that is served", registry=r)
        self._progressed = Gauge(
            "fedpft_progress_timestamp_seconds",
            "Unix time at which the run last moved: a phase, a step of a computation, an update",
            registry=r,
        )
        self._deadline = Gauge(
            "fedpft_round_deadline_seconds", "How long a try at a round may take at most", registry=r
        )
        self.round_seconds = Histogram(
            "fedpft_round_seconds",
            "From looking for a round's workers to its committed adapter",
            buckets=ROUND_SECONDS,
            registry=r,
        )
        self._trained = Histogram(
            "fedpft_update_training_seconds",
            "How long workers trained for the updates that were accepted",
            buckets=ROUND_SECONDS,
            registry=r,
        )
        self._sizes = Histogram(
            "fedpft_update_size_bytes", "Sizes of accepted updates", buckets=UPDATE_BYTES, registry=r
        )
        self._calls = Histogram(
            "fedpft_rpc_seconds",
            "Duration of calls by method and gRPC status; WatchTasks lasts as long as a worker listens",
            ["method", "code"],
            buckets=CALL_SECONDS,
            registry=r,
        )
        self._free = Gauge("fedpft_disk_free_bytes", "Free space where the run's directory lies", registry=r)
        self.round = Gauge(
            "fedpft_round", "The round that this process opened last; 0 before the first", registry=r
        )
        self.rounds = Gauge("fedpft_rounds_planned", "Rounds in all", registry=r)
        self._phase = Gauge(
            "fedpft_phase", "1 for the run's present phase, 0 for the others", ["phase"], registry=r
        )
        self._phase_seconds = Counter(
            "fedpft_phase_seconds", "Time spent in each phase", ["phase"], registry=r
        )
        self._workers = Gauge(
            "fedpft_workers", "Workers that joined this process, by what they do now", ["state"], registry=r
        )
        self.updates = Counter(
            "fedpft_updates",
            "Updates that arrived: accepted, duplicate, or refused for a reason",
            ["result"],
            registry=r,
        )
        self.turns = Counter(
            "fedpft_turns_without_update",
            "Turns of workers in a round or its scoring that came to nothing, by why; one may come back",
            ["reason"],
            registry=r,
        )
        self.joins = Counter("fedpft_joins", "Times that a worker joined, the first and again", registry=r)
        self.tries = Counter("fedpft_tries", "Tries at a round, by how they ended", ["result"], registry=r)
        self._disk = Gauge(
            "fedpft_disk_bytes",
            "Size of the run's directory, by what lies there",
            ["what"],
            registry=r,
        )
        self.collected = Counter(
            "fedpft_collected_bytes",
            "Size of artifacts deleted because nothing needed them any more",
            registry=r,
        )
        self.transferred = Counter(
            "fedpft_transfer_bytes",
            "Bytes of gRPC messages, by content and direction (down: to workers)",
            ["kind", "direction"],
            registry=r,
        )
        self.training_loss = Gauge(
            "fedpft_training_loss_nats",
            "Mean training loss of a worker's last update",
            ["worker"],
            registry=r,
        )
        self._accuracy = Gauge("fedpft_accuracy_ratio", "Share of test examples right", ["model"], registry=r)
        self._loss = Gauge(
            "fedpft_evaluation_loss_nats", "Cross entropy on the test data", ["model"], registry=r
        )
        self._scores = Gauge(
            "fedpft_score_ratio",
            "Further metrics of the task on the test data, over all classes; absent where undefined",
            ["model", "metric"],
            registry=r,
        )
        self._validation = Gauge(
            "fedpft_validation_score_ratio",
            "Accuracy and further metrics of the sub-FM at the workers, all of them together; absent where "
            "undefined",
            ["metric"],
            registry=r,
        )
        self._validation_loss = Gauge(
            "fedpft_validation_loss_nats",
            "Loss of the sub-FM at the workers, all of them together",
            registry=r,
        )
        self._validation_round = Gauge(
            "fedpft_validation_round", "The round of the last scores at the workers", registry=r
        )
        self._validators = Gauge(
            "fedpft_validation_workers",
            "How many workers the last scores at the workers are of",
            registry=r,
        )
        self.secure_workers = Gauge(
            "fedpft_secure_workers",
            "How many workers the last sum of masked updates is of; 0 where there is none",
            registry=r,
        )
        self.epsilon = Gauge(
            "fedpft_privacy_epsilon",
            "Epsilon that the run promises by differential privacy, by whose presence stays in doubt",
            ["unit"],
            registry=r,
        )
        self.epsilon_spent = Gauge(
            "fedpft_privacy_epsilon_spent",
            "Epsilon up to now of a worker that was in all sums with noise; 0 where none is promised",
            registry=r,
        )
        self.delta = Gauge(
            "fedpft_privacy_delta",
            "Delta of the same promise, by whose presence stays in doubt",
            ["unit"],
            registry=r,
        )
        self.best = Gauge(
            "fedpft_best_round", "The round with the best score; 0 where none is known", registry=r
        )
        self.scores = Counter(
            "fedpft_validation_submissions",
            "Scores that arrived from workers: accepted, duplicate, or refused for a reason",
            ["result"],
            registry=r,
        )
        self.alignment_error = Gauge(
            "fedpft_alignment_error_ratio",
            "Squared hidden-state error of the sub-FM, relative to the FM's, around an alignment",
            ["when"],
            registry=r,
        )
        self._divergence = Gauge(
            "fedpft_correction_divergence_nats",
            "KL divergence of the FM's predictions from the correction's teacher, on held-out public data",
            ["when"],
            registry=r,
        )
        self._stand_in = Gauge(
            "fedpft_stand_in_broken",
            "Whether the sub-FM was found to be no stand-in for the FM, before the first round",
            registry=r,
        )
        self._perplexity = Gauge(
            "fedpft_stand_in_perplexity",
            "Of language models: perplexity on public data before the first round",
            ["model"],
            registry=r,
        )
        self._drift = Gauge(
            "fedpft_drift_ratio",
            "1 - cosine * norm ratio between the sub-FM's and the FM's adapter gradients, on public data",
            registry=r,
        )
        self._gap = Gauge(
            "fedpft_gradient_gap_ratio",
            "Relative differences between FM and sub-FM by layer: of gradients, outputs, FFN weights",
            ["layer", "of"],
            registry=r,
        )
        self._current: Phase | None = None
        self._since = 0.0
        # A process that died tells nothing; that it did is told by those who look at what it left.
        for phase in (each for each in Phase if each is not Phase.DIED):
            self._phase.labels(phase).set(0)
            self._phase_seconds.labels(phase)
        for result in ("accepted", "duplicate", *(kind.__name__ for kind in _REFUSALS)):
            self.updates.labels(result)
        for result in ("accepted", "duplicate", BadScores.__name__):
            self.scores.labels(result)
        for result in ("closed", "short"):
            self.tries.labels(result)

    def serves(self, run_id: str, directory: Path, deadline_seconds: float) -> None:
        """Which run, where it is kept, and how long a try at a round may take."""
        self._run.info({"run_id": run_id})
        self._deadline.set(deadline_seconds)
        self._free.set_function(lambda: shutil.disk_usage(directory).free)

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call ended."""
        self._calls.labels(method, code).observe(seconds)

    def progressed(self) -> None:
        """The run moved. May be called from any thread."""
        self._progressed.set_to_current_time()

    def received(self, loss: float, worker: str, seconds: float, size: int) -> None:
        """An update was accepted; loss in nats, size in bytes."""
        self.received_masked(size)
        self.training_loss.labels(worker).set(loss)
        self._trained.observe(seconds)

    def received_masked(self, size: int) -> None:
        """An update was accepted, of which nothing else is known."""
        self.progressed()
        self._sizes.observe(size)

    def entered(self, phase: Phase) -> None:
        """The run enters a phase."""
        self.progressed()
        now = time.monotonic()
        if self._current is not None:
            self._phase.labels(self._current).set(0)
            self._phase_seconds.labels(self._current).inc(now - self._since)
        self._phase.labels(phase).set(1)
        self._current, self._since = phase, now

    def evaluated(self, evaluation: Evaluation) -> None:
        """A model was scored."""
        if not math.isnan(evaluation.accuracy):
            self._accuracy.labels(evaluation.model).set(evaluation.accuracy)
        self._loss.labels(evaluation.model).set(evaluation.loss)
        for name, value in evaluation.told.items():
            if math.isfinite(value):
                self._scores.labels(evaluation.model, name).set(value)

    def validated(self, validation: Validation) -> None:
        """The sub-FM was scored at the workers."""
        self._validation_round.set(validation.round)
        self._validators.set(validation.workers)
        self._validation_loss.set(validation.loss)
        for name, value in {"accuracy": validation.accuracy, **validation.as_evaluation.told}.items():
            if math.isfinite(value):
                self._validation.labels(name).set(value)

    def corrected(self, before: float, after: float) -> None:
        """The FM was corrected; KL divergences from the teacher in nats."""
        self._divergence.labels("before").set(before)
        self._divergence.labels("after").set(after)

    def stood_in(self, broken: bool, perplexities: tuple[float, float] | None) -> None:
        """The sub-FM was judged; perplexities are the FM's and its own."""
        self._stand_in.set(broken)
        for model, value in zip(("fm", "sub_fm"), perplexities or (), strict=False):
            self._perplexity.labels(model).set(value)

    def gap_measured(self, gap: GradientGap) -> None:
        """The gradient gap after a round."""
        self._drift.set(gap.drift)
        for layer in gap.layers:
            for of, value in (
                ("gradient", layer.gradient_difference),
                ("output", layer.output_difference),
                ("weight", layer.weight_difference),
            ):
                self._gap.labels(str(layer.layer), of).set(value)

    def disk_holds(self, sizes: Mapping[str, int]) -> None:
        """Bytes by what lies there."""
        for what, size in sizes.items():
            self._disk.labels(what).set(size)

    def workers_are(self, activities: list[Activity]) -> None:
        """What all workers do now."""
        for activity in Activity:
            self._workers.labels(activity).set(activities.count(activity))
