"""A worker that stays, as a process beside real services: what it costs, and what it does between runs."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from grpc import StatusCode

from common.address import Address
from common.records import StopTask, TaskKind
from common.transport.rpc import new_server
from coordinator.federation.inbox import Inbox
from coordinator.federation.service import FederationService, serve_federation
from coordinator.federation.sessions import Sessions
from coordinator.storage.declined import DeclinedTable
from coordinator.storage.store import Store
from tests.conftest import LABELS, write_data
from tests.contexts import context
from tests.services import Service
from worker.history import History

TICKS = os.sysconf("SC_CLK_TCK")
# What an idle worker may take of a core, and what ten runs of no training may add to its memory.
IDLE_SHARE = 0.005
GROWTH_BYTES = 200_000
MOST_GROWTH_BYTES = 16_000_000


class Older(FederationService):
    """Of before protocol 7, as far as a worker sees it: it does not know two calls."""

    async def FindRun(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(StatusCode.UNIMPLEMENTED, "Method not found!")
        yield

    async def DeclineRun(self, request: Any, context: Any) -> Any:
        await context.abort(StatusCode.UNIMPLEMENTED, "Method not found!")


class Hub:
    """Runs on one port, one after another."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.address, self.runs = folder, Address("127.0.0.1", 0), 0

    async def open(self, kind: type[FederationService] = FederationService) -> None:
        """Begin the next run."""
        self.runs += 1
        name = f"run-{self.runs}"
        self.store = Store(self.folder / name)
        self.store.open_run(name, "{}")
        run = context(self.store, {"task.labels": LABELS})
        self.sessions = Sessions(1.0)
        self.service = kind(run, self.sessions, Inbox(self.store))
        self.server, self.address = new_server(self.address)
        serve_federation(self.server, self.service)
        await self.server.start()

    async def close(self) -> None:
        self.sessions.close()
        self.service.offers.close()
        await self.server.stop(0.1)
        self.store.close()


class Staying:
    """A worker with --stay, and what the kernel counts of it."""

    def __init__(self, folder: Path, address: Address, *extra: str, stay: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self.folder = folder / "log", folder / "worker"
        self.data = write_data(folder / "data", TaskKind.TEXT_CLASSIFICATION, 20)
        arguments = ["--coordinator", str(address), "--data", str(self.data), "--name", "w"]
        arguments += ["--folder", str(self.folder), "--threads", "1", "--log", "human", *extra]
        arguments += ["--stay"] if stay else []
        self.process = Service("worker", arguments, self.log)

    def cpu(self) -> float:
        """Seconds."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self) -> int:
        """Bytes that are resident."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    async def share(self, seconds: float) -> float:
        """Of a core, from now on."""
        before, begun = self.cpu(), time.monotonic()
        await asyncio.sleep(seconds)
        return (self.cpu() - before) / (time.monotonic() - begun)

    async def until(self, what: Callable[[], bool], seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            await asyncio.sleep(0.02)

    async def printed(self, text: str, times: int = 1) -> None:
        await self.until(lambda: self.log.read_text().count(text) >= times)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
async def hub(tmp_path: Path) -> AsyncIterator[Hub]:
    running = Hub(tmp_path)
    await running.open()
    yield running
    await running.close()


async def run_of_nothing(hub: Hub, worker: Staying) -> None:
    """The run that is open ends as soon as the worker has joined; the next one opens."""
    await worker.until(lambda: hub.sessions.is_present("w"))
    hub.sessions.assign_all(StopTask(True, "the run is finished"))
    await worker.until(lambda: not hub.sessions.is_present("w"))
    await hub.close()
    await hub.open()


async def grown(hub: Hub, worker: Staying, tens: int) -> list[int]:
    """Bytes that ten runs of no training add to the worker's memory, again and again."""
    sizes = []
    for _ in range(tens + 1):
        for _ in range(10):
            await run_of_nothing(hub, worker)
        sizes.append(worker.memory())
    return [after - before for before, after in pairwise(sizes)]


@pytest.mark.slow
async def test_runs_of_no_training_leave_nothing_in_memory(hub: Hub, tmp_path: Path) -> None:
    worker = Staying(tmp_path / "w", hub.address)
    try:
        growth = await grown(hub, worker, tens=3)
        # The C library takes a few megabytes at a time, once; what leaks is taken in all of them.
        assert median(growth) < GROWTH_BYTES, growth
        assert sum(growth) < MOST_GROWTH_BYTES, growth
        past = History(worker.folder).all()[:40]
        assert [(entry.run, entry.outcome) for entry in past] == [
            (f"run-{number}", "finished") for number in range(1, 41)
        ]
    finally:
        worker.end()


@pytest.mark.slow
async def test_an_idle_worker_costs_next_to_nothing(hub: Hub, tmp_path: Path) -> None:
    """While it waits for a run, and while its coordinator is away; then a signal ends it."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\nrounds = 1\n")
    worker = Staying(tmp_path / "w", hub.address, "--policy", str(policy))
    try:
        await worker.printed("waiting for another run")
        await asyncio.sleep(2)
        assert await worker.share(10) < IDLE_SHARE
        await hub.close()
        await worker.printed("waiting for it")
        await asyncio.sleep(3)
        assert await worker.share(10) < IDLE_SHARE
        assert worker.log.read_text().count("127.0.0.1") <= 2
        await hub.open()
        await worker.printed("is back after")
        await hub.close()
        await worker.printed("waiting for it", 2)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(5) == 0
        await hub.open()
    finally:
        worker.end()


@pytest.mark.slow
async def test_what_has_changed_decides_anew(hub: Hub, tmp_path: Path) -> None:
    """A run that was declined is offered again under another policy; what is broken declines nothing."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\nrounds = 1\n")
    worker = Staying(tmp_path / "w", hub.address, "--policy", str(policy))

    def declined() -> list[str]:
        return [answer.reason for answer in DeclinedTable(hub.store.database).all()]

    try:
        await worker.until(lambda: bool(declined()))
        assert declined() == ["this worker's policy: the run has 5 rounds, limits.rounds allows 1"]
        policy.write_text("[limits]\nrounds = none\n")
        await worker.printed("not valid TOML")
        await worker.printed("waiting until it is mended")
        await asyncio.sleep(1)
        assert len(declined()) == 1 and not hub.sessions.is_present("w")
        policy.write_text("[limits]\nrounds = 5\n")
        await worker.until(lambda: hub.sessions.is_present("w"))
        assert not declined()
        # Data that the run has no label for are the worker's matter: their text stays here.
        worker.data.write_text(worker.data.read_text() + "x,a secret label\n")
        hub.sessions.assign_all(StopTask(False, "the run was stopped"))
        await worker.until(lambda: not hub.sessions.is_present("w"))
        await hub.close()
        await hub.open()
        await worker.until(lambda: bool(declined()))
        assert declined() == ["it cannot take part: DataError"]
        assert "a secret label" in worker.log.read_text()
        kinds = [event.kind for event in hub.store.events.all(0)]
        assert "worker_declined" in kinds and not any("secret" in e.text for e in hub.store.events.all(0))
        outcomes = [entry.outcome.partition(":")[0] for entry in History(worker.folder).all()]
        assert outcomes[:2] == ["declined", "the run ended early"]
    finally:
        worker.end()


@pytest.mark.slow
async def test_an_older_coordinator_is_joined_and_its_finished_run_keeps_nobody_busy(
    hub: Hub, tmp_path: Path
) -> None:
    await hub.close()
    await hub.open(Older)
    hub.sessions.assign_all(StopTask(True, "the run is finished"))
    worker = Staying(tmp_path / "w", hub.address)
    try:
        await worker.until(lambda: len(History(worker.folder).all()) >= 2)
        assert {entry.outcome for entry in History(worker.folder).all()} <= {"finished", "under way"}
        await asyncio.sleep(6)
        # After 1, 2, 4, 8 seconds, up to half of each taken off at random.
        assert len(History(worker.folder).all()) <= 7
        assert await worker.share(3) < 0.05
    finally:
        worker.end()


@pytest.mark.slow
@pytest.mark.parametrize("stay", [False, True])
async def test_in_quiet_hours_no_run_is_joined(hub: Hub, tmp_path: Path, stay: bool) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('[hours]\nquiet = ["00:00-24:00"]\n')
    worker = Staying(tmp_path / "w", hub.address, "--policy", str(policy), stay=stay)
    try:
        if stay:
            await worker.printed("no run is joined: quiet hours until")
            await asyncio.sleep(1)
        else:
            assert await asyncio.to_thread(worker.process.wait, 60) == 2
            assert "quiet hours until" in worker.log.read_text().splitlines()[-1]
        assert not hub.sessions.is_present("w") and not DeclinedTable(hub.store.database).all()
    finally:
        worker.end()


@pytest.mark.slow
async def test_without_staying_a_run_against_the_policy_ends_the_worker(hub: Hub, tmp_path: Path) -> None:
    """With one line, and the owner of the run hears of it, too."""
    policy = tmp_path / "policy.toml"
    policy.write_text("[limits]\nrounds = 1\n")
    worker = Staying(tmp_path / "w", hub.address, "--policy", str(policy), stay=False)
    try:
        end = time.monotonic() + 60
        while worker.process.poll() is None and time.monotonic() < end:
            await asyncio.sleep(0.02)
        assert worker.process.poll() == 2
        told = "this worker's policy: the run has 5 rounds, limits.rounds allows 1"
        assert worker.log.read_text().splitlines()[-1] == f"error: {told}"
        assert [answer.reason for answer in DeclinedTable(hub.store.database).all()] == [told]
        assert [entry.outcome for entry in History(worker.folder).all()] == [f"declined: {told}"]
    finally:
        worker.end()
