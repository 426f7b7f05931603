"""The pages of a server that holds many runs: their list, some of them compared, and each run's page as it is
for one alone."""

import asyncio
import re
from abc import abstractmethod
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from common.errors import FedPftError
from common.hosted_runs import RunEntry
from common.run_status import Event, RunStatus
from coordinator.owner.page.server import FILES, Pages, after, finite, pictured

_RUN = re.compile(r"/run/([0-9a-f]{1,64})(/.*)")
_OWN = {
    "/": ("runs.html", "text/html"),
    "/runs.js": ("runs.js", "text/javascript"),
    "/page.css": FILES["/page.css"],
    "/chart.js": FILES["/chart.js"],
}
# In one drawing more cannot be told apart.
MOST_COMPARED = 6


class Source(Protocol):
    """What the pages show; called on the event loop."""

    @abstractmethod
    def entries(self) -> Sequence[RunEntry]:
        """Every run, oldest first."""

    @abstractmethod
    async def look(self, run: str, after: int) -> tuple[RunStatus, list[Event]]:
        """A run's status, and its events after one. Raises UnknownRun, StoreError."""

    @abstractmethod
    def settings(self, run: str) -> Mapping[str, object]:
        """What a run is set to, by dotted key, without paths. Raises UnknownRun, StoreError, ConfigError."""


class RunsPage(Pages):
    """Of all runs of a server."""

    def __init__(self, listen: str, insecure: bool, source: Source) -> None:
        """Raises AddressError when it may not or cannot listen there."""
        self._source = source
        super().__init__(listen, insecure)

    def _looked_up(self, path: str, asked: Mapping[str, str]) -> Coroutine[Any, Any, dict[str, Any]] | None:
        if path == "/runs.json":
            return self._list()
        if path == "/compare.json":
            return self._compared(list(dict.fromkeys(asked.get("runs", "").split(",")))[:MOST_COMPARED])
        found = _RUN.fullmatch(path)
        return self._run(found[1], after(asked)) if found and found[2] == "/run.json" else None

    async def _list(self) -> dict[str, Any]:
        return {"runs": [asdict(entry) for entry in self._source.entries()]}

    async def _run(self, run: str, after: int) -> dict[str, Any]:
        return pictured(*await self._source.look(run, after))

    async def _compared(self, runs: Sequence[str]) -> dict[str, Any]:
        """Scores by round, bytes, and settings in which they differ; of those that have begun."""
        shown = []
        for run in runs:
            try:
                # No event is asked for: there is none after this one.
                status, _ = await self._source.look(run, 2**62)
                settings = await asyncio.to_thread(self._source.settings, run)
            except FedPftError:
                continue
            shown.append((status, settings))
        return {"runs": [_scored(status) for status, _ in shown], "settings": _different(shown)}

    def _file(self, path: str) -> tuple[str, str] | None:
        if found := _RUN.fullmatch(path):
            return FILES.get(found[2])
        return _OWN.get(path)


def _scored(status: RunStatus) -> dict[str, Any]:
    """A run's scores: the FM's on the owner's data; without any, the sub-FM's at the workers."""
    own = [e for e in status.evaluations if e.model == "fm"]
    found = own or [v.as_evaluation for v in status.at_workers]
    traffic = [t for worker in status.workers for t in worker.traffic]
    return {
        "run": status.run_id,
        "task": status.task,
        "rounds": status.rounds,
        "at_workers": not own and bool(found),
        "scores": [
            {"round": e.round, "accuracy": finite(e.accuracy), "loss": finite(e.loss)}
            for e in sorted(found, key=lambda e: e.round)
        ],
        "down": sum(t.bytes_down for t in traffic),
        "up": sum(t.bytes_up for t in traffic),
    }


def _different(shown: Sequence[tuple[RunStatus, Mapping[str, object]]]) -> list[dict[str, Any]]:
    """By key, where not all have the same: each run's value as text."""
    keys = sorted({key for _, settings in shown for key in settings})
    each = {key: [str(settings.get(key, "")) for _, settings in shown] for key in keys}
    return [{"key": key, "values": values} for key, values in each.items() if len(set(values)) > 1]
