"""Calls are measured by method and status, on a real server."""

from pathlib import Path
from typing import Any

import pytest
from fedpft.v1 import admin_pb2_grpc
from grpc import aio

from common.address import Address
from common.errors import FedPftError, StaleRound
from common.transport.rpc import new_server
from coordinator.federation.call_metrics import CallMetrics
from coordinator.owner.admin_client import Admin
from coordinator.owner.admin_service import AdminService
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store


async def test_every_way_a_call_can_end_is_told_with_its_time(tmp_path: Path) -> None:
    ended: list[tuple[str, str]] = []
    errors: list[Exception] = [StaleRound("too late"), RuntimeError("a mistake")]

    def observe(method: str, code: str, seconds: float) -> None:
        assert 0 <= seconds < 60
        ended.append((method, code))

    def status() -> Any:
        raise errors.pop(0)

    store = Store(tmp_path / "run")
    store.open_run("run", "{}")
    event_log = EventLog(store)
    server, address = new_server(Address("127.0.0.1", 0), interceptors=[CallMetrics(observe)])
    admin_pb2_grpc.add_AdminServiceServicer_to_server(
        AdminService(status, event_log, lambda reason: None), server
    )
    await server.start()
    async with Admin(address) as admin:
        with pytest.raises(StaleRound):
            await admin.status()
        with pytest.raises(FedPftError, match="internal error"):
            await admin.status()
        await admin.stop()
        event_log.record("phase_entered", "phase: training")
        following = admin.events()
        assert (await anext(following)).text == "phase: training"
        await following.aclose()
    assert isinstance(server, aio.Server)
    await server.stop(1)
    store.close()
    assert ended[:3] == [
        ("ReadStatus", "FAILED_PRECONDITION"),
        ("ReadStatus", "INTERNAL"),
        ("StopRun", "OK"),
    ]
    assert ended[3:] == [("WatchEvents", "CANCELLED")]
