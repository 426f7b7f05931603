"""Serves the status page from a thread of its own; what it shows is looked up on the event loop."""

import asyncio
import json
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIEnvironment

from common.address import Address, require_loopback
from common.errors import FedPftError
from common.listing import span
from common.observability.http_server import HttpServer
from common.run_status import Event, RunStatus, told_metrics
from coordinator.storage.event_levels import level_of

log = logging.getLogger(__name__)

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
}
# Nothing from elsewhere, nothing inline, no frames.
_HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
_LOCAL = ("localhost", "127.0.0.1", "[::1]")
_LOOK_SECONDS = 10.0
# The page keeps the last ones; a long run has thousands.
_EVENTS = 200


class Pages(ABC):
    """What is read-only and served to browsers. `port` is where it listens."""

    def __init__(self, listen: str, insecure: bool) -> None:
        """Raises AddressError when it may not or cannot listen there."""
        address = Address.parse(listen)
        require_loopback(address, insecure)
        self._loop = asyncio.get_running_loop()
        # A page of another site must not read this one under a name of its own that leads to loopback.
        self._hosts = (*_LOCAL, str(address).rpartition(":")[0]) if address.loopback else None
        self._server = HttpServer(address, self._answer, "the page")
        self.port = self._server.port
        log.info("status page on http://%s/", Address(address.host, self.port))

    def close(self) -> None:
        """Stop serving. Not from the event loop's thread while a request waits for it."""
        self._server.close()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        code, kind, content = self._content(environ)
        start(code, [("Content-Type", f"{kind}; charset=utf-8"), *_HEADERS])
        return [content]

    def _content(self, environ: WSGIEnvironment) -> tuple[str, str, bytes]:
        host = environ.get("HTTP_HOST", "").rpartition(":")[0]
        if self._hosts is not None and host not in self._hosts:
            return "403 Forbidden", "text/plain", b"ask by the address that the page is served on"
        if environ["REQUEST_METHOD"] != "GET":
            return "405 Method Not Allowed", "text/plain", b"there is nothing to change here"
        asked = {name: values[0] for name, values in parse_qs(environ.get("QUERY_STRING", "")).items()}
        path = environ.get("PATH_INFO", "/")
        if (look := self._looked_up(path, asked)) is not None:
            try:
                found = asyncio.run_coroutine_threadsafe(look, self._loop).result(_LOOK_SECONDS)
            except (TimeoutError, RuntimeError):
                return "503 Service Unavailable", "text/plain", b"the coordinator is ending"
            except FedPftError as error:
                return "404 Not Found", "text/plain", str(error).encode()
            return "200 OK", "application/json", json.dumps(found).encode()
        if (file := self._file(path)) is not None:
            name, kind = file
            return "200 OK", kind, files(__package__).joinpath(name).read_bytes()
        return "404 Not Found", "text/plain", b"there is no such page"

    @abstractmethod
    def _looked_up(self, path: str, asked: Mapping[str, str]) -> Coroutine[Any, Any, dict[str, Any]] | None:
        """What is behind a path that changes, and a question to it, looked up on the event loop; None for
        another path."""

    @abstractmethod
    def _file(self, path: str) -> tuple[str, str] | None:
        """Name and type of the file behind a path; None for another path."""


class Page(Pages):
    """Of one run. `status` and `events` are called on the event loop that makes this."""

    def __init__(
        self,
        listen: str,
        insecure: bool,
        status: Callable[[], RunStatus],
        events: Callable[[int], list[Event]],
    ) -> None:
        """Raises AddressError when it may not or cannot listen there."""
        self._status, self._events = status, events
        super().__init__(listen, insecure)

    def _looked_up(self, path: str, asked: Mapping[str, str]) -> Coroutine[Any, Any, dict[str, Any]] | None:
        return self._look(after(asked)) if path == "/run.json" else None

    async def _look(self, after: int) -> dict[str, Any]:
        return pictured(self._status(), self._events(after))

    def _file(self, path: str) -> tuple[str, str] | None:
        return FILES.get(path)


def after(asked: Mapping[str, str]) -> int:
    """The event from which on the page has none."""
    told = asked.get("after", "")
    return int(told) if told.isdecimal() else 0


def pictured(status: RunStatus, events: Iterable[Event]) -> dict[str, Any]:
    """What the page draws: no path, no layer's figures, no number that JSON cannot hold."""
    # Of earlier rounds nobody looks at more than the curves.
    evaluations = (*status.evaluations, *(v.as_evaluation for v in status.at_workers))
    last = max((e.round for e in evaluations), default=0)
    return {
        "run": status.run_id,
        "task": status.task,
        "phase": status.phase,
        "over": status.phase.over,
        "round": status.round,
        "rounds": status.rounds,
        "waiting_for": status.waiting_for,
        "step": status.step,
        "steps": status.steps,
        "phase_left": span(status.phase_seconds_left) if status.phase_seconds_left else "",
        "rounds_left": span(status.run_seconds_left) if status.run_seconds_left else "",
        "evaluations": [
            {
                "round": e.round,
                "model": e.model,
                "accuracy": finite(e.accuracy),
                "loss": finite(e.loss),
                "metrics": {n: finite(v) for n, v in e.metrics.items()} if e.round == last else {},
            }
            for e in evaluations
        ],
        "at_workers": [{"round": v.round, "workers": v.workers} for v in status.at_workers],
        "best": status.best,
        "privacy": status.privacy,
        "declined": [asdict(declined) for declined in status.declined],
        "metrics": told_metrics(evaluations),
        "drift": [{"round": gap.round, "drift": finite(gap.drift)} for gap in status.gaps],
        "parameters": asdict(status.models) if status.models else None,
        "workers": [
            {
                "name": w.worker,
                "examples": w.examples,
                "activity": w.progress.activity,
                "round": w.progress.round,
                "step": w.progress.step,
                "steps": w.progress.steps,
                "loss": finite(w.progress.loss),
                "trouble": w.progress.trouble,
                "down": sum(t.bytes_down for t in w.traffic),
                "up": sum(t.bytes_up for t in w.traffic),
            }
            for w in status.workers
        ],
        "events": [
            {
                "sequence": e.sequence,
                "time": e.time,
                "kind": e.kind,
                "level": logging.getLevelName(level_of(e.kind)).lower(),
                "text": e.text,
            }
            for e in list(events)[-_EVENTS:]
        ],
    }


def finite(number: float) -> float | None:
    """A number that JSON can hold, or None."""
    return number if math.isfinite(number) else None
