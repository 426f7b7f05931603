"""One page of metrics for all runs of a server: each run's own, with its id as the label `run`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from common.hosted_runs import RunEntry, RunState
from coordinator.metrics import CALL_SECONDS

# Of the process as a whole: told once, without a run.
_OF_THE_PROCESS = ("process_", "fedpft_build", "fedpft_rpc_seconds")


class RunsCollector(Collector):
    """Collects what `registries` gives, by run, when it is asked; from any thread."""

    def __init__(self, registries: Callable[[], Mapping[str, CollectorRegistry]]) -> None:
        self._registries = registries

    def describe(self) -> Iterable[Metric]:
        """Nothing: which families there are depends on the runs."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Families of all runs, each family once."""
        families: dict[str, Metric] = {}
        for run, registry in self._registries().items():
            for family in registry.collect():
                if family.name.startswith(_OF_THE_PROCESS):
                    continue
                known = families.setdefault(
                    family.name, Metric(family.name, family.documentation, family.type, family.unit)
                )
                for sample in family.samples:
                    labels = {"run": run, **sample.labels}
                    known.add_sample(sample.name, labels, sample.value, sample.timestamp, sample.exemplar)
        yield from families.values()


class ServerMetrics:
    """Of a server that holds many runs."""

    def __init__(self, registries: Callable[[], Mapping[str, CollectorRegistry]] = dict) -> None:
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        Info("fedpft_build", "Version of the software", registry=r).info({"version": version("fedpft")})
        self._runs = Gauge("fedpft_runs", "Runs that the server holds, by state", ["state"], registry=r)
        self._calls = Histogram(
            "fedpft_rpc_seconds",
            "Duration of calls by method and gRPC status; WatchTasks lasts as long as a worker listens",
            ["method", "code"],
            buckets=CALL_SECONDS,
            registry=r,
        )
        r.register(RunsCollector(registries))

    def called(self, method: str, code: str, seconds: float) -> None:
        """A call ended."""
        self._calls.labels(method, code).observe(seconds)

    def holds(self, entries: Iterable[RunEntry]) -> None:
        """Which runs there are."""
        states = [entry.state for entry in entries]
        for state in RunState:
            self._runs.labels(state).set(states.count(state))
