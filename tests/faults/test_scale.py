"""Two hundred workers at once, and rounds that close without everybody."""

import asyncio
import json
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import grpc
import pytest
from fedpft.v1 import admin_pb2, admin_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import Address
from common.records import Phase
from tests.faults.conftest import Make
from tests.faults.federation import Federation
from tests.faults.light import Fleet

# Updates are made up, so what only trained ones need is off.
LIGHT: dict[str, Any] = {
    "alignment.steps": 0,
    "realignment.every": 0,
    "gradient_gap.batches": 0,
    "adapter.rank": 8,
    "aggregation.optimizer": "none",
    "validation.every": 0,
}


class Prober:
    """Asks health and status from a thread of its own, again and again, and notes how long that takes."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._over = threading.Event()
        self.health: list[float] = []
        self.status: list[float] = []
        self.waits: list[str] = []
        self._thread = threading.Thread(target=self._probe)
        self._thread.start()

    def _probe(self) -> None:
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        admin: Any = admin_pb2_grpc.AdminServiceStub(self._channel)
        while not self._over.wait(0.05):
            try:
                begun = time.monotonic()
                health.Check(health_pb2.HealthCheckRequest(), timeout=10)
                self.health.append(time.monotonic() - begun)
                begun = time.monotonic()
                self.waits.append(admin.GetStatus(admin_pb2.GetStatusRequest(), timeout=10).waiting_for)
                self.status.append(time.monotonic() - begun)
            except grpc.RpcError:
                # The run is over, or not begun.
                continue

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._channel.close()


def light(make: Make, **settings: Any) -> Federation:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return make(settings=LIGHT | dotted, workers=())


@pytest.mark.faults
def test_two_hundred_workers_join_at_once_and_a_fifth_vanishes(
    make: Make, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    federation = light(
        make,
        rounds__count=2,
        rounds__workers=200,
        rounds__sample=150,
        rounds__minimum=100,
        rounds__deadline_seconds=15.0,
        rounds__grace_seconds=60.0,
        server__heartbeat_seconds=2.0,
    )
    names = tuple(f"light-{n:03}" for n in range(200))
    federation.start("coordinator")
    federation.endpoint()
    prober = Prober(federation.address)
    try:
        fleet = Fleet(Address.parse(federation.address), tmp_path / "fleet", names, frozenset(names[::5]))
        ends = asyncio.run(fleet.work())
    finally:
        prober.close()
    federation.ended("coordinator")
    assert list(ends.values()).count("vanished") > 20
    with federation.store() as store:
        assert store.outcome() == Phase.FINISHED, federation.logs()
        rows = store._rows("SELECT closed - opened, selected FROM tries WHERE round = 1")
        assert 15.0 <= rows[0][0] < 17.0, "closed at its deadline"
        accepted = store.accepted(1)
        assert accepted is not None
        assert 100 <= len(accepted) < 150
        assert {u.worker for u in accepted} == set(json.loads(rows[0][1])) - fleet.vanishing
    assert any("lost" in waits for waits in prober.waits)
    assert len(prober.health) > 100
    worst = {"health": prober.health, "status": prober.status}
    record_property(
        "figures",
        "200 workers: "
        + "; ".join(
            f"{name} median {1000 * median(v):.0f} ms, 95 % {1000 * sorted(v)[int(0.95 * len(v))]:.0f} ms, "
            f"longest {1000 * max(v):.0f} ms of {len(v)}"
            for name, v in worst.items()
        ),
    )
    for name, seconds in worst.items():
        assert median(seconds) <= 0.1, name


def test_more_workers_are_asked_than_needed_and_the_slow_ones_are_refused(make: Make, tmp_path: Path) -> None:
    settings = {"rounds__workers": 4, "rounds__sample": 2, "rounds__over_select": 2, "rounds__count": 2}
    federation = light(make, **settings, rounds__minimum=2)
    federation.start("coordinator")
    endpoint = federation.endpoint()
    names = ("a", "b", "c", "d")
    fleet = Fleet(Address.parse(federation.address), tmp_path / "fleet", names, delays={"c": 1.0, "d": 1.5})

    async def main() -> str:
        work = asyncio.create_task(fleet.work())
        page = ""
        while not work.done():
            await asyncio.sleep(0.1)
            try:
                url = f"http://127.0.0.1:{endpoint['metrics_port']}/metrics"
                read = await asyncio.to_thread(urllib.request.urlopen, url, timeout=5)
                page = read.read().decode()
            except OSError:
                continue
        return page

    page = asyncio.run(main())
    federation.ended("coordinator")
    with federation.store() as store:
        assert store.outcome() == Phase.FINISHED, federation.logs()
        for number in (1, 2):
            accepted = store.accepted(number)
            assert accepted is not None
            assert [u.worker for u in accepted] == ["a", "b"]
        refused = [e for e in store.events.all() if e.kind == "update_refused"]
    assert {e.worker for e in refused} <= {"c", "d"}
    for result in ("LateUpdate", "StaleRound", "UnknownRound", "NotSelected", "duplicate"):
        assert f'fedpft_updates_total{{result="{result}"}}' in page


def test_a_worker_that_vanishes_holds_up_a_round_for_its_grace_only(make: Make, tmp_path: Path) -> None:
    federation = light(
        make,
        rounds__count=2,
        rounds__workers=3,
        rounds__minimum=2,
        rounds__deadline_seconds=600.0,
        rounds__grace_seconds=1.0,
    )
    federation.start("coordinator")
    federation.endpoint()
    prober = Prober(federation.address)
    begun = time.monotonic()
    try:
        fleet = Fleet(Address.parse(federation.address), tmp_path, ("a", "b", "gone"), frozenset({"gone"}))
        ends = asyncio.run(fleet.work())
    finally:
        prober.close()
    assert ends == {"a": "the run is finished", "b": "the run is finished", "gone": "vanished"}
    assert time.monotonic() - begun < 30
    assert any("gone (lost, waited for another" in waits for waits in prober.waits)
    assert any("1 more worker(s): 2 of 3 are here; not here: gone" in waits for waits in prober.waits)


def test_a_round_that_misses_its_minimum_again_and_again_fails_the_run_and_says_who_is_missing(
    make: Make, tmp_path: Path
) -> None:
    federation = light(
        make,
        rounds__workers=3,
        rounds__minimum=3,
        rounds__deadline_seconds=1.0,
        rounds__grace_seconds=0.5,
        rounds__tries=2,
    )
    federation.start("coordinator")
    federation.endpoint()
    fleet = Fleet(Address.parse(federation.address), tmp_path, ("a", "b", "gone"), frozenset({"gone"}))
    ends = asyncio.run(fleet.work())
    assert federation.ended("coordinator") == 1
    last = federation.log("coordinator").strip().splitlines()[-1]
    assert "missed its minimum of 3 updates 2 times; missing: gone" in last
    assert "missing: gone" in ends["a"]
