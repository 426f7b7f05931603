"""The pages of a server that holds many runs: their list, and each run's page as it is for one alone."""

import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict
from typing import Any

from common.hosted_runs import RunEntry
from common.run_status import Event, RunStatus
from coordinator.owner.page.server import FILES, Pages, pictured

_RUN = re.compile(r"/run/([0-9a-f]{1,64})(/.*)")
_OWN = {"/": ("runs.html", "text/html"), "/runs.js": ("runs.js", "text/javascript")}


class RunsPage(Pages):
    """`look` gives a run's status, and its events after one; all are called on the event loop."""

    def __init__(
        self,
        listen: str,
        insecure: bool,
        entries: Callable[[], Sequence[RunEntry]],
        look: Callable[[str, int], Awaitable[tuple[RunStatus, list[Event]]]],
    ) -> None:
        """Raises AddressError when it may not or cannot listen there."""
        self._entries, self._look = entries, look
        super().__init__(listen, insecure)

    def _looked_up(self, path: str, after: int) -> Coroutine[Any, Any, dict[str, Any]] | None:
        if path == "/runs.json":
            return self._list()
        found = _RUN.fullmatch(path)
        return self._run(found[1], after) if found and found[2] == "/run.json" else None

    async def _list(self) -> dict[str, Any]:
        return {"runs": [asdict(entry) for entry in self._entries()]}

    async def _run(self, run: str, after: int) -> dict[str, Any]:
        return pictured(*await self._look(run, after))

    def _file(self, path: str) -> tuple[str, str] | None:
        if found := _RUN.fullmatch(path):
            return FILES.get(found[2])
        return _OWN.get(path) or (FILES["/page.css"] if path == "/page.css" else None)
