"""Transfers between a coordinator and workers, against raw TCP in the same run.

    python -m benchmarks.transport [--json FILE]

A server process with the coordinator's real service and store, in plain text and behind mutual TLS, and a
client process with the worker's real connection; files of 100 MB, on a file system in memory. Unless it
says "not kept", what comes is hashed, written and published. Raw TCP sends as many bytes from one process
to another in pieces of 1 MB, and keeps nothing.
Besides: sizes of chunks and the allocator's settings, on bare gRPC; how long the first byte takes; and
what going on after an interruption costs.
"""

import argparse
import asyncio
import hashlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import torch
from fedpft.v1.federation_pb2 import DownloadArtifactRequest
from grpc import aio

from benchmarks.measuring import Ratio, Spread, Target, interleave, report, table
from benchmarks.processes import Child, say
from benchmarks.running import certificates
from common.allocator import set_up_allocator
from common.chunks import CHUNK_BYTES
from common.decoding import Decoding
from common.identity import Role
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    JoinRequest,
    RunSpec,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    UpdateHeader,
)
from common.rpc import Address, new_server
from common.schema import TensorSpec
from common.tensors import to_bytes
from common.tls import Tls, TlsFiles, open_tls
from coordinator.access import Gate
from coordinator.inbox import Expected, Inbox
from coordinator.journal import Journal
from coordinator.meter import Meter
from coordinator.metrics import Metrics
from coordinator.rounds import RoundState
from coordinator.service import FederationService, serve_federation
from coordinator.sessions import Sessions
from coordinator.store import Store
from worker.client import Coordinator
from worker.metrics import Metrics as WorkerMetrics

SIZE = 100_000_000
EXAMPLES = 100
MEMORY = Path("/dev/shm")
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
}
RUN = RunSpec(
    "benchmark",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
)


# --- the coordinator's side ---


async def serve(folder: Path, tls: Path | None) -> None:
    """The coordinator's service with one adapter, and rounds that never close; says where, and what."""
    set_up_allocator()
    store = Store(folder / "run")
    store.open_run("benchmark", "{}")
    values = torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(0))
    adapter = store.add_tensors(ArtifactKind.ADAPTER, {"x": values})
    metrics, sessions, inbox, journal = Metrics(), Sessions(5.0), Inbox(store), Journal(store)
    credentials = None
    if tls is not None:
        credentials = Tls(TlsFiles.in_folder(tls / "hub"), Role.COORDINATOR)
    guards = [Gate(credentials), Decoding()] if credentials else [Decoding()]
    server, address = new_server(Address("127.0.0.1", 0), tls=credentials, interceptors=guards)
    meter = Meter(store, metrics)
    service = FederationService(RUN, store, sessions, inbox, journal, meter, metrics, max_transfers=8)
    serve_federation(server, service)
    await server.start()
    expected = Expected(adapter, {"delta.x": TensorSpec((SIZE // 4,), torch.float32)})
    say({"address": str(address), "sha256": adapter.sha256, "size": adapter.size})
    number = 0
    while (line := (await asyncio.to_thread(sys.stdin.readline)).strip()) == "open":
        number += 1
        workers = frozenset(session.worker for session in sessions.all())
        never = asyncio.get_running_loop().time() + 1e6
        inbox.open(RoundState(number, workers | {"nobody"}, len(workers) + 1, never), expected)
        say(number)
    assert not line


# --- the workers' side ---


class Workers:
    """The worker's connection, several times."""

    def __init__(self, folder: Path, tls: Path | None, address: str, names: list[str]) -> None:
        self._folder = folder
        self._ends = [
            Coordinator(
                Address.parse(address),
                JoinRequest(name, 1, 2, "benchmark", EXAMPLES),
                30.0,
                WorkerMetrics(),
                tls=open_tls(tls / name if tls else None, Role.WORKER),
            )
            for name in names
        ]
        values = torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(1))
        content = to_bytes({"delta.x": values})
        self._update = folder / "update"
        self._update.write_bytes(content)
        self._header = (len(content), hashlib.sha256(content).hexdigest())

    async def join(self) -> None:
        for end in self._ends:
            await end.join()

    async def down(self, adapter: ArtifactRef, count: int) -> float:
        """Seconds in which so many workers fetch the adapter."""
        folders = [self._folder / f"down-{i}" for i in range(count)]
        for folder in folders:
            (folder / adapter.sha256).unlink(missing_ok=True)
        begun = time.perf_counter()
        await asyncio.gather(*(e.download(adapter, f) for e, f in zip(self._ends, folders, strict=False)))
        return time.perf_counter() - begun

    async def stream(self, adapter: ArtifactRef) -> float:
        """Seconds in which the adapter's chunks come to one worker that keeps nothing of them."""
        end: Any = self._ends[0]
        request = DownloadArtifactRequest(session=end._session, sha256=adapter.sha256)
        begun = time.perf_counter()
        async for _ in end._stub.DownloadArtifact(request):
            pass
        return time.perf_counter() - begun

    async def up(self, adapter: ArtifactRef, count: int, number: int) -> float:
        """Seconds in which so many workers deliver an update to an open round."""
        header = UpdateHeader("", number, adapter.sha256, *self._header, EXAMPLES, 0.5, 0.0)
        begun = time.perf_counter()
        await asyncio.gather(*(end.submit(header, self._update) for end in self._ends[:count]))
        return time.perf_counter() - begun

    async def resume(self, adapter: ArtifactRef) -> tuple[float, float]:
        """Seconds to fetch the second half, when the first is there; and to fetch all."""
        whole = await self.down(adapter, 1)
        path = self._folder / "down-0" / adapter.sha256
        half = path.with_name(f"{adapter.sha256}.part")
        path.rename(half)
        with half.open("r+b") as file:
            file.truncate(adapter.size // 2)
        begun = time.perf_counter()
        await self._ends[0].download(adapter, self._folder / "down-0")
        return time.perf_counter() - begun, whole


async def work(folder: Path, tls: Path | None, address: str, adapter: ArtifactRef, names: list[str]) -> None:
    """Do what the standard input says."""
    set_up_allocator()
    workers = Workers(folder, tls, address, names)
    await workers.join()
    say("joined")
    while line := (await asyncio.to_thread(sys.stdin.readline)).split():
        match line:
            case ["down", count]:
                say(await workers.down(adapter, int(count)))
            case ["stream"]:
                say(await workers.stream(adapter))
            case ["up", count, number]:
                say(await workers.up(adapter, int(count), int(number)))
            case ["resume"]:
                say(await workers.resume(adapter))


# --- bare transports ---


async def bare_serve(tls: Path | None) -> None:
    """Bare gRPC that sends SIZE bytes in chunks of as many as the request says."""
    content = memoryview(os.urandom(SIZE))

    async def download(request: bytes, context: Any) -> AsyncIterator[bytes]:
        step = int(request)
        for at in range(0, SIZE, step):
            yield bytes(content[at : at + step])

    server = aio.server(options=[("grpc.max_send_message_length", -1)])
    handlers: dict[str, Any] = {"Download": grpc.unary_stream_rpc_method_handler(download)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark.Bare", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(port)
    await server.wait_for_termination()


async def bare_work(address: str) -> None:
    """Fetch in chunks of the size that the standard input says; answers seconds to the first and to all."""
    options = [("grpc.max_receive_message_length", -1)]
    async with aio.insecure_channel(address, options=options) as channel:
        call: Any = channel.unary_stream("/benchmark.Bare/Download")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            begun, first = time.perf_counter(), 0.0
            async for _ in call(line.encode()):
                first = first or time.perf_counter() - begun
            say([first, time.perf_counter() - begun])


def tcp_serve() -> None:
    """Sends SIZE bytes to whoever connects."""
    content = memoryview(bytearray(os.urandom(1_000_000)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        say(listening.getsockname()[1])
        while True:
            with listening.accept()[0] as connection:
                for _ in range(SIZE // len(content)):
                    connection.sendall(content)


def tcp(port: int) -> float:
    """Seconds in which SIZE bytes arrive in this process."""
    buffer, left = bytearray(1_000_000), SIZE
    with socket.create_connection(("127.0.0.1", port)) as connection:
        begun = time.perf_counter()
        while left:
            left -= connection.recv_into(buffer)
        return time.perf_counter() - begun


# --- the benchmark ---


class Side:
    """A server and its workers, in plain text or behind mutual TLS."""

    def __init__(self, stack: ExitStack, folder: Path, tls: Path | None, names: list[str]) -> None:
        options = ["--folder", str(folder), *(["--tls", str(tls)] if tls else [])]
        log = folder / "log"
        self._server = Child("benchmarks.transport", "serve", *options, log=log)
        stack.callback(self._server.end)
        about = self._server.hear()
        options += ["--coordinator", about["address"], "--sha256", about["sha256"]]
        options += ["--size", str(about["size"]), "--names", *names]
        self._workers = Child("benchmarks.transport", "work", *options, log=log)
        stack.callback(self._workers.end)
        assert self._workers.hear() == "joined"

    def down(self, count: int) -> float:
        """Seconds per worker, of so many at once."""
        return float(self._workers.ask(f"down {count}")) / count

    def stream(self) -> float:
        """Seconds of a download of which nothing is kept."""
        return float(self._workers.ask("stream"))

    def up(self, count: int) -> float:
        """Seconds per worker, of so many at once."""
        return float(self._workers.ask(f"up {count} {self._server.ask('open')}")) / count

    def resume(self) -> tuple[float, float]:
        """Seconds for the second half alone, and for all."""
        half, whole = self._workers.ask("resume")
        return half, whole


def streams(repeats: int, most: int = 4) -> tuple[dict[str, Any], list[Target]]:
    """One stream and several, down and up, plain and TLS, beside raw TCP; and what resuming costs."""
    with ExitStack() as stack:

        def folder() -> Path:
            place = MEMORY if MEMORY.is_dir() else None
            return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place)))

        tls, names = certificates(folder() / "tls", most)
        raw = Child("benchmarks.transport", "tcp", log=folder() / "log")
        stack.callback(raw.end)
        port = raw.hear()
        sides = {"plain": Side(stack, folder(), None, names), "mTLS": Side(stack, folder(), tls, names)}
        contestants: dict[str, Callable[[], Any]] = {"raw TCP": lambda: tcp(port)}
        for security, side in sides.items():
            contestants[f"down, {security}, 1, not kept"] = side.stream
            for count in (1, most):
                contestants[f"down, {security}, {count}"] = partial(side.down, count)
                contestants[f"up, {security}, {count}"] = partial(side.up, count)
        found = interleave(contestants, repeats)
        resumed = [sides["mTLS"].resume() for _ in range(repeats)]
    figures: dict[str, Any] = {}
    for name, seconds in found.items():
        rate = Spread.of([SIZE / 1e9 / one for one in seconds])
        figures[name] = {"gigabytes_per_second": rate, "ratio": Ratio.of(found["raw TCP"], seconds)}
    rows = [(n, f["gigabytes_per_second"], f["ratio"]) for n, f in figures.items()]
    print(table(("direction, security, streams", "GB/s", "× raw TCP"), rows) + "\n", flush=True)
    figures["resume"] = Spread.of([half / whole for half, whole in resumed])
    print(f"fetching the second half after an interruption: {figures['resume']} of fetching all\n")
    limits = {"plain": 0.6, "mTLS": 0.4}
    targets = [
        Target(
            f"download, one stream, {s}, against raw TCP",
            figures[f"down, {s}, 1, not kept"]["ratio"].value,
            v,
            True,
        )
        for s, v in limits.items()
    ]
    return figures, targets


def bare(repeats: int) -> dict[str, Any]:
    """Sizes of chunks, and the allocator's settings, on gRPC alone."""
    sizes = (64 << 10, 256 << 10, 512 << 10, CHUNK_BYTES, 4 << 20)
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        raw = Child("benchmarks.transport", "tcp", log=log)
        stack.callback(raw.end)
        port = raw.hear()
        contestants: dict[str, Callable[[], Any]] = {"raw TCP": lambda: [0.0, tcp(port)]}
        for told, environment in (("", {}), (", allocator set up", ALLOCATOR)):
            server = Child("benchmarks.transport", "bare-serve", log=log, environment=environment)
            stack.callback(server.end)
            address = f"127.0.0.1:{server.hear()}"
            options = ["--coordinator", address]
            client = Child("benchmarks.transport", "bare-work", *options, log=log, environment=environment)
            stack.callback(client.end)
            for size in sizes:
                contestants[f"{size >> 10} KiB{told}"] = partial(client.ask, str(size))
        found = interleave(contestants, repeats)
    limit = [seconds for _, seconds in found["raw TCP"]]
    figures: dict[str, Any] = {}
    for name, pairs in found.items():
        seconds = [whole for _, whole in pairs]
        figures[name] = {
            "gigabytes_per_second": Spread.of([SIZE / 1e9 / one for one in seconds]),
            "ratio": Ratio.of(limit, seconds),
            "first_byte_milliseconds": 1000 * statistics.median(first for first, _ in pairs),
        }
    rows = [
        (n, f["gigabytes_per_second"], f["ratio"], f"{f['first_byte_milliseconds']:.2f}")
        for n, f in figures.items()
    ]
    print(table(("bare gRPC, chunks of", "GB/s", "× raw TCP", "first chunk, ms"), rows), flush=True)
    return figures


def main() -> None:
    """The command, and the processes that it starts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    roles = ["measure", "serve", "work", "bare-serve", "bare-work", "tcp"]
    parser.add_argument("role", nargs="?", choices=roles, default="measure", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=9, help="of every transfer [9]")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    for hidden, kind in (
        ("folder", Path),
        ("tls", Path),
        ("coordinator", str),
        ("sha256", str),
        ("size", int),
    ):
        parser.add_argument(f"--{hidden}", type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--names", nargs="+", help=argparse.SUPPRESS)
    o = parser.parse_args()
    match o.role:
        case "serve":
            asyncio.run(serve(o.folder, o.tls))
        case "work":
            adapter = ArtifactRef(ArtifactKind.ADAPTER, o.sha256, o.size)
            asyncio.run(work(o.folder, o.tls, o.coordinator, adapter, o.names))
        case "bare-serve":
            asyncio.run(bare_serve(o.tls))
        case "bare-work":
            asyncio.run(bare_work(o.coordinator))
        case "tcp":
            tcp_serve()
        case _:
            figures, targets = streams(o.repeats)
            report(o.json, {"streams": figures, "bare": bare(o.repeats)}, targets)


if __name__ == "__main__":
    main()
