"""A run that is over waits until who watches it has seen that it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from fedpft.v1 import admin_pb2_grpc

from common.address import Address
from common.run_status import Phase
from common.transport.rpc import new_server
from coordinator.owner import admin_service
from coordinator.owner.admin_client import Admin
from coordinator.owner.admin_service import AdminService
from tests.coordinator.owner.test_page import STATUS


class Served:
    """The service on a socket, of a run in some phase."""

    def __init__(self) -> None:
        self.phase = Phase.TRAINING
        events: Any = None
        self.service = AdminService(lambda: replace(STATUS, phase=self.phase), events, print)
        self.server, self.address = new_server(Address("127.0.0.1", 0))
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self.service, self.server)

    async def waited(self) -> float:
        begun = asyncio.get_running_loop().time()
        await self.service.seen_to_the_end()
        return asyncio.get_running_loop().time() - begun


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    serving = Served()
    await serving.server.start()
    yield serving
    await serving.server.stop(None)


async def test_who_watches_is_waited_for(served: Served) -> None:
    async with contextlib.AsyncExitStack() as open_until:
        one, two = [await open_until.enter_async_context(Admin(served.address)) for _ in range(2)]
        for _ in range(2):
            await one.status()
            await two.status()
        served.phase = Phase.FINISHED
        waiting = asyncio.create_task(served.waited())
        await one.status()
        await asyncio.sleep(0.3)
        assert not waiting.done()
        assert (await two.status()).phase is Phase.FINISHED
        assert await waiting < 3


async def test_who_has_looked_once_is_not(served: Served) -> None:
    async with Admin(served.address) as one:
        await one.status()
        served.phase = Phase.FINISHED
        assert await served.waited() < 1


async def test_who_has_gone_is_not_waited_for_long(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin_service, "_LATELY", 1.0)
    async with Admin(served.address) as one:
        for _ in range(3):
            await one.status()
    served.phase = Phase.FINISHED
    assert 0.2 < await served.waited() < 3
