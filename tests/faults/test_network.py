"""Whatever a network does to one worker, the run ends as if nothing had happened."""

import re
import time
from collections.abc import Callable
from enum import StrEnum

import pytest

from tests.faults.conftest import Make
from tests.faults.federation import Federation, Outcome
from tests.faults.proxy import NetworkFault, Proxy

# In `make test`, too; and in `make test-all`.
QUICK = {NetworkFault.RESET_UP}
USUAL = {NetworkFault.TRUNCATED_DOWN, NetworkFault.BLACK_HOLE}


class When(StrEnum):
    """In which situation the network breaks."""

    JOINING = "from the start"
    WORKING = "once the first round is open"


def _marks(fault: NetworkFault, when: When) -> tuple[pytest.MarkDecorator, ...]:
    if when is When.WORKING and fault in QUICK | USUAL:
        return () if fault in QUICK else (pytest.mark.slow,)
    return (pytest.mark.faults,)


CASES = [
    pytest.param(
        fault,
        when,
        marks=_marks(fault, when),
        id=f"{fault}-{when.name.lower()}",
    )
    for fault in NetworkFault
    for when in When
]


@pytest.mark.parametrize(("fault", "when"), CASES)
def test_a_broken_network_changes_nothing(
    fault: NetworkFault,
    when: When,
    make: Make,
    reference: Outcome,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("fault", f"network, {when}")
    record_property("point", str(fault))
    federation = make()
    with Proxy(federation.port, fault) as proxy:
        federation.routes["worker-1"] = proxy.address
        federation.start("coordinator")
        federation.endpoint()
        if when is When.JOINING:
            proxy.strike()
        federation.start("worker-1")
        federation.start("worker-2")
        struck = when is When.JOINING

        def strike() -> None:
            nonlocal struck
            if not struck and "round 1 of 2" in federation.log("coordinator"):
                proxy.strike()
                struck = True

        federation.supervise(each=strike)
        assert proxy.struck, "the fault did not strike"
    assert federation.outcome() == reference
    # The other worker sees nothing of it.
    assert "next try" not in federation.log("worker-2")


@pytest.mark.parametrize(
    "fault", [NetworkFault.RESET_UP, pytest.param(NetworkFault.TRUNCATED_UP, marks=pytest.mark.faults)]
)
def test_an_upload_that_was_cut_goes_on_where_it_broke_off(
    fault: NetworkFault, make: Make, reference: Outcome
) -> None:
    federation = make()
    with Proxy(federation.port, fault) as proxy:
        federation.routes["worker-1"] = proxy.address
        proxy.strike()
        federation.start_all()
        federation.supervise()
        assert proxy.struck >= 2
    assert federation.outcome() == reference
    with federation.store() as store:
        size = next(store.artifacts.get(u.sha256).size for u in store.updates(1) if u.worker == "worker-1")
        sent = sum(t.bytes_up for t in store.traffic.by_worker()["worker-1"] if t.kind == "update")
    # Two updates, of which each cut costs at most what was under way: two chunks and the transport's window.
    assert sent < 2 * size + proxy.struck * 1_100_000
    assert sent < 2 * size + proxy.struck * (size // 2)


@pytest.mark.faults
def test_a_worker_that_flaps_without_end_disturbs_nobody(make: Make, reference: Outcome) -> None:
    """A third worker, of which the run needs nothing, joins and is cut off the whole time."""
    federation = make()
    with Proxy(federation.port, NetworkFault.RESET_DOWN) as proxy:
        proxy._striking = True
        federation.start_all()
        federation.endpoint()
        joins = flap(federation, seconds=2.0)
        federation.supervise()
    assert joins > 20
    assert federation.outcome() == reference
    with federation.store() as store:
        told = [e for e in store.events.all() if e.worker == "flapping"]
    assert len(told) < joins / 2


def flap(federation: Federation, seconds: float) -> int:
    """Join under one name again and again; returns how often."""
    import asyncio

    from common.address import Address
    from common.records import JoinRequest
    from worker.client import CoordinatorClient
    from worker.connection import Endpoint
    from worker.metrics import Metrics

    async def main() -> int:
        joins, ends = 0, time.monotonic() + seconds
        while time.monotonic() < ends:
            request = JoinRequest("flapping", 1, 2, "test", 5)
            endpoint = Endpoint(Address.parse(federation.address), 1.0)
            connection = CoordinatorClient(endpoint, request, Metrics())
            await connection.join()
            await connection.close()
            joins += 1
        return joins

    return asyncio.run(main())


@pytest.mark.faults
def test_reconnecting_waits_longer_and_longer_and_not_in_step(make: Make) -> None:
    federation = make()
    for name in federation.workers:
        federation.start(name)
    time.sleep(6)
    delays = {
        name: [float(d) for d in re.findall(r"next try in ([\d.]+) s", federation.log(name))]
        for name in federation.workers
    }
    for found in delays.values():
        assert 3 <= len(found) <= 12
        assert found[-1] > found[0]
    first, second = delays.values()
    assert first != second
