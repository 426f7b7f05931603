"""The list of runs as a browser gets it, and each run's page below it."""

import asyncio
import json
import urllib.request
from urllib.error import HTTPError

import pytest

from common.errors import UnknownRun
from common.hosted_runs import RunEntry, RunFacts, RunState
from common.records import Phase
from common.run_status import Event, RunStatus
from coordinator.owner.page.runs import RunsPage

STATUS = RunStatus("ab12", Phase.TRAINING, 1, 3, "", 0, 0, (), (), (), None, "", "/srv/secret")
ENTRY = RunEntry("ab12", "<b>mine</b>", 0, "admin/a", 1.0, RunState.RUNNING, facts=RunFacts("training", 1, 3))


async def look(run: str, after: int) -> tuple[RunStatus, list[Event]]:
    if run != "ab12":
        raise UnknownRun(f"this coordinator does not hold run {run!r}")
    return STATUS, [Event(n, 0.0, "round_opened", f"event {n}") for n in (1, 2, 3) if n > after]


@pytest.mark.asyncio
async def test_the_list_and_each_runs_page_are_served() -> None:
    page = RunsPage("127.0.0.1:0", False, lambda: [ENTRY], look)

    def got(path: str) -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{page.port}{path}", timeout=10) as reply:
                return reply.status, reply.headers["Content-Type"], reply.read().decode()
        except HTTPError as error:
            return error.code, "", error.read().decode()

    async def fetched(path: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(got, path)

    try:
        assert "runs.js" in (await fetched("/"))[2]
        listed = json.loads((await fetched("/runs.json"))[2])["runs"]
        assert [(r["run"], r["label"], r["state"]) for r in listed] == [("ab12", "<b>mine</b>", "running")]
        # A run's page is that of a run alone: it asks for what lies beside it.
        for path in ("/run/ab12/", "/run/ab12/page.js", "/run/ab12/page.css", "/page.css", "/runs.js"):
            assert (await fetched(path))[0] == 200, path
        code, kind, content = await fetched("/run/ab12/run.json?after=2")
        assert (code, kind) == (200, "application/json; charset=utf-8")
        told = json.loads(content)
        assert told["run"] == "ab12" and [e["sequence"] for e in told["events"]] == [3]
        assert "/srv/secret" not in content
        code, _, reason = await fetched("/run/cd/run.json")
        assert code == 404 and "does not hold run 'cd'" in reason
        for path in ("/run/../", "/run/ab12/nothing", "/run.json", "/nothing"):
            assert (await fetched(path))[0] == 404, path
    finally:
        await asyncio.to_thread(page.close)
