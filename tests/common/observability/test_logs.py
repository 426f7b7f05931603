"""Log lines for people and for machines."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.observability import logs
from common.observability.logs import (
    LogFormat,
    enter_subject,
    keep_lines_of,
    log_about,
    set_up_logging,
    subject_of,
)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """A stream to log to; the process's loggers are put back afterwards."""
    monkeypatch.setattr(logs, "_process", logs.Subject(logs.About()))
    root = logging.getLogger()
    before = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in ("coordinator", "worker", "common", "cli")}
    yield io.StringIO()
    root.handlers[:], root.level = before[0], before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_our_lines_name_the_service_and_libraries_are_quiet(stream: io.StringIO) -> None:
    set_up_logging("worker", stream, worker="alice", form=LogFormat.HUMAN)
    logging.getLogger("worker.loop").info("round %d", 3)
    logging.getLogger("worker.loop").debug("not shown")
    logging.getLogger("some.library").info("not shown")
    logging.getLogger("some.library").warning("shown")
    first, second = stream.getvalue().splitlines()
    assert first.endswith("worker[alice] INFO    round 3")
    assert second.endswith("WARNING shown")


def test_a_terminal_gets_lines_for_people_with_run_and_round() -> None:
    terminal = Terminal()
    set_up_logging("worker", terminal, worker="alice")
    log_about(run="3f2a9c81b7aa")
    logging.getLogger("worker").info("joined")
    log_about(round=2)
    logging.getLogger("worker").info("training")
    first, second = terminal.getvalue().splitlines()
    assert first.endswith("worker[alice] 3f2a9c INFO    joined")
    assert second.endswith("worker[alice] 3f2a9c/2 INFO    training")


def test_elsewhere_every_line_is_json_with_run_round_and_worker(stream: io.StringIO) -> None:
    set_up_logging("worker", stream, worker="alice")
    logging.getLogger("worker").info("starting")
    log_about(run="r1", round=2)
    logging.getLogger("worker.loop").warning('with "quotes"\nand two lines → %d', 3)
    first, second = lines(stream)
    assert first["run"] == "" and first["round"] is None and first["worker"] == "alice"
    assert second | {"time": ""} == {
        "time": "",
        "level": "warning",
        "service": "worker",
        "run": "r1",
        "round": 2,
        "worker": "alice",
        "logger": "worker.loop",
        "message": 'with "quotes"\nand two lines → 3',
    }
    assert second["time"].endswith("Z") and len(second["time"]) == len("2026-01-01T00:00:00.000Z")


def test_a_line_about_another_worker_or_round_says_so(stream: io.StringIO) -> None:
    set_up_logging("coordinator", stream)
    log_about(run="r1", round=2)
    about = {"event": "update_refused", "round": 1, "worker": "bob"}
    logging.getLogger("coordinator.storage.event_log").info("late", extra=about)
    (line,) = lines(stream)
    assert about.items() <= line.items()


def test_a_traceback_stays_on_its_line(stream: io.StringIO) -> None:
    set_up_logging("coordinator", stream)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("coordinator").exception("failed")
    (line,) = lines(stream)
    assert line["exception"].endswith("ValueError: broken")


def test_verbose_shows_our_details_only(stream: io.StringIO) -> None:
    set_up_logging("coordinator", stream, verbose=True)
    logging.getLogger("coordinator.storage.store").debug("shown")
    logging.getLogger("grpc").debug("not shown")
    assert [line["message"] for line in lines(stream)] == ["shown"]


def test_setting_up_twice_writes_every_line_once(stream: io.StringIO) -> None:
    set_up_logging("coordinator", stream)
    set_up_logging("coordinator", stream)
    logging.getLogger("coordinator").info("once")
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.asyncio
async def test_lines_of_one_run_of_several_are_kept_by_themselves(
    stream: io.StringIO, tmp_path: Path
) -> None:
    set_up_logging("coordinator", stream, form=LogFormat.JSON)
    subjects = {run: subject_of(run) for run in ("a", "b")}
    endings = [keep_lines_of(subject, tmp_path / run) for run, subject in subjects.items()]

    async def work(run: str) -> None:
        enter_subject(subjects[run])
        log_about(round=ord(run))
        await asyncio.sleep(0)
        await asyncio.to_thread(logging.getLogger("coordinator").info, "in a thread of %s", run)
        await asyncio.create_task(later(run))

    async def later(run: str) -> None:
        logging.getLogger("coordinator").warning("in a task of %s", run)

    await asyncio.gather(*map(asyncio.create_task, map(work, subjects)))
    logging.getLogger("coordinator").info("of the process")
    for end in endings:
        end()
    await asyncio.create_task(work("a"))
    for run in subjects:
        found = [json.loads(line) for line in (tmp_path / run).read_text().splitlines()]
        assert [line["message"] for line in found] == [f"in a thread of {run}", f"in a task of {run}"]
        assert {(line["run"], line["round"]) for line in found} == {(run, ord(run))}
    assert [line["run"] for line in lines(stream) if line["message"] == "of the process"] == [""]
