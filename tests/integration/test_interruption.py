"""Ctrl-C and SIGTERM on either side, and going on afterwards."""

import json
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.records import Phase
from tests.integration.federation import children_of, federation


def half_written(folder: Path) -> list[Path]:
    """Files that a write under way left outside of the places for partial files."""
    return [p for p in folder.rglob("*.part") if "spool" not in p.parts and "artifacts" not in p.parts]


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 0)]
)
def test_a_signal_ends_both_sides_cleanly_and_the_run_goes_on(
    tmp_path: Path, model_folder: Path, number: signal.Signals, code: int
) -> None:
    with federation(tmp_path, model_folder, training__epochs=20) as running:
        address = running.start_coordinator()["address"]
        for worker in (1, 2, 3):
            running.start_worker(worker, address)
        for _ in running.until("a worker trains"):
            if "round 1 of 2" in running.log("coordinator"):
                break
        for name, process in running.processes.items():
            begun = time.monotonic()
            process.send_signal(number)
            assert process.wait(5) == code, running.log(name)
            assert time.monotonic() - begun < 5
            assert not children_of(process.pid)
            assert "Traceback" not in running.log(name)
        assert not half_written(tmp_path)
        assert not (running.run / "endpoint.json").exists()
        assert running.status().phase is Phase.STOPPED

        running.processes.clear()
        address = running.start_coordinator()["address"]
        for worker in (1, 2, 3):
            running.start_worker(worker, address)
        running.wait()
        assert running.status().phase is Phase.FINISHED


def test_an_idle_worker_outlives_a_coordinator_that_restarts(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, rounds__workers=2, rounds__minimum=2) as running:
        first = running.start_coordinator()
        port = first["address"].rpartition(":")[2]
        running.settings["server.listen"] = f"127.0.0.1:{port}"
        patient = running.start_worker(1, first["address"], "--join-timeout", "15")
        for _ in running.until("worker 1 waits"):
            if "waiting: the run waits until" in running.log("worker-1"):
                break
        coordinator = running.processes.pop("coordinator")
        coordinator.kill()
        coordinator.wait()
        address = running.start_coordinator()["address"]
        running.start_worker(2, address)
        running.wait()
        assert patient.returncode == 0
        assert "joining again" in running.log("worker-1")


@pytest.mark.slow
def test_status_names_the_workers_whose_updates_are_missing(tmp_path: Path, model_folder: Path) -> None:
    settings = {"rounds__workers": 2, "rounds__minimum": 2, "rounds__count": 1, "training__epochs": 5}
    with federation(tmp_path, model_folder, **settings) as running:
        address = running.start_coordinator()["address"]
        # 40 examples against 630: one is done long before the other.
        for worker in (1, 60):
            running.start_worker(worker, address)
        for _ in running.until("worker 1 delivers"):
            if "round 1: update of worker worker-1" in running.log("coordinator"):
                break
        result = CliRunner().invoke(app, ["status", "--coordinator", address, "--json"])
        assert json.loads(result.output)["waiting_for"] == "updates of worker-60"
        running.wait()
