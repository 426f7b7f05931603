"""A worker that sends nothing right, by the thousand, does not keep another from its rounds."""

import asyncio
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.address import Address
from coordinator.owner.admin_client import Admin
from coordinator.storage.store import Store
from tests.integration.federation import Federation, federation
from tests.security.flood import Flood

log = logging.getLogger(__name__)

# `make test-security` sends 10,000.
STREAMS = int(os.environ.get("FEDPFT_FLOOD_STREAMS", "600"))

# What the coordinator's memory may grow by, whatever is sent; and how long its answers may take meanwhile.
MOST_GROWTH = 128 << 20
SLOWEST_ANSWER = 10.0


@dataclass
class Meanwhile:
    """What somebody who minds the coordinator sees during the flood."""

    slowest: float = 0.0
    most_memory: int = 0

    async def look(self, address: Address, pid: int) -> None:
        async with Admin(address) as admin:
            while True:
                begun = time.monotonic()
                await admin.status()
                self.slowest = max(self.slowest, time.monotonic() - begun)
                self.most_memory = max(self.most_memory, memory(pid))
                await asyncio.sleep(0.2)


def memory(pid: int) -> int:
    """Bytes of a process that are in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def update_size(running: Federation) -> int:
    """Bytes of an update of this run."""
    store = Store.existing(running.run)
    try:
        return store.artifacts.get(store.updates(1)[0].sha256).size
    finally:
        store.close()


def rounds_done(running: Federation) -> int:
    store = Store.existing(running.run)
    try:
        latest = store.latest_adapter()
        return latest[0] if latest else -1
    finally:
        store.close()


# The limits per worker keep most of a flood from going deep; without them each stream is looked at.
UNLIMITED = {"limits__calls_per_second": 1e9, "limits__updates_per_round": 10**9}


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "limits",
    [pytest.param({}, id="limited"), pytest.param(UNLIMITED, id="unlimited", marks=pytest.mark.slow)],
)
def test_a_flood_of_bad_streams_keeps_nobody_from_the_rounds(
    tmp_path: Path, model_folder: Path, limits: dict[str, float]
) -> None:
    settings: dict[str, float] = {
        "rounds__workers": 1,
        "rounds__minimum": 1,
        "rounds__count": 100_000,
        # The flooding worker is drawn, too, and delivers nothing: a round waits for it no longer than this.
        "rounds__deadline_seconds": 2.0,
        # A worker that is slow to start must not fail the run.
        "rounds__tries": 1000,
        "server__heartbeat_seconds": 2.0,
        "realignment__every": 0,
        "gradient_gap__batches": 0,
        **limits,
    }
    with federation(tmp_path, model_folder, **settings) as running:
        address = Address.parse(running.start_coordinator()["address"])
        process = running.processes["coordinator"]
        running.start_worker(1, str(address))
        for _ in running.until("a round is done before the flood"):
            assert process.poll() is None, running.log("coordinator")
            if rounds_done(running) >= 1:
                break
        before, rounds_before = memory(process.pid), rounds_done(running)
        flood, meanwhile = Flood(address, size=update_size(running)), Meanwhile()

        async def both() -> None:
            looking = asyncio.create_task(meanwhile.look(address, process.pid))
            # On a fast machine so many streams take less time than a round does.
            await flood.run(STREAMS, lambda: rounds_done(running) > rounds_before)
            assert not looking.done(), looking.exception()
            looking.cancel()

        asyncio.run(both())
        during = rounds_done(running) - rounds_before
        log.info(
            f"{flood.sent} streams: {during} rounds meanwhile, memory {before >> 20} MiB, at most "
            f"{meanwhile.most_memory >> 20} MiB, slowest status {meanwhile.slowest:.2f} s, slowest stream "
            f"{flood.slowest:.2f} s; {dict(sorted(flood.answers.items()))}",
        )
        for _ in running.until("a round is done after the flood"):
            if rounds_done(running) > rounds_before + during:
                break
        assert process.poll() is None and running.processes["worker-1"].poll() is None
        process.send_signal(signal.SIGTERM)
        process.wait(30)

        assert during >= 1
        assert meanwhile.most_memory - before < MOST_GROWTH
        assert meanwhile.slowest < SLOWEST_ANSWER
        assert sum(flood.answers.values()) == flood.sent >= STREAMS
        accepted = [answer for answer in flood.answers if answer.startswith(("update: OK", "no_header: OK"))]
        assert accepted == [], flood.answers
        store = Store.existing(running.run)
        try:
            lost = [e for e in store.events.all() if e.kind == "worker_lost" and e.worker == "worker-1"]
            assert lost == []
            assert all(u.worker == "worker-1" for n in range(1, 10) for u in store.updates(n))
            assert sum(path.stat().st_size for path in store.artifacts.spooled("flood")) < 1 << 20
        finally:
            store.close()
        assert not any("INTERNAL" in answer or "UNKNOWN" in answer for answer in flood.answers), flood.answers
        printed = (tmp_path / "coordinator.log").read_text(errors="replace")
        assert "Traceback" not in printed, printed[:20_000]
        # Nor can the log or the events be filled up by it.
        assert len(printed) < 100 * flood.sent
