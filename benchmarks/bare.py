"""What gRPC alone can do, and raw TCP: sizes of chunks, the allocator, the first chunk's delay.

    python -m benchmarks.bare [--json FILE]

A server process sends bytes from memory, a client process drops them: no service, no file, no hash. Raw
TCP sends as many from one process to another in pieces of 1 MB. Other benchmarks hold these beside theirs.
"""

import argparse
import asyncio
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from benchmarks.measuring import Ratio, Spread, benchmark_parser, interleave, report, table
from benchmarks.processes import Child, say
from common.transport.chunks import CHUNK_BYTES

SIZE = 100_000_000
# As common.allocator sets it for the services, told to glibc before the process starts.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "134217728",
}
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


# --- gRPC's ends, in plain text or with both sides' certificates ---


def open_port(server: aio.Server, tls: Path | None) -> int:
    """Have the server listen; `tls` holds tls.crt, tls.key and ca.crt."""
    if tls is None:
        return server.add_insecure_port("127.0.0.1:0")
    key, certificate, authority = _files(tls)
    credentials = grpc.ssl_server_credentials([(key, certificate)], authority, True)
    return server.add_secure_port("127.0.0.1:0", credentials)


def open_channel(address: str, tls: Path | None, options: list[tuple[str, int]]) -> aio.Channel:
    """A channel to such a server."""
    if tls is None:
        return aio.insecure_channel(address, options=options)
    key, certificate, authority = _files(tls)
    credentials = grpc.ssl_channel_credentials(authority, key, certificate)
    return aio.secure_channel(address, credentials, options=options)


def _files(folder: Path) -> tuple[bytes, bytes, bytes]:
    key, certificate, authority = (folder / name for name in ("tls.key", "tls.crt", "ca.crt"))
    return key.read_bytes(), certificate.read_bytes(), authority.read_bytes()


# --- the processes ---


async def serve(tls: Path | None) -> None:
    """Send SIZE bytes in chunks of as many as the request says."""
    content = memoryview(os.urandom(SIZE))

    async def download(request: bytes, context: Any) -> AsyncIterator[bytes]:
        step = int(request)
        for at in range(0, SIZE, step):
            yield bytes(content[at : at + step])

    server = aio.server(options=_UNLIMITED)
    handlers: dict[str, Any] = {"Download": grpc.unary_stream_rpc_method_handler(download)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("benchmark.Bare", handlers),))
    port = open_port(server, tls)
    await server.start()
    say(port)
    await server.wait_for_termination()


async def work(address: str, tls: Path | None) -> None:
    """Fetch in chunks of the size that the standard input says; answers seconds to the first and to all."""
    async with open_channel(address, tls, _UNLIMITED) as channel:
        call: Any = channel.unary_stream("/benchmark.Bare/Download")
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            begun, first = time.perf_counter(), 0.0
            async for _ in call(line.encode()):
                first = first or time.perf_counter() - begun
            say([first, time.perf_counter() - begun])


def serve_tcp() -> None:
    """Send SIZE bytes to whoever connects."""
    content = memoryview(bytearray(os.urandom(1_000_000)))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        say(listening.getsockname()[1])
        while True:
            with listening.accept()[0] as connection:
                for _ in range(SIZE // len(content)):
                    connection.sendall(content)


# --- contestants ---


class RawTcp:
    """Raw TCP: one process sends, this one receives."""

    def __init__(self, stack: ExitStack, log: Path) -> None:
        server = Child("benchmarks.bare", "tcp", log=log)
        stack.callback(server.end)
        self._port = server.hear()

    def seconds(self) -> float:
        """In which SIZE bytes arrive."""
        buffer, left = bytearray(1_000_000), SIZE
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            begun = time.perf_counter()
            while left:
                left -= connection.recv_into(buffer)
            return time.perf_counter() - begun


class BareGrpc:
    """gRPC alone, from one process to another. `tls` holds a folder of certificates for each end."""

    def __init__(
        self,
        stack: ExitStack,
        log: Path,
        ends: tuple[Path, Path] | None = None,
        environment: Mapping[str, str] = ALLOCATOR,
    ) -> None:
        told = [["--tls", str(end)] for end in ends] if ends else [[], []]
        server = Child("benchmarks.bare", "serve", *told[0], log=log, environment=environment)
        stack.callback(server.end)
        address = ["--coordinator", f"127.0.0.1:{server.hear()}"]
        self._client = Child("benchmarks.bare", "work", *address, *told[1], log=log, environment=environment)
        stack.callback(self._client.end)

    def times(self, chunk: int) -> tuple[float, float]:
        """Seconds until the first chunk and until all SIZE bytes have arrived, in chunks of so many bytes."""
        first, whole = self._client.ask(str(chunk))
        return first, whole

    def seconds(self) -> float:
        """In which SIZE bytes arrive in chunks as the services send them."""
        return self.times(CHUNK_BYTES)[1]


# --- the benchmark ---


def chunk_sizes(repeats: int) -> dict[str, Any]:
    """Sizes of chunks, with the allocator's settings and without."""
    sizes = (64 << 10, 256 << 10, 512 << 10, CHUNK_BYTES, 4 << 20)
    with ExitStack() as stack:
        log = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "log"
        raw = RawTcp(stack, log)
        contestants: dict[str, Callable[[], Any]] = {"raw TCP": lambda: (0.0, raw.seconds())}
        for told, environment in (("", {}), (", allocator set up", ALLOCATOR)):
            ends = BareGrpc(stack, log, environment=environment)
            for size in sizes:
                contestants[f"{size >> 10} KiB{told}"] = partial(ends.times, size)
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
    parser = benchmark_parser(__doc__)
    roles = ["measure", "serve", "work", "tcp"]
    parser.add_argument("role", nargs="?", choices=roles, default="measure", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=15, help="of every transfer [15]")
    parser.add_argument("--tls", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)
    options = parser.parse_args()
    match options.role:
        case "serve":
            asyncio.run(serve(options.tls))
        case "work":
            asyncio.run(work(options.coordinator, options.tls))
        case "tcp":
            serve_tcp()
        case _:
            report(options.json, {"chunk sizes": chunk_sizes(options.repeats)})


if __name__ == "__main__":
    main()
