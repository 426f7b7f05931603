"""The bytes counted at the gRPC layer are those that the operating system saw."""

import asyncio
import os
import socket
import struct
from pathlib import Path

import torch

from common.address import Address
from common.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from common.records import JoinRequest
from common.runtime.compute import ComputeThread
from tests.conftest import write_table
from tests.integration.federation import federation
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.data import PrivateData, Source
from worker.loop import Place, Worker
from worker.metrics import Metrics


def socket_counters(port: int) -> tuple[int, int]:
    """Bytes acknowledged and received, by TCP_INFO, on this process's connections to a local port."""
    sent = received = 0
    for entry in Path("/proc/self/fd").iterdir():
        if not entry.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as connection:
            try:
                if connection.type == socket.SOCK_STREAM and connection.getpeername()[1] == port:
                    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
                    acknowledged, got = struct.unpack_from("QQ", info, 120)
                    sent, received = sent + acknowledged, received + got
            except (OSError, IndexError, TypeError):
                continue
    return sent, received


def counted(metrics: Metrics, direction: str) -> int:
    """What the worker's own metric says."""
    (family,) = metrics.transferred.collect()
    samples = [s for s in family.samples if s.name.endswith("_total")]
    return int(sum(s.value for s in samples if s.labels["direction"] == direction))


async def test_counts_agree_with_the_sockets(tmp_path: Path, model_folder: Path) -> None:
    settings = {"rounds__workers": 1, "rounds__minimum": 1, "rounds__count": 3}
    with federation(tmp_path, model_folder, **settings) as running:
        address = Address.parse(running.start_coordinator()["address"])
        data = PrivateData.read(Source(write_table(tmp_path / "data.csv", 40, 5)))
        metrics, compute = Metrics(), ComputeThread()
        joining = JoinRequest("worker-1", PROTOCOL_MIN, PROTOCOL_MAX, "test", len(data))
        coordinator = CoordinatorClient(Endpoint(address, 30), joining, metrics)
        place = Place(tmp_path / "worker", torch.device("cpu"))
        sent = received = 0

        async def sample() -> None:
            """The coordinator closes the connection at the end, and the counters go with it."""
            nonlocal sent, received
            while True:
                now = socket_counters(address.port)
                sent, received = max(sent, now[0]), max(received, now[1])
                await asyncio.sleep(0.005)

        sampling = asyncio.create_task(sample())
        await Worker("worker-1", coordinator, data, place, compute, metrics).run()
        sampling.cancel()
        await coordinator.close()
        compute.close()
        await asyncio.to_thread(running.wait)

        (worker,) = running.status().workers
        for direction, by_socket, by_coordinator in (
            ("up", sent, sum(t.bytes_up for t in worker.traffic)),
            ("down", received, sum(t.bytes_down for t in worker.traffic)),
        ):
            by_worker = counted(metrics, direction)
            assert by_worker > 10_000
            # HTTP/2 adds headers, pings and window updates to what gRPC carries.
            assert by_worker < by_socket < by_worker * 1.1 + 8_000, direction
            # The coordinator saves its counts at the end, just before the last goodbyes.
            assert abs(by_coordinator - by_worker) < 1_000, direction
