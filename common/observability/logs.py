"""Log lines: for people on a terminal, JSON elsewhere; each with the run, the round and the worker."""

import json
import logging
import sys
import time
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TextIO


class LogFormat(StrEnum):
    """How a log line looks."""

    HUMAN = "human"
    JSON = "json"


@dataclass(frozen=True)
class About:
    """What every line of a process is about; a process serves one run. `worker` is a worker's own name."""

    service: str = ""
    run: str = ""
    round: int | None = None
    worker: str = ""
    trace: str = ""


# As logging itself, one for the process: lines come from any thread.
_about = About()
_form = LogFormat.HUMAN


def as_json() -> bool:
    """Whether this process's lines are JSON."""
    return _form is LogFormat.JSON


def log_about(*, run: str | None = None, round: int | None = None, trace: str | None = None) -> None:
    """From now on the lines are about this run, round or trace; what is not given stays."""
    global _about
    _about = replace(
        _about,
        run=_about.run if run is None else run,
        round=_about.round if round is None else round,
        trace=_about.trace if trace is None else trace,
    )


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
    global _about, _form
    _about = About(service, worker=worker)
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
        who = f"{_about.service}[{_about.worker}]" if _about.worker else _about.service
        where = f" {_about.run[:6]}" if _about.run else ""
        if where and _about.round is not None:
            where += f"/{_about.round}"
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
        line: dict[str, Any] = {
            "time": f"{seconds}.{record.msecs:03.0f}Z",
            "level": record.levelname.lower(),
            "service": _about.service,
            "run": _about.run,
            "round": getattr(record, "round", _about.round),
            # A coordinator's line may concern a worker.
            "worker": getattr(record, "worker", "") or _about.worker,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (event := getattr(record, "event", None)) is not None:
            line["event"] = event
        if _about.trace:
            line["trace_id"] = _about.trace
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # An ASCII terminal would make of the rest what is no JSON.
        return json.dumps(line, ensure_ascii=not self._unicode)
