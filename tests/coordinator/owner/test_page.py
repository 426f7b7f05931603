"""The status page: over HTTP, and as a browser shows it."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPResponse
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from common.errors import AddressError
from common.records import Activity, Phase, Progress, TaskKind
from common.run_status import (
    Evaluation,
    Event,
    GradientGap,
    ModelFacts,
    RunStatus,
    Traffic,
    Validation,
    WorkerStatus,
)
from coordinator.owner.page.server import Page
from coordinator.owner.status_view import show

ACCURACIES = (0.15, 0.72, 0.91, 0.948)


def evaluations() -> tuple[Evaluation, ...]:
    fm = [Evaluation(n, "fm", a, 1.7 - a) for n, a in enumerate(ACCURACIES)]
    return (*fm, *(Evaluation(n, "sub_fm", a - 0.03, 1.75 - a) for n, a in enumerate(ACCURACIES)))


STATUS = RunStatus(
    run_id="3f2a9c81b7aa",
    phase=Phase.TRAINING,
    round=4,
    rounds=5,
    waiting_for="updates of clinic-a, clinic-b",
    step=0,
    steps=0,
    workers=(
        WorkerStatus(
            "clinic-a", Progress(Activity.TRAINING, 4, 12, 30, 0.41), 415, (Traffic(1, "update", 0, 600_000),)
        ),
        WorkerStatus(
            "clinic-b", Progress(Activity.DOWNLOADING, 4), 518, (Traffic(1, "sub_model", 77_000_000, 0),)
        ),
        WorkerStatus("<b>clinic-c</b>", Progress(Activity.LOST, 3), 267),
    ),
    evaluations=evaluations(),
    gaps=(GradientGap(0, 0.8, 1.1, 0.25, ()),),
    models=ModelFacts(22_700_000, 19_200_000, 10_646_784, 7_103_232, 1, 1),
    adapter_sha256="",
    directory="/secret/path",
    phase_seconds_left=40.0,
    run_seconds_left=310.0,
)
EVENTS = [
    Event(n, 1.79e9 + n, "round_opened" if n % 3 else "worker_lost", f"event number {n}")
    for n in range(1, 401)
]


class Served:
    """A page over a status that tests may change."""

    def __init__(self) -> None:
        self.status = STATUS
        self.page = Page("127.0.0.1:0", False, lambda: self.status, lambda after: EVENTS[after:])

    async def get(
        self, path: str, method: str = "GET", host: str | None = None
    ) -> tuple[HTTPResponse, bytes]:
        def call() -> tuple[HTTPResponse, bytes]:
            connection = HTTPConnection("127.0.0.1", self.page.port, timeout=20)
            connection.request(method, path, headers={"Host": host} if host else {})
            reply = connection.getresponse()
            return reply, reply.read()

        return await asyncio.to_thread(call)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    running = Served()
    yield running
    await asyncio.to_thread(running.page.close)


async def test_the_run_is_told_without_paths_and_with_the_newest_events(served: Served) -> None:
    reply, content = await served.get("/run.json")
    found = json.loads(content)
    assert reply.status == 200
    assert found["phase"] == "training" and found["round"] == 4
    assert [w["name"] for w in found["workers"]] == ["clinic-a", "clinic-b", "<b>clinic-c</b>"]
    assert found["workers"][1]["down"] == 77_000_000
    assert [e["sequence"] for e in found["events"]] == list(range(201, 401))
    assert [e["level"] for e in found["events"][:3]] == ["warning", "info", "info"]
    assert "secret" not in content.decode()
    _, content = await served.get("/run.json?after=399")
    assert [e["sequence"] for e in json.loads(content)["events"]] == [400]


async def test_what_json_cannot_hold_is_left_out(served: Served) -> None:
    served.status = RunStatus(**{**vars(STATUS), "evaluations": (Evaluation(0, "fm", 0.5, float("nan")),)})
    _, content = await served.get("/run.json")
    assert json.loads(content)["evaluations"][0]["loss"] is None


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js"])
async def test_pages_load_nothing_from_elsewhere(served: Served, path: str) -> None:
    reply, content = await served.get(path)
    assert reply.status == 200
    assert "default-src 'none'" in str(reply.getheader("Content-Security-Policy"))
    assert reply.getheader("X-Content-Type-Options") == "nosniff"
    text = content.decode().replace("http://www.w3.org/2000/svg", "")
    assert "http://" not in text and "https://" not in text


@pytest.mark.parametrize(
    ("path", "method", "host", "status"),
    [
        ("/nothing", "GET", None, 404),
        ("/../server.py", "GET", None, 404),
        ("/", "POST", None, 405),
        # Another site's name that was led to loopback.
        ("/run.json", "GET", "evil.example:80", 403),
        ("/run.json", "GET", "localhost:80", 200),
    ],
)
async def test_nothing_else_is_answered(
    served: Served, path: str, method: str, host: str | None, status: int
) -> None:
    reply, _ = await served.get(path, method, host)
    assert reply.status == status


async def test_it_is_not_shown_to_other_machines_unasked(served: Served) -> None:
    def page(listen: str, insecure: bool) -> Page:
        return Page(listen, insecure, lambda: STATUS, lambda after: [])

    with pytest.raises(AddressError, match="insecure"):
        page("0.0.0.0:0", False)
    with pytest.raises(AddressError, match="choose another port"):
        page(f"127.0.0.1:{served.page.port}", False)
    shown = page("0.0.0.0:0", True)
    await asyncio.to_thread(shown.close)


# --- in a browser ---


@pytest.fixture
def chromium(tmp_path: Path) -> list[str]:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here")
    # Without a sandbox, as containers have none to offer; the page is our own.
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    return [found, *options, "--virtual-time-budget=5000", "--enable-logging=stderr", "--v=0"]


async def in_browser(command: list[str], *arguments: str) -> tuple[str, str]:
    """What a browser prints, and what it complains of."""

    def browse() -> tuple[str, str]:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=90)
        return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)

    return await asyncio.to_thread(browse)


@pytest.mark.parametrize("task", [TaskKind.TEXT_CLASSIFICATION, TaskKind.CAUSAL_LM])
async def test_a_browser_shows_the_run_and_complains_of_nothing(
    served: Served, chromium: list[str], task: TaskKind, tmp_path: Path
) -> None:
    served.status = RunStatus(**{**vars(STATUS), "task": task})
    picture = tmp_path / "page.png"
    url = f"http://127.0.0.1:{served.page.port}/"
    dom, complaints = await in_browser(chromium, "--dump-dom", url)
    assert complaints == ""
    for shown in ("4 of 5", "clinic-a", "2 of 3", "77.0 MB", "600 kB", "updates of clinic-a, clinic-b"):
        assert shown in dom, shown
    assert ("94.8 %" in dom) is (task is TaskKind.TEXT_CLASSIFICATION)
    # Names are text, never markup.
    assert "&lt;b&gt;clinic-c&lt;/b&gt;" in dom and "<b>clinic-c" not in dom
    # A narrow screen has the figure instead of the bar.
    assert 'data-done="40 %"' in dom
    assert dom.count("<polyline") == 4
    assert dom.count("event number") == 200
    assert "about 40 s left" in dom and "about 5 min to come" in dom
    await in_browser(chromium, f"--screenshot={picture}", "--window-size=1200,1100", url)
    assert picture.read_bytes().startswith(b"\x89PNG")


WORKERS_SCORES = tuple(
    Validation(n, 3, 120, a - 0.05, 1.8 - a, {"macro_f1": a - 0.1}) for n, a in enumerate(ACCURACIES)
)


async def test_a_browser_shows_scores_at_the_workers_beside_the_owners(
    served: Served, chromium: list[str]
) -> None:
    url = f"http://127.0.0.1:{served.page.port}/"
    own = Validation(3, 1, 40, 0.123, 9.0, {}, "clinic-a")
    served.status = replace(STATUS, validations=(*WORKERS_SCORES, own), best=3)
    dom, complaints = await in_browser(chromium, "--dump-dom", url)
    assert complaints == ""
    assert dom.count("<polyline") == 6
    for shown in ("sub-FM, at the workers", "3 workers after round 3", "best: round 3", "0.8480"):
        assert shown in dom, shown
    assert "0.123" not in dom
    # An owner without test data has these alone.
    served.status = replace(STATUS, evaluations=(), validations=WORKERS_SCORES, best=3)
    dom, complaints = await in_browser(chromium, "--dump-dom", url)
    assert complaints == "" and dom.count("<polyline") == 2
    assert "Accuracy at the workers, by round" in dom and "89.8 %" in dom


def test_a_terminal_shows_how_long_it_will_take() -> None:
    console = Console(width=160, record=True, file=StringIO())
    show(replace(STATUS, step=80, steps=200), console)
    text = console.export_text()
    assert "80/200, about 40 s left" in text and "rounds to come: about 5 min" in text
    show(replace(STATUS, phase=Phase.FINISHED), console)
    assert "left" not in console.export_text() and "to come" not in text.splitlines()[0]


def test_a_terminal_shows_them_too() -> None:
    console = Console(width=160, record=True, file=StringIO())
    short = Validation(4, 0, 0, float("nan"), float("nan"))
    own = Validation(3, 1, 40, 0.8125, 0.7, {}, "clinic-a")
    validations = (*WORKERS_SCORES, own, short)
    show(replace(STATUS, evaluations=(), validations=validations, best=3, result=3), console)
    lines = {" ".join(line.split()) for line in console.export_text().splitlines()}
    assert "sub-FM, at the workers 0.1000 0.6700 0.8600 0.8980" in lines
    assert "how many workers 3 3 3 3" in lines and "clinic-a 0.8125" in lines
    assert "best at the workers: round 3; its adapter is the run's result" in lines


async def test_a_run_that_has_just_begun_has_a_page_too(served: Served, chromium: list[str]) -> None:
    empty: dict[str, Any] = {
        "phase": Phase.BUILDING,
        "round": 0,
        "workers": (),
        "evaluations": (),
        "models": None,
        "waiting_for": "",
    }
    served.status = RunStatus(**{**vars(STATUS), **empty})
    dom, complaints = await in_browser(chromium, "--dump-dom", f"http://127.0.0.1:{served.page.port}/")
    assert complaints == ""
    assert "not evaluated yet" in dom
