"""Whoever asks a process to end gets what they asked for: early, late, twice, and by closing the terminal."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from common.data.encoding import PIECE, encode
from common.data.examples import Examples
from common.data.processors import load_processor
from common.errors import Stopped
from common.records import TaskKind
from common.runtime.stopping import stoppable
from tests.conftest import write_table
from tests.integration.federation import ROOT
from tests.waiting import within

INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
Process = subprocess.Popen[str]

# A worker whose thread computes what cannot be interrupted.
BUSY_WORKER = """
import sys, time, worker.loop
from common.runtime import signals
async def run(self):
    print("busy", flush=True)
    await self._compute.run(time.sleep, 60)
worker.loop.Worker.run = run
signals.ORDERLY_SECONDS = {orderly}
"""
# A coordinator that loads a large model.
BUSY_COORDINATOR = """
import sys, time, coordinator.campaign.loop as loop
from common.runtime import signals
def load(config, store):
    print("busy", flush=True)
    time.sleep(60)
loop.Models = load
signals.ORDERLY_SECONDS = {orderly}
"""
# A worker with much data.
READING_WORKER = """
import sys, time, worker.data
def read(source, name):
    print("busy", flush=True)
    time.sleep(60)
worker.data.PrivateData.read = staticmethod(read)
"""
# An owner who builds a sub-FM ahead: no service.
BUILDING = """
import sys, time, coordinator.modelling.prebuild as prebuild
def build(config, out):
    print("busy", flush=True)
    try:
        {work}
    finally:
        print("cleaned up", flush=True)
prebuild.build_ahead = build
"""
ENROLMENT = """
import asyncio, sys, time, coordinator.federation.enrolment as enrolment
async def serve(*arguments):
    print("busy", flush=True)
    time.sleep(60)
enrolment.serve = serve
"""
START = """
import runpy, sys
from common.runtime.signals import listen
listen(service={service})
{before}
sys.argv = {arguments!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=False)
"""


@pytest.fixture
def started() -> Iterator[list[Process]]:
    """What still runs at the end is killed."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def start(started: list[Process], *command: str, **environment: str) -> Process:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


def busy(
    started: list[Process], before: str, module: str, *arguments: str, service: bool = True, **values: object
) -> Process:
    """Our own program, with something in it that takes its time; waits until it is there."""
    script = START.format(
        service=service,
        before=before.format(**{"orderly": 60, "work": "time.sleep(60)", **values}),
        arguments=[module, *arguments],
        module=module,
    )
    process = start(started, "-c", script)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line == "busy\n":
            time.sleep(0.1)
            return process
    raise AssertionError("".join(lines))


def ended(process: Process, seconds: float = 5.0) -> tuple[int, str]:
    out, _ = process.communicate(timeout=seconds)
    return process.returncode, out


def catches(process: Process, number: int) -> bool:
    """Whether it has a handler, as the kernel sees it."""
    told = Path(f"/proc/{process.pid}/status").read_text()
    mask = next(line.split()[1] for line in told.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def worker_options(tmp_path: Path) -> list[str]:
    data = str(write_table(tmp_path / "private.csv", 4))
    return ["--coordinator", "127.0.0.1:9", "--data", data, "--name", "w", "--folder", str(tmp_path / "w")]


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> str:
    from common.config.file import template

    path = tmp_path / "run.toml"
    settings = {
        "run.directory": str(tmp_path / "run"),
        "model.path": str(model_folder),
        "task.labels": ("animals", "weather"),
        "data.public.path": str(write_table(tmp_path / "public.csv", 8, labelled=False)),
        "data.test.path": str(write_table(tmp_path / "test.csv", 8)),
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
    }
    path.write_text(template(settings))
    return str(path)


# --- at its start ---


@pytest.mark.parametrize(("number", "code"), [(TERM, 0), (INT, 130), (HUP, 129)], ids=str)
@pytest.mark.parametrize("after", [0.0, 1.0], ids=lambda s: f"{s} s")
@pytest.mark.parametrize("module", ["worker", "coordinator"])
def test_a_service_that_has_just_been_started(
    started: list[Process],
    module: str,
    after: float,
    number: int,
    code: int,
    worker_options: list[str],
    config: str,
) -> None:
    arguments = worker_options if module == "worker" else ["--config", config]
    process = start(started, "-m", module, *arguments)
    begun = time.monotonic()
    for _ in within(20, "a handler is there"):
        if catches(process, TERM):
            break
    # Python itself takes about as long to start; what is imported later takes seconds.
    assert time.monotonic() - begun < 2
    time.sleep(after)
    process.send_signal(number)
    found, out = ended(process)
    assert found == code, out
    assert "Traceback" not in out


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("worker", "--help"), 0),
        (("certs", "serve", "--help"), 0),
        (("build", "--help"), 143),
        (("demo",), 143),
    ],
    ids=lambda c: c if isinstance(c, int) else " ".join(c),
)
def test_sigterm_is_success_for_services_alone(
    started: list[Process], command: tuple[str, ...], code: int, tmp_path: Path
) -> None:
    process = start(started, "-m", "cli", *command)
    for _ in within(20, "a handler is there"):
        if catches(process, TERM):
            break
    process.send_signal(TERM)
    assert ended(process)[0] == code


def test_a_worker_that_reads_its_data(started: list[Process], worker_options: list[str]) -> None:
    process = busy(started, READING_WORKER, "worker", *worker_options)
    process.send_signal(TERM)
    assert ended(process)[0] == 0


# --- while a thread computes what cannot be interrupted ---


def working(
    started: list[Process], module: str, worker_options: list[str], config: str, orderly: float = 60
) -> Process:
    if module == "worker":
        return busy(started, BUSY_WORKER, "worker", *worker_options, orderly=orderly)
    return busy(started, BUSY_COORDINATOR, "coordinator", "--config", config, orderly=orderly)


@pytest.mark.parametrize(
    ("module", "first", "second", "code"),
    [("worker", TERM, TERM, 143), ("worker", TERM, INT, 130), ("coordinator", INT, TERM, 143)],
    ids=str,
)
def test_again_is_at_once(
    started: list[Process],
    module: str,
    first: int,
    second: int,
    code: int,
    worker_options: list[str],
    config: str,
) -> None:
    process = working(started, module, worker_options, config)
    process.send_signal(first)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(second)
    begun = time.monotonic()
    found, out = ended(process)
    assert found == code and time.monotonic() - begun < 1
    assert "again to end at once" in out and "Traceback" not in out


@pytest.mark.parametrize(
    ("module", "number", "code"), [("worker", TERM, 0), ("coordinator", INT, 130)], ids=str
)
def test_who_does_not_ask_again_does_not_wait_for_ever(
    started: list[Process], module: str, number: int, code: int, worker_options: list[str], config: str
) -> None:
    process = working(started, module, worker_options, config, orderly=0.5)
    process.send_signal(number)
    found, out = ended(process)
    assert found == code and "cannot be interrupted" in out


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (INT, 130)], ids=str)
def test_a_command_cleans_up_and_ends(
    started: list[Process], number: int, code: int, model_folder: Path, tmp_path: Path
) -> None:
    process = building(started, model_folder, tmp_path, "time.sleep(60)")
    process.send_signal(number)
    found, out = ended(process)
    assert found == code and out == "cleaned up\n"


HOLD = """
def hold():
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""


def building(started: list[Process], model: Path, folder: Path, work: str, before: str = BUILDING) -> Process:
    corpus = str(write_table(folder / "public.csv", 8, labelled=False))
    options = ["--model", str(model), "--corpus", corpus, "--out", str(folder / "built")]
    return busy(started, before, "cli", "build", *options, service=False, work=work)


def test_a_command_in_a_library_ends_when_asked_again(
    started: list[Process], model_folder: Path, tmp_path: Path
) -> None:
    # Whatever is raised in the main thread, the library goes on.
    process = building(started, model_folder, tmp_path, "hold()", before=HOLD + BUILDING)
    process.send_signal(INT)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(INT)
    assert ended(process)[0] == 130


def test_the_enrolment_service_ends_when_asked_again(started: list[Process], tmp_path: Path) -> None:
    from common.trust.authority import Authority

    Authority.create(tmp_path / "certs", "test")
    options = ["certs", "serve", "--san", "localhost", "--authority", str(tmp_path / "certs")]
    process = busy(started, ENROLMENT, "cli", *options)
    for _ in range(2):
        process.send_signal(TERM)
        time.sleep(0.2)
    assert ended(process)[0] == 143


# --- work in pieces ---


def test_tokenising_looks_whether_to_stop(model_folder: Path) -> None:
    texts = ["a cat", "the rain and the snow"] * (2 * PIECE)
    kind = TaskKind.TEXT_CLASSIFICATION
    looks = 0

    def check() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Stopped("stopped")

    processor = load_processor(str(model_folder), kind)
    with pytest.raises(Stopped):
        stoppable(check, encode, processor, Examples("e", texts), kind, 16, None)
    assert looks == 3
    # And outside of a thread that may be stopped nobody asks.
    assert len(encode(processor, Examples("e", texts[:10]), kind, 16, None)) == 10


def test_pieces_are_what_the_whole_was(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from common.data import encoding

    kind = TaskKind.TEXT_CLASSIFICATION
    processor = load_processor(str(model_folder), kind)
    examples = Examples(
        "e", [f"{word} is a cat" for word in ("big", "small", "old", "new", "a")], list("abcde")
    )
    whole = encode(processor, examples, kind, 16, None)
    monkeypatch.setattr(encoding, "PIECE", 2)
    pieces = encode(processor, examples, kind, 16, None)
    assert vars(whole)["rows"] == vars(pieces)["rows"]


# --- who is started by another ---

PARENT = """
import asyncio, sys
from pathlib import Path
from common.runtime.signals import listen, taken
listen(service=False)
from cli.processes import Processes
async def main():
    async with Processes(Path(sys.argv[1])) as processes:
        await processes.start("worker", "worker", *sys.argv[2:])
        print(processes._running["worker"].pid, flush=True)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        with taken(lambda number: loop.call_soon_threadsafe(over.set)):
            await over.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("number", "after"), [(signal.SIGKILL, 0.0), (signal.SIGKILL, 4.0), (HUP, 0.0), (TERM, 0.0)], ids=str
)
def test_a_process_does_not_outlive_who_started_it(
    started: list[Process], number: int, after: float, worker_options: list[str], tmp_path: Path
) -> None:
    process = start(started, "-c", PARENT, str(tmp_path / "logs"), *worker_options)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    time.sleep(after)
    process.send_signal(number)
    for _ in within(8, f"the worker ends; {(tmp_path / 'logs' / 'worker.log').read_text()}"):
        if not child.is_running() or child.status() == psutil.STATUS_ZOMBIE:
            break
