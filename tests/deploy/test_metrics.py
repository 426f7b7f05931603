"""The documented metrics are those that the services have; their names pass Prometheus's own lint."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from coordinator.metrics import Metrics as CoordinatorMetrics
from tests.deploy.metrics import declared
from worker.metrics import Metrics as WorkerMetrics

DOCS = Path(__file__).parents[2] / "docs" / "monitoring.md"
ROW = re.compile(r"^\| `(fedpft_\w+)` \| (\w+) \| ?([^|]*)\| \S")


def documented() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels by name, from the table."""
    rows = [match for line in DOCS.read_text().splitlines() if (match := ROW.match(line))]
    assert len({row[1] for row in rows}) == len(rows), "a metric stands twice in the table"
    return {row[1]: (row[2], tuple(re.findall(r"\w+", row[3]))) for row in rows}


def test_the_table_names_every_metric_with_its_type_and_labels() -> None:
    assert documented() == {m.name: (m.type, m.labels) for m in declared().values()}


@pytest.mark.parametrize("service", [CoordinatorMetrics, WorkerMetrics])
def test_names_and_units_pass_the_lint_of_prometheus(service: type[Any]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed; Debian's package prometheus has it")
    metrics = service()
    done = subprocess.run(
        [promtool, "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True
    )
    assert (done.returncode, done.stderr.decode()) == (0, "")
