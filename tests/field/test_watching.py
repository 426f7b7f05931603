"""What people watch tells it as it is: levels, the last line, runs whose process died, terminals."""

import ast
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config.service import ServerSection
from common.records import Phase
from common.storage.files import holder, locked
from coordinator.campaign.liveness import ENDPOINT_FILE, resting_status, tell_death
from coordinator.campaign.status import open_run
from coordinator.storage.event_levels import LEVELS, level_of
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store
from tests.conftest import write_table
from tests.integration.federation import ROOT, Federation, federation
from tests.waiting import within

# --- events ---


def recorded() -> Iterator[str]:
    """The kind of every event that is recorded anywhere."""
    for package in ("cli", "common", "coordinator", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                    continue
                if node.func.attr == "record" and "events" in ast.unparse(node.func).lower().replace(
                    "log", "s"
                ):
                    assert isinstance(node.args[0], ast.Constant), f"{path}: {ast.unparse(node)}"
                    yield str(node.args[0].value)


def test_every_kind_of_event_has_a_level() -> None:
    kinds = set(recorded())
    assert len(kinds) > 20 and "run_rewound" in kinds
    assert kinds <= set(LEVELS)


def test_every_kind_of_event_is_documented() -> None:
    told = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert not [kind for kind in set(recorded()) if f"| `{kind}` |" not in told]


def test_what_went_wrong_is_at_least_a_warning() -> None:
    bad = re.compile("lost|refused|short|damaged|failed|crashed|set_aside|cannot|given_up|contested")
    assert {kind for kind, level in LEVELS.items() if bad.search(kind) and level < logging.WARNING} == set()
    assert LEVELS["run_failed"] == LEVELS["run_crashed"] == logging.ERROR
    assert level_of("of another version") == logging.WARNING


@pytest.mark.parametrize(("kind", "level"), [("worker_lost", "WARNING"), ("run_failed", "ERROR")])
def test_the_log_has_the_events_level(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, level: str
) -> None:
    store = Store(tmp_path / "run")
    EventLog(store).record(kind, "what happened", 2, "a")
    assert [record.levelname for record in caplog.records] == [level]
    store.close()


# --- the last line ---


def last_line(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        timeout=100,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr.decode().strip().splitlines()[-1]


@pytest.mark.parametrize("form", ["json", "human"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("coordinator", "--config", "missing.toml"), "missing.toml: no such file"),
        (("worker", "--coordinator", "h:0", "--data", "x.csv"), "port 0"),
        (
            ("worker", "--coordinator", "127.0.0.1:9", "--data", "{data}", "--join-timeout", "0"),
            "nothing listens",
        ),
    ],
)
def test_the_last_line_is_like_the_others(
    tmp_path: Path, form: str, arguments: tuple[str, ...], says: str
) -> None:
    data = str(write_table(tmp_path / "private.csv", 4))
    given = [a.format(data=data) for a in arguments]
    if given[0] == "worker":
        given += ["--name", "w", "--folder", str(tmp_path / "w")]
    line = last_line(*given, "--log", form)
    if form == "human":
        assert line.startswith("error: ") and says in line
        return
    found = json.loads(line)
    assert found["level"] == "error" and says in found["message"]
    assert found["service"] == given[0]


def test_a_mistake_in_the_program_is_one_line_of_the_log(tmp_path: Path) -> None:
    script = """
from common.observability.console import run_async
from common.observability.logs import LogFormat, set_up_logging
set_up_logging("worker", form=LogFormat.JSON)
async def main():
    raise KeyError("a bug")
import typer
app = typer.Typer()
app.command()(lambda: run_async(main()))
app()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    found = json.loads(line)
    assert found["level"] == "critical" and "a bug" in found["exception"]


# --- a run whose process died ---


@pytest.fixture
def run(tmp_path: Path, model_folder: Path) -> Path:
    """A run's directory without a coordinator."""
    from common.config.file import load_config
    from coordinator.context import identity

    config = load_config(Federation(tmp_path, model_folder).write_config())
    store = Store(config.run.directory)
    store.open_run("3f2a9c81b7aa", identity(config))
    EventLog(store).record("phase_entered", "phase: training", 1)
    store.close()
    return config.run.directory


def status_of(run: Path) -> Any:
    store, config = open_run(run)
    try:
        return resting_status(store, config)
    finally:
        store.close()


def test_a_run_that_was_stopped_in_order_is_stopped(run: Path) -> None:
    assert status_of(run).phase is Phase.STOPPED
    assert tell_death(run) is None


def test_a_run_whose_process_left_its_endpoint_behind_died(run: Path) -> None:
    (run / ENDPOINT_FILE).write_text('{"address": "127.0.0.1:7070", "pid": 1}')
    os.utime(run / ENDPOINT_FILE, (1.79e9, 1.79e9))
    found = status_of(run)
    assert found.phase is Phase.DIED and found.phase.over
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(1.79e9))
    assert found.waiting_for == (
        f"a start: its process died at {when}, without an orderly stop; the same command goes on"
    )


def test_a_run_that_is_at_work_is_neither(run: Path) -> None:
    (run / ENDPOINT_FILE).write_text('{"address": "127.0.0.1:7070", "pid": 1}')
    with locked(run, "a coordinator"):
        found = status_of(run)
        assert holder(run) == f"a coordinator, process {os.getpid()}"
    assert found.phase is Phase.TRAINING
    assert "which is at work; `fedpft status --coordinator 127.0.0.1:7070` tells more" in found.waiting_for
    assert holder(run) is None


def test_who_looks_does_not_hold_the_run(run: Path) -> None:
    with locked(run, "a coordinator"):
        pass
    assert holder(run) is None
    with locked(run, "a coordinator"):
        assert holder(run) is not None


def test_a_run_that_was_killed_says_so_until_and_after_it_goes_on(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, rounds__workers=1, rounds__minimum=1) as running:
        running.start_coordinator()
        for _ in within(60, "it waits for workers"):
            # The log has it before the store.
            if "phase: waiting" in running.log("coordinator"):
                live = status_of(running.run)
                if live.phase is Phase.WAITING:
                    break
        assert live.phase is Phase.WAITING and "which is at work" in live.waiting_for
        process = running.processes.pop("coordinator")
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed = time.time()
        command = [sys.executable, "-m", "cli"]
        for arguments in (["status", "--run", str(running.run)], ["report", str(running.run)]):
            shown = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True)
            assert shown.returncode == 0, shown.stderr
            page = (running.run / "report" / "report.html").read_text() if arguments[0] == "report" else ""
            assert "its process died at" in " ".join((shown.stdout + page).split())
        when = re.search(r"died at (.*) UTC", status_of(running.run).waiting_for)
        assert (
            when
            and abs(time.mktime(time.strptime(when[1], "%Y-%m-%d %H:%M:%S")) - time.timezone - killed) < 5
        )
        running.start_coordinator()
        # The address that the dead one left is there at once.
        for _ in within(60, "it serves again"):
            if running.log("coordinator").count("phase: waiting") == 2:
                break
        crashed = [json.loads(x) for x in running.log("coordinator").splitlines() if "run_crashed" in x]
        assert [line["level"] for line in crashed] == ["error"]
        process = running.processes.pop("coordinator")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert status_of(running.run).phase is Phase.STOPPED


# --- terminals ---


ASCII = {
    "PYTHONIOENCODING": "ascii",
    "PYTHONUTF8": "0",
    "LANG": "C",
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
}


def in_ascii(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **ASCII, "COLUMNS": "120"},
        capture_output=True,
        timeout=100,
    )
    assert b"Traceback" not in done.stderr and b"Error" not in done.stderr, done.stderr.decode()
    return done.stdout.decode("ascii")


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("demo",),
        ("coordinator",),
        ("worker",),
        ("status",),
        ("certs", "invite"),
        ("experiment",),
        ("split",),
        ("build",),
    ],
    ids=" ".join,
)
def test_help_is_shown_on_a_terminal_that_is_not_utf_8(command: tuple[str, ...]) -> None:
    shown = in_ascii("cli", *command, "--help")
    assert "Usage" in shown and "--help" in shown


def test_tables_status_and_reports_are_shown_there(run: Path, tmp_path: Path) -> None:
    store = Store(run)
    store.remember_worker("clinic-a", 10, "0")
    EventLog(store).record("aligned", "layer-level alignment: hidden-state error 0.5 → 0.1", 0)
    store.close()
    assert "sst2" in in_ascii("cli", "datasets")
    assert "clinic-a" in in_ascii("cli", "status", "--run", str(run))
    assert "Nothing has been scored" in in_ascii("cli", "report", str(run))
    page = (run / "report" / "report.html").read_text(encoding="utf-8")
    assert "0 of 2 rounds are done; the run is stopped and can go on" in page


def test_what_is_logged_there_is_json_all_the_same(tmp_path: Path) -> None:
    line = last_line(
        "coordinator",
        "--config",
        str(tmp_path / "lä→uft.toml"),
        **ASCII,
    )
    assert "no such file" in json.loads(line)["message"]


# --- ports ---


def test_no_two_services_of_a_host_have_one_port() -> None:
    import inspect

    from cli.certs import serve
    from coordinator.owner.commands import status

    defaults = ServerSection()
    ports = [str(address).rpartition(":")[2] for address in (defaults.listen, defaults.metrics)]
    ports.append(str(inspect.signature(serve).parameters["bind"].default).rpartition(":")[2])
    files = (
        "deploy/compose/run.toml",
        "deploy/systemd/worker.env",
        "deploy/helm/fedpft/templates/coordinator.yaml",
    )
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in files)
    for key in ("health", "page"):
        ports += set(re.findall(rf'{key} = "[\d.]+:(\d+)"', text))
    ports += re.findall(r"FEDPFT_METRICS=[\d.]+:(\d+)", text)
    assert len(ports) >= 6 and len(set(ports)) == len(ports)
    assert inspect.signature(status).parameters["coordinator"].default.endswith(ports[0])
