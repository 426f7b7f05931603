"""Every metric of both services, as the code declares them."""

from dataclasses import dataclass
from typing import Any

from coordinator.hosting.run_metrics import ServerMetrics
from coordinator.metrics import Metrics as CoordinatorMetrics
from worker.metrics import Metrics as WorkerMetrics

_ENDINGS = {"counter": ("_total",), "info": ("_info",), "histogram": ("_bucket", "_sum", "_count")}
# From the client library: `process_*` and the start times of counters.
PROCESS = frozenset(
    f"process_{name}"
    for name in (
        "cpu_seconds_total",
        "max_fds",
        "open_fds",
        "resident_memory_bytes",
        "start_time_seconds",
        "virtual_memory_bytes",
    )
)


@dataclass(frozen=True)
class Declared:
    """A metric family."""

    name: str
    type: str
    labels: tuple[str, ...]

    @property
    def series(self) -> tuple[str, ...]:
        """Names that Prometheus knows it by."""
        if self.type == "histogram":
            return tuple(f"{self.name}{ending}" for ending in _ENDINGS["histogram"])
        return (self.name,)


def declared(*services: type[Any]) -> dict[str, Declared]:
    """Families by name, of the given services' metrics, or of all."""
    found = {}
    for service in services or (CoordinatorMetrics, ServerMetrics, WorkerMetrics):
        # Public only as text; a family with labels and no values yet has none.
        for collector in service().registry._collector_to_names:
            if (kind := getattr(collector, "_type", None)) is None:
                continue
            name = collector._name + ("_total" if kind == "counter" else "_info" if kind == "info" else "")
            labels = ("version",) if name.endswith("_build_info") else tuple(collector._labelnames)
            labels = ("run_id",) if name == "fedpft_run_info" else labels
            found[name] = Declared(name, kind, labels)
    return found
