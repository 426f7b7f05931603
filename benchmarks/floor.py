"""The least that a round can be: bytes there and back by gRPC, with the same TLS and the same hash, no more.

    python -m benchmarks.floor serve --bytes N --workers N [--tls FOLDER]
    python -m benchmarks.floor work --coordinator HOST:PORT --workers N [--tls FOLDER]

The server holds one version in memory and hashes it once; it hashes what the workers upload and drops it.
Every worker uploads as many bytes as it has downloaded, then downloads again once all have uploaded, and
hashes what comes. Nothing touches a disk, nothing is checked, added up, counted or written down.
Commands and answers are those of benchmarks.fleet.
"""

import argparse
import asyncio
import hashlib
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from grpc import aio

from benchmarks.bare import open_channel, open_port
from benchmarks.processes import parser_of, say
from common.transport.chunks import CHUNK_BYTES

_SERVICE = "benchmark.Floor"
_OPTIONS = [("grpc.max_receive_message_length", 2 * CHUNK_BYTES), ("grpc.use_local_subchannel_pool", 1)]


def chunks(content: memoryview) -> list[bytes]:
    """Messages to send."""
    return [bytes(content[at : at + CHUNK_BYTES]) for at in range(0, len(content), CHUNK_BYTES)]


class Server:
    """One version, for so many workers."""

    def __init__(self, content: bytes, workers: int) -> None:
        self._content, self._workers = memoryview(content), workers
        self._uploaded = 0
        self._version = asyncio.Event()

    async def download(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for at in range(0, len(self._content), CHUNK_BYTES):
            yield bytes(self._content[at : at + CHUNK_BYTES])

    async def upload(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        digest = hashlib.sha256()
        async for chunk in requests:
            digest.update(chunk)
        version = self._version
        self._uploaded += 1
        if self._uploaded == self._workers:
            hashlib.sha256(self._content)
            self._uploaded, self._version = 0, asyncio.Event()
            version.set()
        await version.wait()
        return digest.digest()

    def handler(self) -> grpc.GenericRpcHandler:
        """For a server."""
        return grpc.method_handlers_generic_handler(
            _SERVICE,
            {
                "Download": grpc.unary_stream_rpc_method_handler(self.download),
                "Upload": grpc.stream_unary_rpc_method_handler(self.upload),
            },
        )


class Client:
    """One worker on a connection of its own."""

    def __init__(self, channel: aio.Channel) -> None:
        self._download: Any = channel.unary_stream(f"/{_SERVICE}/Download")
        self._upload: Any = channel.stream_unary(f"/{_SERVICE}/Upload")
        self._content = b""

    async def fetch(self) -> None:
        digest, parts = hashlib.sha256(), []
        async for chunk in self._download(b""):
            digest.update(chunk)
            parts.append(chunk)
        self._content = b"".join(parts)

    async def round(self) -> dict[str, float]:
        begun = time.perf_counter()
        await self._upload(chunk for chunk in chunks(memoryview(self._content)))
        uploaded = time.perf_counter()
        await self.fetch()
        return {"upload": uploaded - begun, "download": time.perf_counter() - uploaded}


async def serve(options: argparse.Namespace) -> None:
    """Until killed; says its port first."""
    server = aio.server(options=_OPTIONS)
    server.add_generic_rpc_handlers((Server(os.urandom(options.bytes), options.workers).handler(),))
    port = open_port(server, options.tls)
    await server.start()
    say(port)
    await server.wait_for_termination()


async def work(options: argparse.Namespace) -> None:
    """Do what the standard input says."""
    channels = (open_channel(options.coordinator, options.tls, _OPTIONS) for _ in range(options.workers))
    clients = [Client(channel) for channel in channels]
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        match line:
            case "join":
                say(await asyncio.gather(*(client.fetch() for client in clients)))
            case "renew":
                # Nothing is looked at, so that the same content will do.
                say(None)
            case "round":
                found = await asyncio.gather(*(client.round() for client in clients))
                say({part: statistics.fmean(phases[part] for phases in found) for part in found[0]})


def main() -> None:
    """The command."""
    parser = parser_of(__doc__)
    parser.add_argument("role", choices=["serve", "work"])
    parser.add_argument("--bytes", type=int, default=0, help="of the version")
    parser.add_argument("--workers", type=int, default=1, help="the server's in all, or in this process")
    parser.add_argument("--coordinator", help="where the server listens")
    parser.add_argument("--tls", type=Path, help="holds tls.crt, tls.key and ca.crt")
    options = parser.parse_args()
    asyncio.run(serve(options) if options.role == "serve" else work(options))


if __name__ == "__main__":
    main()
