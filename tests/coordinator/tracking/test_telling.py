"""Runs told to TensorBoard and MLflow, read back: every figure once, whatever was killed meanwhile."""

import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from common.config.file import load_config
from coordinator.campaign.status import open_run
from coordinator.tracking.figures import figures
from experiments.simulation import simulate
from tests.experiments.test_simulation import data
from tests.integration.federation import Federation, children_of, federation

NEEDED = ("tensorboard", "mlflow", "sqlalchemy", "alembic")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"fedpft[tracking] is not installed: no {', '.join(MISSING)}"),
    # MLflow's own, of what SQLAlchemy calls deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

BOTH = ("tensorboard", "mlflow")
# Name, round and value of what a tracker holds; a figure that was told twice is there twice.
Held = Counter[tuple[str, int, float]]


def rounded(value: float) -> float:
    """To what TensorBoard's float32 keeps."""
    return float(f"{value:.5g}")


def in_store(run: Path) -> Held:
    store, config = open_run(run)
    with closing(store):
        return Counter((f.name, f.round, rounded(f.value)) for f in figures(store, config))


def in_tensorboard(run: Path) -> Held:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in (run / "tracking").glob("*/events.out.tfevents.*")}
    held = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    held.Reload()
    names = held.Tags()["scalars"]
    return Counter((name, e.step, rounded(e.value)) for name in names for e in held.Scalars(name))


def in_mlflow(run: Path) -> Held:
    client, found = mlflow_run(run)
    names = found.data.metrics
    return Counter(
        (name, m.step, rounded(m.value))
        for name in names
        for m in client.get_metric_history(found.info.run_id, name)
    )


def mlflow_run(run: Path):  # type: ignore[no-untyped-def]
    """MLflow's client, and the one run that it holds."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run.resolve() / 'tracking' / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "fedpft"]
    (found,) = client.search_runs([experiment.experiment_id])
    return client, found


def track(run: Path, *extra: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "track", str(run), *extra]
    command += [part for which in BOTH for part in ("--to", which)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """The directory of a simulated run of two rounds, which no tracker was told."""
    folder = tmp_path_factory.mktemp("simulated")
    config = load_config(Federation(folder, model_folder).write_config())
    simulate(config, data(folder / "data"), score_every=1, score_before=True)
    return config.run.directory


def test_a_killed_coordinator_leaves_no_figure_out_and_tells_none_twice(
    tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path, model_folder, tracking__to=BOTH) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2):
            running.start_worker(number, address)
        killed = running.processes["coordinator"]
        told = running.run / "tracking" / "mlflow.json"
        # The first round waits for the third worker; what is before it is told.
        for _ in running.until("MLflow is told what there is"):
            if told.exists() and '"fm/accuracy": {"0":' in told.read_text():
                break
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children_of(killed.pid)}
        teller = [pid for pid, command in commands.items() if b"track" in command.split(b"\0")]
        for pid in (killed.pid, *teller):
            os.kill(pid, signal.SIGKILL)
        killed.wait()
        del running.processes["coordinator"]
        # At another port: workers are started anew, too.
        for process in running.processes.values():
            process.send_signal(signal.SIGKILL)
            process.wait()
        running.processes.clear()
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        assert teller
    expected = in_store(running.run)
    assert {("bytes/down", 0), ("bytes/up", 2), ("fm/accuracy", 2), ("training/loss", 1)} <= {
        (name, number) for name, number, _ in expected
    }
    assert in_tensorboard(running.run) == expected
    assert in_mlflow(running.run) == expected
    client, found = mlflow_run(running.run)
    assert found.info.status == "FINISHED"
    assert found.data.params["rounds.count"] == "2"
    names = {file.path for file in client.list_artifacts(found.info.run_id, "report")}
    assert {"report/report.html", "report/report.json", "report/scores.csv"} <= names
    for name in names:
        page = Path(client.download_artifacts(found.info.run_id, name, str(tmp_path))).read_text()
        assert "worker-1" not in page, name


def test_what_a_process_died_over_is_found_at_the_trackers(simulated: Path) -> None:
    first = track(simulated)
    assert first.returncode == 0, first.stderr
    expected = in_store(simulated)
    assert in_tensorboard(simulated) == in_mlflow(simulated) == expected
    # As if it had died between telling and remembering.
    for which in BOTH:
        (simulated / "tracking" / f"{which}.json").unlink()
    again = track(simulated)
    assert again.returncode == 0, again.stderr
    assert in_tensorboard(simulated) == in_mlflow(simulated) == expected


def test_a_tracker_that_is_not_reached_harms_neither_the_run_nor_the_other(
    tmp_path: Path, model_folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody listens at port 9.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = load_config(Federation(tmp_path, model_folder, {"tracking.to": BOTH}).write_config())
    done = simulate(config, data(tmp_path / "data"), score_every=1)
    assert len(done.evaluations) == 3
    assert in_tensorboard(config.run.directory) == in_store(config.run.directory)
    told = capfd.readouterr().err
    assert told.count("mlflow cannot be told of the run, which goes on without") == 1, told
    assert "Traceback" not in told
    # The same, asked for by hand: one line, and where to look.
    late = track(config.run.directory)
    assert late.returncode == 2
    assert "error: not all was told" in late.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert track(config.run.directory).returncode == 0
    assert in_mlflow(config.run.directory) == in_store(config.run.directory)


def test_no_run_is_an_error_in_one_line(tmp_path: Path) -> None:
    done = track(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path} holds no run: there is no run.sqlite in it"]
