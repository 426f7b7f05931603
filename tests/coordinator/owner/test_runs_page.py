"""The list of runs as a browser gets it, and each run's page below it."""

import asyncio
import json
import math
import urllib.request
from dataclasses import replace
from urllib.error import HTTPError

import pytest

from common.errors import UnknownRun
from common.hosted_runs import RunEntry, RunFacts, RunState
from common.records import Activity, Phase, Progress
from common.run_status import Evaluation, Event, RunStatus, Traffic, WorkerStatus
from coordinator.owner.page.runs import RunsPage
from tests.coordinator.owner.test_page import chromium, in_browser  # noqa: F401 (a fixture)

STATUS = RunStatus("ab12", Phase.TRAINING, 1, 3, "", 0, 0, (), (), (), None, "", "/srv/secret")
ENTRY = RunEntry("ab12", "<b>mine</b>", 0, "admin/a", 1.0, RunState.RUNNING, facts=RunFacts("training", 1, 3))


OTHER = replace(
    STATUS,
    run_id="cd34",
    evaluations=tuple(Evaluation(n, "fm", 0.5 + n / 10, math.nan) for n in (1, 0)),
    workers=(WorkerStatus("a", Progress(Activity.IDLE), 5, (Traffic(1, "update", 7, 11),)),),
)


class Runs:
    """Two runs."""

    def entries(self) -> list[RunEntry]:
        return [ENTRY]

    async def look(self, run: str, after: int) -> tuple[RunStatus, list[Event]]:
        if run not in ("ab12", "cd34"):
            raise UnknownRun(f"this coordinator does not hold run {run!r}")
        events = [Event(n, 0.0, "round_opened", f"event {n}") for n in (1, 2, 3) if n > after]
        return STATUS if run == "ab12" else OTHER, events

    def settings(self, run: str) -> dict[str, object]:
        return {"rounds.count": 3, "adapter.rank": 4 if run == "ab12" else 8}


@pytest.mark.asyncio
async def test_the_list_and_each_runs_page_are_served() -> None:
    page = RunsPage("127.0.0.1:0", False, Runs())

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
        for path in (
            "/run/ab12/",
            "/run/ab12/page.js",
            "/run/ab12/page.css",
            "/run/ab12/chart.js",
            "/page.css",
            "/runs.js",
            "/chart.js",
        ):
            assert (await fetched(path))[0] == 200, path
        code, kind, content = await fetched("/run/ab12/run.json?after=2")
        assert (code, kind) == (200, "application/json; charset=utf-8")
        told = json.loads(content)
        assert told["run"] == "ab12" and [e["sequence"] for e in told["events"]] == [3]
        assert "/srv/secret" not in content
        code, _, reason = await fetched("/run/cd/run.json")
        assert code == 404 and "does not hold run 'cd'" in reason
        told = json.loads((await fetched("/compare.json?runs=ab12,nothing,cd34,ab12"))[2])
        assert [run["run"] for run in told["runs"]] == ["ab12", "cd34"]
        assert told["runs"][1]["scores"] == [
            {"round": 0, "accuracy": 0.5, "loss": None},
            {"round": 1, "accuracy": 0.6, "loss": None},
        ]
        assert (told["runs"][1]["down"], told["runs"][1]["up"]) == (7, 11)
        assert told["settings"] == [{"key": "adapter.rank", "values": ["4", "8"]}]
        assert json.loads((await fetched("/compare.json"))[2]) == {"runs": [], "settings": []}
        for path in ("/run/../", "/run/ab12/nothing", "/run.json", "/nothing"):
            assert (await fetched(path))[0] == 404, path
    finally:
        await asyncio.to_thread(page.close)


@pytest.mark.asyncio
async def test_a_browser_compares_the_runs_that_are_ticked(chromium: list[str]) -> None:  # noqa: F811
    page = RunsPage("127.0.0.1:0", False, Runs())
    try:
        url = f"http://127.0.0.1:{page.port}/"
        dom, complaints = await in_browser(chromium, "--dump-dom", f"{url}#ab12,cd34")
        assert complaints == ""
        assert "Accuracy by round" in dom and "60.00 % after round 1" in dom
        assert "<td>adapter.rank</td><td>4</td><td>8</td>" in dom
        # Only one of them has scores.
        assert dom.count("<polyline") == 1
        assert "&lt;b&gt;mine&lt;/b&gt; (ab12)" in dom and "<b>mine" not in dom
        dom, complaints = await in_browser(chromium, "--dump-dom", url)
        assert complaints == "" and "adapter.rank" not in dom
    finally:
        await asyncio.to_thread(page.close)
