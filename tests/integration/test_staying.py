"""Workers that stay: run after run, on one port, with real processes."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.records import Phase
from coordinator.campaign.status import open_run
from tests.conftest import write_data
from tests.integration.federation import Federation, federation
from worker.history import History

ALONE = {"rounds__workers": 1, "rounds__minimum": 1, "rounds__count": 1, "alignment__steps": 2}


@contextmanager
def run_at(folder: Path, model: Path, port: int, **settings: Any) -> Iterator[Federation]:
    """A coordinator's run in a folder of its own, on this port (0: a free one)."""
    with federation(folder, model, server__listen=f"127.0.0.1:{port}", **ALONE | settings) as running:
        yield running


def stay(host: Federation, address: str, *extra: str) -> Any:
    return host.start_worker(1, address, "--stay", *extra)


def seen(host: Federation, name: str, text: str) -> None:
    """Wait until a process has printed it."""
    for _ in host.until(f"{name} prints {text!r}"):
        if text in host.log(name):
            return


def examples_of_updates(directory: Path) -> list[int]:
    store, _ = open_run(directory)
    try:
        return [row[0] for row in store.database.rows("SELECT examples FROM updates ORDER BY round")]
    finally:
        store.close()


@pytest.mark.slow
def test_a_worker_whose_hours_are_spent_says_so_and_sits_out(tmp_path: Path, model_folder: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\nhours_a_day = 0.00001\n")
    settings = {"rounds__workers": 2, "rounds__minimum": 1, "rounds__count": 2}
    with run_at(tmp_path / "a", model_folder, 0, **settings) as a:
        address = a.start_coordinator()["address"]
        worker = stay(a, address, "--policy", str(policy))
        a.start_worker(2, address)
        for _ in a.until("the run ends"):
            if a.processes["coordinator"].poll() is not None:
                break
        assert a.status().phase is Phase.FINISHED
        told = "worker-1 cannot go on: the 1e-05 hours of training that a day has are spent"
        assert told in a.log("coordinator")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        (past,) = History(a.folder / "worker-1").all()
        assert (past.rounds, past.outcome) == (1, "finished")


@pytest.mark.slow
def test_one_worker_takes_part_in_run_after_run(tmp_path: Path, model_folder: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[limits]\nrounds = 3\n[task]\nforbidden = ["full"]\n')
    with run_at(tmp_path / "a", model_folder, 0) as a:
        address = a.start_coordinator()["address"]
        port = int(address.rpartition(":")[2])
        worker = stay(a, address, "--policy", str(policy))
        for _ in a.until("run a ends"):
            if a.processes["coordinator"].poll() is not None:
                break
        assert a.status().phase is Phase.FINISHED
        assert examples_of_updates(a.run) == [40]
        seen(a, "worker-1", "waiting for it")

        # Its owner is told why it is declined; new data come meanwhile.
        with run_at(tmp_path / "b", model_folder, port, rounds__count=5, sub_fm__construction="full") as b:
            b.start_coordinator()
            seen(b, "coordinator", "worker worker-1 declined the run")
            (declined,) = b.status().declined
            told = CliRunner().invoke(app, ["status", "--run", str(b.run)])
            write_data(tmp_path / "a" / "worker-1", a.kind, 55, 7)
            b.processes["coordinator"].send_signal(signal.SIGTERM)
            assert b.processes["coordinator"].wait(20) == 0
        assert "the run has 5 rounds, limits.rounds allows 3" in declined.reason
        assert "construction full is among task.forbidden" in declined.reason
        assert "worker worker-1 declined" in " ".join(told.output.split())

        # Killed in the middle, the next one goes on; it is trained on the new data.
        with run_at(
            tmp_path / "c", model_folder, port, rounds__count=3, training__epochs=2, rounds__kept=3
        ) as c:
            c.start_coordinator()
            seen(c, "coordinator", "round 1: 1 updates aggregated")
            c.processes["coordinator"].send_signal(signal.SIGKILL)
            c.processes["coordinator"].wait(20)
            c.start_coordinator()
            for _ in c.until("run c ends"):
                if c.processes["coordinator"].poll() is not None:
                    break
            assert c.status().phase is Phase.FINISHED
            assert set(examples_of_updates(c.run)) == {55}
        seen(a, "worker-1", "55 private examples in")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        log = a.log("worker-1")
        assert "Traceback" not in log
        past = History(a.folder / "worker-1").all()
        assert [entry.outcome.partition(":")[0] for entry in past] == ["finished", "declined", "finished"]
        assert [entry.rounds for entry in past] == [1, 0, 3]
        assert past[0].bytes_down > past[0].bytes_up > 0
        shown = CliRunner().invoke(
            app, ["worker", "history", "--folder", str(a.folder / "worker-1"), "--json"]
        )
        assert [entry["run"] for entry in json.loads(shown.output)] == [entry.run for entry in past]
