"""Log lines: for people on a terminal, JSON elsewhere; each with the run, the round and the worker."""

import json
import logging
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO


class LogFormat(StrEnum):
    """How a log line looks."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True)
class About:
    """What a line is about. `worker` is a worker's own name."""

    service: str = ""
    run: str = ""
    round: int | None = None
    worker: str = ""
    trace: str = ""


class Subject:
    """What the lines of a process are about, or, where it holds several runs, those of one of them."""

    def __init__(self, about: About) -> None:
        self.about = about


# As logging itself, one for the process: lines come from any thread.
_process = Subject(About())
# Of a task on the event loop, and all that it begins, threads that compute for it included.
_entered: ContextVar[Subject] = ContextVar("subject")
_form = LogFormat.HUMAN


def _about() -> About:
    return _entered.get(_process).about


def as_json() -> bool:
    """Whether this process's lines are JSON."""
    return _form is LogFormat.JSON


def log_about(*, run: str | None = None, round: int | None = None, trace: str | None = None) -> None:
    """From now on the lines are about this run, round or trace; what is not given stays."""
    subject = _entered.get(_process)
    about = subject.about
    subject.about = replace(
        about,
        run=about.run if run is None else run,
        round=about.round if round is None else round,
        trace=about.trace if trace is None else trace,
    )


def subject_of(run: str) -> Subject:
    """For the lines of one run of several."""
    return Subject(replace(_process.about, run=run, round=None))


def enter_subject(subject: Subject) -> None:
    """From now on the lines of this task, and of what it begins, are about `subject`."""
    _entered.set(subject)


def keep_lines_of(subject: Subject, path: Path) -> Callable[[], None]:
    """Append the lines about a subject to a file, as JSON; returns what ends that. Raises OSError."""
    handler = _Kept(path, subject)
    logging.getLogger().addHandler(handler)

    def end() -> None:
        logging.getLogger().removeHandler(handler)
        handler.close()

    return end


def set_up_logging(
    service: str,
    stream: TextIO | None = None,
    verbose: bool = False,
    worker: str = "",
    form: LogFormat | None = None,
) -> None:
    """One line per record on standard error; libraries only when they warn.

    Unless `form` says how, lines are for people on a terminal and JSON elsewhere.
    """
    global _form
    _process.about = About(service, worker=worker)
    stream = stream or sys.stderr
    if form is None:
        form = LogFormat.HUMAN if stream.isatty() else LogFormat.JSON
    _form = form
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLine(stream) if form is LogFormat.JSON else _HumanLine())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for ours in ("coordinator", "worker", "common", "cli"):
        logging.getLogger(ours).setLevel(logging.DEBUG if verbose else logging.INFO)


class _HumanLine(logging.Formatter):
    """Time, service, run and round, level, message: `12:00:01 worker[a] 3f2a9c/2 INFO    waiting`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(where)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        about = _about()
        who = f"{about.service}[{about.worker}]" if about.worker else about.service
        where = f" {about.run[:6]}" if about.run else ""
        if where and about.round is not None:
            where += f"/{about.round}"
        record.where = who + where
        return super().format(record)


class _JsonLine(logging.Formatter):
    """An object with time (UTC), level, service, run, round, worker, logger, message.

    Where they apply: event, trace_id, exception.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        encoding = getattr(stream, "encoding", None) or "utf-8"
        self._unicode = encoding.lower().startswith("utf")

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        about = _about()
        line: dict[str, Any] = {
            "time": f"{seconds}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "service": about.service,
            "run": about.run,
            "round": getattr(record, "round", about.round),
            # A coordinator's line may concern a worker.
            "worker": getattr(record, "worker", "") or about.worker,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (event := getattr(record, "event", None)) is not None:
            line["event"] = event
        if about.trace:
            line["trace_id"] = about.trace
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # An ASCII terminal would make of the rest what is no JSON.
        return json.dumps(line, ensure_ascii=not self._unicode)


class _Kept(logging.FileHandler):
    """The lines about one subject."""

    def __init__(self, path: Path, subject: Subject) -> None:
        super().__init__(path, encoding="utf-8")
        self._subject = subject
        assert self.stream is not None
        self.setFormatter(_JsonLine(self.stream))

    def filter(self, record: logging.LogRecord) -> bool:
        return _entered.get(_process) is self._subject

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk says so elsewhere; a line that is lost harms no run."""
