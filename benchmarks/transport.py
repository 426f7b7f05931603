"""Transfers between a coordinator and workers, against raw TCP in the same run.

    python -m benchmarks.transport [--json FILE]

A server process with the coordinator's real service and store, in plain text and behind mutual TLS, and a
client process with the worker's real connection; files of 100 MB, on a file system in memory. Unless it
says "not kept", what comes is hashed, written and published. Beside them raw TCP and bare gRPC, which keep
nothing either. Besides: what going on after an interruption costs.
"""

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fedpft.v1.federation_pb2 import DownloadArtifactRequest
from fedpft.v1.federation_pb2_grpc import FederationServiceStub

from benchmarks.bare import SIZE, BareGrpc, RawTcp
from benchmarks.measuring import Ratio, Spread, Target, benchmark_parser, interleave, report, table
from benchmarks.processes import Child, say
from benchmarks.running import certificates
from common.address import Address
from common.config.file import parse_config
from common.records import ArtifactKind, ArtifactRef, JoinRequest, UpdateHeader
from common.runtime.allocator import set_up_allocator
from common.runtime.compute import InlineCompute
from common.storage.schema import TensorSpec
from common.storage.tensors import to_bytes
from common.transport import wire
from common.transport.chunk_messages import decode_download
from common.transport.decoding import Decoding
from common.transport.rpc import new_channel, new_server
from common.trust.identity import Role
from common.trust.tls import Tls, TlsFiles, open_tls
from coordinator.context import RunContext
from coordinator.federation.authorization import AuthorizationInterceptor
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import RoundState
from coordinator.federation.service import FederationService, serve_federation
from coordinator.federation.sessions import Sessions
from coordinator.storage.store import Store
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics as WorkerMetrics

EXAMPLES = 100
MEMORY = Path("/dev/shm")


# --- the coordinator's side ---


async def serve(folder: Path, tls: Path | None) -> None:
    """The coordinator's service with one adapter, and rounds that never close; says where, and what."""
    set_up_allocator()
    store = Store(folder / "run")
    store.open_run("benchmark", "{}")
    config = parse_config(
        {"model.path": "none", "task.labels": ("no", "yes"), "alignment.steps": 0}, "the benchmark"
    )
    run = RunContext.of(config, store, InlineCompute())
    values = torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(0))
    adapter = store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": values})
    sessions, inbox = Sessions(5.0), Inbox(store)
    credentials = None
    if tls is not None:
        credentials = Tls(TlsFiles.in_folder(tls / "hub"), Role.COORDINATOR)
    guards = [AuthorizationInterceptor(credentials), Decoding()] if credentials else [Decoding()]
    server, address = new_server(Address("127.0.0.1", 0), tls=credentials, interceptors=guards)
    serve_federation(server, FederationService(run, sessions, inbox))
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
    """The worker's connection, several times; the last of the names is for calls that keep nothing."""

    def __init__(self, folder: Path, tls: Path | None, address: str, names: list[str]) -> None:
        self._folder = folder
        coordinator = Address.parse(address)
        *joinings, self._joining = (JoinRequest(name, 1, 2, "benchmark", EXAMPLES) for name in names)
        *ends, last = (open_tls(tls / name if tls else None, Role.WORKER) for name in names)
        self._ends = [
            CoordinatorClient(Endpoint(coordinator, 30.0, end), joining, WorkerMetrics())
            for joining, end in zip(joinings, ends, strict=True)
        ]
        self._channel: Any = new_channel(coordinator, tls=last)
        values = torch.randn(SIZE // 4, generator=torch.Generator().manual_seed(1))
        content = to_bytes({"delta.x": values})
        self._update = folder / "update"
        self._update.write_bytes(content)
        self._header = (len(content), hashlib.sha256(content).hexdigest())

    async def join(self) -> None:
        for end in self._ends:
            await end.join()
        stub: Any = FederationServiceStub(self._channel)
        self._session = (await stub.Join(wire.join_request_to_pb(self._joining))).session

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
        path = "/fedpft.v1.FederationService/DownloadArtifact"
        call = self._channel.unary_stream(path, DownloadArtifactRequest.SerializeToString, decode_download)
        request = DownloadArtifactRequest(session=self._session, sha256=adapter.sha256)
        begun = time.perf_counter()
        async for _ in call(request):
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

        tls, names = certificates(folder() / "tls", most + 1)
        log = folder() / "log"
        limits = {"plain": None, "mTLS": (tls / "hub", tls / names[0])}
        bare = {security: BareGrpc(stack, log, ends) for security, ends in limits.items()}
        sides = {"plain": Side(stack, folder(), None, names), "mTLS": Side(stack, folder(), tls, names)}
        contestants: dict[str, Callable[[], Any]] = {"raw TCP": RawTcp(stack, log).seconds}
        for security, side in sides.items():
            contestants[f"bare gRPC, {security}"] = bare[security].seconds
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
        for security in sides:
            if security in name:
                figures[name]["over_bare"] = Ratio.of(found[f"bare gRPC, {security}"], seconds)
    rows = [(n, f["gigabytes_per_second"], f["ratio"], f.get("over_bare", "")) for n, f in figures.items()]
    columns = ("direction, security, streams", "GB/s", "× raw TCP", "× bare gRPC as secure")
    print(table(columns, rows) + "\n", flush=True)
    figures["resume"] = Spread.of([half / whole for half, whole in resumed])
    print(f"fetching the second half after an interruption: {figures['resume']} of fetching all\n")
    least = {"plain": 0.6, "mTLS": 0.4}
    targets = [
        Target(
            f"download, one stream, {s}, against raw TCP",
            figures[f"down, {s}, 1, not kept"]["ratio"].value,
            v,
            True,
        )
        for s, v in least.items()
    ]
    return figures, targets


def main() -> None:
    """The command, and the processes that it starts."""
    parser = benchmark_parser(__doc__)
    roles = ["measure", "serve", "work"]
    parser.add_argument("role", nargs="?", choices=roles, default="measure", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=11, help="of every transfer [11]")
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
        case _:
            figures, targets = streams(o.repeats)
            report(o.json, figures, targets)


if __name__ == "__main__":
    main()
