"""Streams that no worker would send, over real sockets: connections, messages and updates that are broken."""

import asyncio
import hashlib
import random
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fedpft.v1 import admin_pb2, federation_pb2, types_pb2
from grpc import StatusCode, aio

from common.address import Address
from common.transport.rpc import MAX_MESSAGE_BYTES

Pb = federation_pb2.SubmitUpdateRequest

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS = bytes(3) + b"\x04" + bytes(5)
_METHODS = [
    (f"/{service.full_name}/{method.name}", method.client_streaming, method.server_streaming)
    for descriptor in (federation_pb2.DESCRIPTOR, admin_pb2.DESCRIPTOR)
    for service in descriptor.services_by_name.values()
    for method in service.methods
    # This one is a well-formed wish to end the run, whatever bytes it comes with.
    if method.name != "StopRun"
]
# Longer than any answer to a bad stream should take.
_SECONDS = 30.0


def _bytes(message: bytes) -> bytes:
    return message


@dataclass
class Task:
    """What the coordinator last asked of the flooding worker: a round, and the adapter's digest."""

    round: int = 1
    adapter: str = "0" * 64


@dataclass
class Flood:
    """A worker gone bad: it joins, stays alive, and sends nothing right."""

    address: Address
    size: int
    """Bytes of an update that the round would take."""
    seed: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    sent: int = 0

    async def run(self, count: int, enough: Callable[[], bool], at_once: int = 32) -> None:
        """Send so many streams, and as many again until it is enough, up to 20 times.

        Each must be answered or end within 30 s. What came back is in `answers`.
        """
        self._draw = random.Random(self.seed)
        self._channel = aio.insecure_channel(
            str(self.address),
            options=[("grpc.max_send_message_length", -1), ("grpc.max_metadata_size", 1 << 20)],
        )
        self._task = Task()
        self._session = await self._join()
        beside = [asyncio.create_task(self._watch()), asyncio.create_task(self._beat())]
        kinds = [self._garbage, self._frames, self._any_bytes, self._oversized, self._no_header, self._update]
        room = asyncio.Semaphore(at_once)

        async def one(kind: Callable[[], Awaitable[str]]) -> None:
            async with room:
                begun = asyncio.get_running_loop().time()
                async with asyncio.timeout(_SECONDS):
                    answer = await kind()
                self.slowest = max(self.slowest, asyncio.get_running_loop().time() - begun)
                self.answers[f"{kind.__name__.strip('_')}: {answer}"] += 1

        try:
            while not self.sent or (self.sent < 20 * count and not enough()):
                async with asyncio.TaskGroup() as group:
                    for number in range(count):
                        group.create_task(one(kinds[number % len(kinds)]))
                self.sent += count
        finally:
            for each in beside:
                each.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await self._channel.close()

    # --- the worker that it pretends to be ---

    async def _join(self) -> str:
        request = federation_pb2.JoinRequest(
            worker="flood", protocol_min=1, protocol_max=2, software="flood", examples=5
        )
        call = self._channel.unary_unary("/fedpft.v1.FederationService/Join", _bytes, _bytes)
        reply = await call(request.SerializeToString(), timeout=_SECONDS)
        return federation_pb2.JoinResponse.FromString(reply).session

    async def _watch(self) -> None:
        request = federation_pb2.WatchTasksRequest(session=self._session).SerializeToString()
        call = self._channel.unary_stream("/fedpft.v1.FederationService/WatchTasks", _bytes, _bytes)
        async for reply in call(request):
            message = federation_pb2.WatchTasksResponse.FromString(reply)
            if message.WhichOneof("task") == "train":
                self._task = Task(message.train.round, message.train.adapter.sha256)

    async def _beat(self) -> None:
        progress = types_pb2.Progress(activity=types_pb2.ACTIVITY_TRAINING)
        request = federation_pb2.HeartbeatRequest(session=self._session, progress=progress)
        call = self._channel.unary_unary("/fedpft.v1.FederationService/Heartbeat", _bytes, _bytes)
        while True:
            await call(request.SerializeToString(), timeout=_SECONDS)
            await asyncio.sleep(0.2)

    # --- below gRPC ---

    async def _garbage(self) -> str:
        """A connection that speaks no HTTP/2, or something else."""
        begin = self._draw.choice([b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", _PREFACE])
        return await self._raw(begin + self._draw.randbytes(self._draw.choice([0, 1, 9, 100, 5000])))

    async def _frames(self) -> str:
        """HTTP/2 whose frames break its rules: lengths, types, streams and flags at random."""
        frames = [_PREFACE, _SETTINGS]
        for _ in range(self._draw.randint(1, 20)):
            length = self._draw.choice([0, 4, 8, 16, 16385, (1 << 24) - 1])
            stream = self._draw.choice([0, 1, 2, 3, (1 << 31) - 1])
            head = struct.pack(">I", length)[1:] + self._draw.randbytes(2) + struct.pack(">I", stream)
            frames += [head, self._draw.randbytes(min(length, 64))]
        return await self._raw(b"".join(frames))

    async def _raw(self, content: bytes) -> str:
        reader, writer = await asyncio.open_connection(self.address.host, self.address.port)
        try:
            writer.write(content)
            await writer.drain()
            # Half of them hang up at once, the others wait for what the server makes of it.
            if self._draw.random() < 0.5:
                async with asyncio.timeout(0.2):
                    while await reader.read(65536):
                        pass
        except TimeoutError:
            return "left open"
        except OSError:
            return "cut off"
        finally:
            writer.close()
        return "closed"

    # --- below the protocol ---

    async def _any_bytes(self) -> str:
        """Bytes at random, to any call."""
        path, streams_up, streams_down = self._draw.choice(_METHODS)
        messages = [self._draw.randbytes(self._draw.choice([0, 1, 10, 1000, 60_000])) for _ in range(3)]
        return await self._call(path, messages if streams_up else messages[:1], streams_up, streams_down)

    async def _oversized(self) -> str:
        """A message that is longer than any may be."""
        path, streams_up, streams_down = self._draw.choice(_METHODS)
        size = MAX_MESSAGE_BYTES + self._draw.choice([1, 1000, 1_000_000])
        return await self._call(path, [bytes(size)], streams_up, streams_down)

    # --- below what an update is ---

    async def _no_header(self) -> str:
        """A submission without its header, or of nothing."""
        chunk = Pb(chunk=types_pb2.Chunk(offset=0, data=b"x")).SerializeToString()
        return await self._submit(self._draw.choice([[], [chunk], [b""], [chunk] * 5]))

    async def _update(self) -> str:
        """A submission with one thing wrong: in its header, its chunks or its content."""
        draw, task = self._draw, self._task
        wrong = draw.choice(
            ("session", "round", "adapter", "size", "digest", "examples", "loss", "chunks", "content")
        )

        def said(what: str, right: Any, *others: Any) -> Any:
            return draw.choice(others) if what == wrong else right

        # The size that the round wants, and a safetensors header that lies or is none.
        content = draw.randbytes(draw.choice([self.size, self.size, 100, self.size + (1 << 19)]))
        if draw.random() < 0.5:
            content = struct.pack("<Q", draw.choice([2, 100, 5000, 1 << 40])) + b"{" + content[9:]
        most = (1 << 64) - 1
        header = federation_pb2.UpdateHeader(
            session=said("session", self._session, "", "nobody's"),
            round=said("round", task.round, 0, task.round + 1, (1 << 32) - 1),
            adapter_sha256=said("adapter", task.adapter, "0" * 64, "../../../etc/passwd"),
            size=said("size", len(content), 0, len(content) - 1, len(content) + 1, 1 << 40, most),
            sha256=said("digest", hashlib.sha256(content).hexdigest(), "f" * 64, "../../etc/passwd", ""),
            examples=said("examples", 5, 0, 6, most),
            loss=said("loss", 1.0, float("nan"), float("inf")),
            seconds=1.0,
        )
        middle = len(content) // 2
        pieces = [(0, content[:middle]), (middle, content[middle:])]
        if wrong == "chunks":
            pieces = draw.choice(
                (
                    [(1, content)],
                    [(most, content)],
                    pieces[::-1],
                    pieces[:1],
                    [*pieces, (0, content)],
                    [(0, b"")],
                )
            )
        messages = [Pb(header=header)]
        messages += [Pb(chunk=types_pb2.Chunk(offset=at, data=data)) for at, data in pieces]
        if draw.random() < 0.2:
            messages.append(Pb(header=header))
        return await self._submit([message.SerializeToString() for message in messages])

    async def _submit(self, messages: Iterable[bytes]) -> str:
        return await self._call("/fedpft.v1.FederationService/SubmitUpdate", messages, True, False)

    async def _call(self, path: str, messages: Iterable[bytes], streams_up: bool, streams_down: bool) -> str:
        given = list(messages)

        async def requests() -> AsyncIterator[bytes]:
            for message in given:
                yield message

        request: Any = requests() if streams_up else given[0]
        try:
            if streams_down:
                stream = self._channel.unary_stream(path, _bytes, _bytes)(request, timeout=_SECONDS)
                await stream.read()
                stream.cancel()
            elif streams_up:
                await self._channel.stream_unary(path, _bytes, _bytes)(request, timeout=_SECONDS)
            else:
                await self._channel.unary_unary(path, _bytes, _bytes)(request, timeout=_SECONDS)
        except aio.AioRpcError as error:
            # Without the coordinator's mark it is not its answer, but a stream that ended as it was sent.
            marked = any(key == "fedpft-error" for key, _ in error.trailing_metadata() or ())
            if error.code() is StatusCode.INTERNAL and not marked:
                return "reset"
            return error.code().name
        return "OK"
