"""A TCP proxy between a worker and the coordinator that breaks connections in every way a network can."""

import asyncio
import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

_READ = 16 * 1024


class NetworkFault(StrEnum):
    """What happens to a worker's connections. Up is to the coordinator, down is to the worker."""

    REFUSED = "refused"
    """Nothing listens for a while."""
    RESET_AT_ONCE = "reset-at-once"
    """Every connection of a while is reset as it opens."""
    CLOSED_AT_ONCE = "closed-at-once"
    """Every connection of a while is closed as it opens."""
    RESET_UP = "reset-up"
    """Connections are reset after so many bytes up, in the middle of an upload."""
    RESET_DOWN = "reset-down"
    """The same down, in the middle of a download."""
    TRUNCATED_UP = "truncated-up"
    """Connections are closed after so many bytes up."""
    TRUNCATED_DOWN = "truncated-down"
    """The same down."""
    BLACK_HOLE_UP = "black-hole-up"
    """What goes up vanishes, for a while; the connection stays."""
    BLACK_HOLE_DOWN = "black-hole-down"
    """What goes down vanishes, for a while."""
    BLACK_HOLE = "black-hole"
    """Both do, and new connections are accepted and never answered."""
    STALLED = "stalled"
    """Nothing moves for a while, then everything goes on."""
    DELAYED = "delayed"
    """Every packet takes 150 ms."""
    SLOW = "slow"
    """1 MB a second each way: about 50 kB for connections that are probed as seldom as by default."""
    FLAPPING = "flapping"
    """Every connection is reset within a second, again and again."""

    @property
    def cuts_after(self) -> int | None:
        """Bytes in the fault's direction after which a connection ends."""
        return 700_000 if self.value.startswith(("reset-up", "reset-down", "truncated")) else None


# How long faults last that hold for a while, and how many connections those cut that count bytes.
_WHILE = 3.5
_DELAY = 0.15
_CONNECTIONS = 4


class Proxy:
    """Forwards to `target` in a thread of its own; `fault` strikes once `strike` is called."""

    def __init__(self, target_port: int, fault: NetworkFault) -> None:
        self._target, self.fault = target_port, fault
        self._until = 0.0
        self._striking = False
        self.struck = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._draw = random.Random(7)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._listener: socket.socket | None = listener
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def strike(self) -> None:
        """From now on, or for a while from now on."""
        self._do(self._strike())

    async def _strike(self) -> None:
        self._striking, self._until = True, time.monotonic() + _WHILE
        if self.fault is NetworkFault.REFUSED:
            self.struck += 1
            self._server.close()
            self._listener = None
            self._reset_all()
            task = asyncio.create_task(self._listen_again())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif self.fault in (NetworkFault.RESET_AT_ONCE, NetworkFault.CLOSED_AT_ONCE, NetworkFault.FLAPPING):
            self._reset_all()

    async def _listen_again(self) -> None:
        await asyncio.sleep(_WHILE)
        await self._listen()

    def _reset_all(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    @property
    def _in_while(self) -> bool:
        return self._striking and time.monotonic() < self._until

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._in_while and self.fault in (NetworkFault.RESET_AT_ONCE, NetworkFault.CLOSED_AT_ONCE):
                self.struck += 1
                if self.fault is NetworkFault.RESET_AT_ONCE:
                    _reset(writer)
                return
            back, upstream = await asyncio.open_connection("127.0.0.1", self._target)
            limit = None
            if self._striking and self.fault is NetworkFault.FLAPPING:
                limit = self._draw.uniform(0.2, 0.9) if self._in_while else None
            async with asyncio.timeout(limit):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, upstream, up=True))
                    group.create_task(self._pump(back, writer, up=False))
        except (TimeoutError, ConnectionError, OSError, ExceptionGroup, asyncio.CancelledError):
            if self.fault.value.startswith("truncated"):
                for end in (writer, upstream):
                    if end is not None:
                        end.close()
            else:
                self.struck += self.fault is NetworkFault.FLAPPING
                for end in (writer, upstream):
                    if end is not None:
                        _reset(end)
        finally:
            self._tasks.discard(task)
            for end in (writer, upstream):
                if end is not None:
                    end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool) -> None:
        if self.fault is NetworkFault.DELAYED:
            async with asyncio.TaskGroup() as group:
                way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
                group.create_task(_arrive(way, writer))
                while data := await reader.read(_READ):
                    delay = _DELAY if self._striking else 0.0
                    self.struck += self._striking
                    await way.put((time.monotonic() + delay, data))
                raise ConnectionResetError
        passed = 0
        while data := await reader.read(_READ):
            passed += len(data)
            if self._striking and await self._swallows(up, passed, len(data)):
                continue
            writer.write(data)
            await writer.drain()
        # One side has closed: the other is to hear of it.
        raise ConnectionResetError

    async def _swallows(self, up: bool, passed: int, size: int) -> bool:
        """Do to a piece of data what the fault does; whether it vanishes."""
        fault = self.fault
        if fault.cuts_after is not None:
            if fault.value.endswith("-up") == up and passed > fault.cuts_after and self.struck < _CONNECTIONS:
                self.struck += 1
                raise ConnectionResetError
            return False
        match fault:
            case NetworkFault.SLOW:
                self.struck += 1
                await asyncio.sleep(size / 1_000_000)
            case NetworkFault.STALLED if self._in_while:
                self.struck += 1
                await asyncio.sleep(self._until - time.monotonic())
            case NetworkFault.BLACK_HOLE if self._in_while:
                self.struck += 1
                return True
            case NetworkFault.BLACK_HOLE_UP if up and self._in_while:
                self.struck += 1
                return True
            case NetworkFault.BLACK_HOLE_DOWN if not up and self._in_while:
                self.struck += 1
                return True
        return False


async def _arrive(way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter) -> None:
    """Pass on what is on the way, each piece when it is due."""
    while True:
        due, data = await way.get()
        await asyncio.sleep(due - time.monotonic())
        writer.write(data)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    end = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
