"""The documented metrics are those that the services have; their names pass Prometheus's own lint."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from common.errors import BadUpdate, LateUpdate, NotSelected, StaleRound, UnknownRound
from common.hosted_runs import RunState
from common.private_task import DpUnit
from common.records import Activity, ArtifactKind, Phase
from common.run_status import METRIC_TITLES, SCORED
from coordinator.federation.authorization import PUBLISHED
from coordinator.federation.rounds import Outcome
from coordinator.hosting.run_metrics import ServerMetrics
from coordinator.metrics import Metrics as CoordinatorMetrics
from coordinator.storage import retention
from coordinator.storage.store import Store
from tests.deploy.metrics import declared
from worker.metrics import Metrics as WorkerMetrics

DOCS = Path(__file__).parents[2] / "docs" / "monitoring.md"
ROW = re.compile(r"^\| `(fedpft_\w+)` \| (\w+) \| ([^|]+) \| ?([^|]*)\| (\S.*) \|$")

# What a name ends with, without `_total`, and how the table calls it. All others count something.
UNITS = {
    "_timestamp_seconds": "Unix time, s",
    "_seconds": "s",
    "_bytes": "bytes",
    "_ratio": "ratio",
    "_nats": "nats",
    "_info": "1",
}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    type: str
    unit: str
    labels: tuple[str, ...]
    meaning: str

    @property
    def quoted(self) -> set[str]:
        """What the meaning has in backticks."""
        return set(re.findall(r"`([^`]+)`", self.meaning))


def documented() -> dict[str, Row]:
    """By name."""
    rows = [match for line in DOCS.read_text().splitlines() if (match := ROW.match(line))]
    assert len({row[1] for row in rows}) == len(rows), "a metric stands twice in the table"
    return {row[1]: Row(row[2], row[3], tuple(re.findall(r"\w+", row[4])), row[5]) for row in rows}


def values(folder: Path) -> dict[tuple[str, str], set[str]]:
    """What a label can be, as the code has it, by metric and label; of those that are of a fixed set."""
    store = Store(folder)
    held = set(retention.sizes(store))
    store.close()
    content = {*PUBLISHED, ArtifactKind.UPDATE, "scores", "control"}
    refused = {error.__name__ for error in (LateUpdate, StaleRound, UnknownRound, NotSelected, BadUpdate)}
    return {
        ("fedpft_phase", "phase"): set(Phase) - {Phase.DIED},
        ("fedpft_workers", "state"): set(Activity),
        ("fedpft_runs", "state"): set(RunState),
        ("fedpft_worker_activity", "activity"): set(Activity),
        ("fedpft_turns_without_update_total", "reason"): set(Outcome),
        ("fedpft_tries_total", "result"): begun(CoordinatorMetrics, "fedpft_tries_total"),
        ("fedpft_updates_total", "result"): begun(CoordinatorMetrics, "fedpft_updates_total") | refused,
        ("fedpft_worker_updates_total", "result"): begun(WorkerMetrics, "fedpft_worker_updates_total"),
        ("fedpft_worker_runs_total", "result"): begun(WorkerMetrics, "fedpft_worker_runs_total"),
        ("fedpft_worker_task_seconds", "part"): begun(WorkerMetrics, "fedpft_worker_task_seconds_count"),
        ("fedpft_transfer_bytes_total", "kind"): content | {"up", "down"},
        ("fedpft_worker_transfer_bytes_total", "direction"): {"up", "down"},
        ("fedpft_disk_bytes", "what"): held,
        ("fedpft_accuracy_ratio", "model"): set(SCORED),
        ("fedpft_evaluation_loss_nats", "model"): set(SCORED),
        ("fedpft_alignment_error_ratio", "when"): {"before", "after"},
        ("fedpft_score_ratio", "model"): set(SCORED) | set(METRIC_TITLES),
        ("fedpft_score_ratio", "metric"): set(SCORED) | set(METRIC_TITLES),
        ("fedpft_validation_score_ratio", "metric"): {"accuracy"} | (set(METRIC_TITLES) - {"spearman"}),
        ("fedpft_validation_submissions_total", "result"): begun(
            CoordinatorMetrics, "fedpft_validation_submissions_total"
        ),
        ("fedpft_correction_divergence_nats", "when"): {"before", "after"},
        ("fedpft_stand_in_perplexity", "model"): {"fm", "sub_fm"},
        ("fedpft_gradient_gap_ratio", "of"): {"gradient", "output", "weight"},
        ("fedpft_privacy_epsilon", "unit"): set(DpUnit) - {DpUnit.NONE},
        ("fedpft_privacy_delta", "unit"): set(DpUnit) - {DpUnit.NONE},
    }


def begun(service: type[Any], series: str) -> set[str]:
    """Values of the one label of a series that is there from the start."""
    families = service().registry.collect()
    found = [sample.labels for family in families for sample in family.samples if sample.name == series]
    assert found
    return {value for labels in found for value in labels.values()}


def test_the_table_names_every_metric_with_its_type_and_labels() -> None:
    told = {name: (row.type, row.labels) for name, row in documented().items()}
    assert told == {m.name: (m.type, m.labels) for m in declared().values()}


def test_the_table_gives_every_metric_the_unit_that_its_name_has() -> None:
    for name, row in documented().items():
        bare = name.removesuffix("_total")
        unit = next((unit for ending, unit in UNITS.items() if bare.endswith(ending)), None)
        if unit is None:
            assert row.unit not in UNITS.values(), f"{name} has no unit in its name"
        else:
            assert row.unit == unit, name


def test_the_table_explains_every_value_that_a_label_can_have(tmp_path: Path) -> None:
    rows = documented()
    for (name, label), known in values(tmp_path).items():
        assert label in rows[name].labels
        assert known <= rows[name].quoted, f"{name} lacks {known - rows[name].quoted}"
        # Names of settings and calls have a dot or a capital; nothing else is quoted that is no value.
        others = {word for word in rows[name].quoted - known if re.fullmatch("[a-z_]+", word)}
        assert not others, f"{name} has no value {others}"


def test_nothing_but_names_of_things_outside_is_a_label_without_a_list(tmp_path: Path) -> None:
    """Workers, layers, versions, runs, gRPC's methods and codes; for phases the row above has the list."""
    listed = {name for name, _ in values(tmp_path)} | {"fedpft_phase_seconds_total"}
    free = {label for name, row in documented().items() if name not in listed for label in row.labels}
    assert free == {"worker", "version", "run_id", "method", "code"}


@pytest.mark.parametrize("service", [CoordinatorMetrics, ServerMetrics, WorkerMetrics])
def test_names_and_units_pass_the_lint_of_prometheus(service: type[Any]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    metrics = service()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
