"""Workers that do not train, several to a process: real connections and transfers, updates made beforehand.

    python -m benchmarks.fleet --coordinator HOST:PORT --folder FOLDER --names A B [--tls FOLDER]

Commands are lines on the standard input, their answers JSON on the standard output:

- `here`: nothing; the answer comes once the process is up;
- `join`: every worker joins, takes its task, fetches the adapter and prepares an update to it;
- `renew`: every worker has another update of the same size, as after a training;
- `round`: every worker delivers its update and fetches the adapter that comes of all: a whole round, from
  the first upload to the last download; answers with the seconds of its parts;
- `idle`: every worker joins, waits for tasks and sends heartbeats;
- `pushed`: when each worker has its next task.
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import statistics
import struct
import sys
import time
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.processes import parser_of, say
from common.address import Address
from common.model.adapter import trained
from common.records import Activity, AdapterSpec, JoinRequest, Progress, TrainTask, UpdateHeader
from common.runtime.allocator import set_up_allocator
from common.secagg.news import SecureNews
from common.storage.files import sha256_of
from common.storage.tensors import TensorFile, to_bytes
from common.trust.identity import Role
from common.trust.tls import open_tls
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics
from worker.sent_log import SentLog

EXAMPLES = 100
JOINS = 4

Phases = dict[str, float]


class Mute:
    """A worker that does not train."""

    def __init__(self, address: Address, name: str, folder: Path, tls: Path | None, audited: bool) -> None:
        self._name, self._folder, self._update = name, folder, folder / "update"
        self._coordinator = CoordinatorClient(
            Endpoint(address, 600.0, open_tls(tls / name if tls else None, Role.WORKER)),
            self._joining(name),
            Metrics(),
            SentLog(folder) if audited else None,
        )
        self._tasks: asyncio.Queue[tuple[float, TrainTask]] = asyncio.Queue()
        self._beside: list[asyncio.Task[None]] = []
        self._renewals = itertools.count()

    def _joining(self, name: str) -> JoinRequest:
        return JoinRequest(name, 1, 2, "benchmark", EXAMPLES)

    async def join(self) -> AdapterSpec:
        """Join, and do what a worker does beside its work."""
        reply = await self._coordinator.join()
        self._beside = [
            asyncio.create_task(self._watch()),
            asyncio.create_task(self._beat(reply.heartbeat_seconds)),
        ]
        return reply.run.adapter

    async def prepare(self) -> None:
        """The first task's adapter, and an update to it that will do for any round."""
        spec = await self.join()
        await self._next()
        adapter = await self._fetch()
        draw = torch.Generator().manual_seed(int(hashlib.sha256(self._name.encode()).hexdigest()[:8], 16))
        delta = {
            f"delta.{name}": 1e-6 * torch.randn(tensor.shape, generator=draw)
            for name, tensor in TensorFile(adapter).items()
            if trained(name, spec)
        }
        self._update.write_bytes(to_bytes(delta))
        self.renew()

    def renew(self) -> None:
        """Another last value: the same content again would take the place of the last round's file."""
        with self._update.open("r+b") as file:
            file.seek(-4, os.SEEK_END)
            file.write(struct.pack("<f", 1e-6 * next(self._renewals)))
        size, digest = self._update.stat().st_size, sha256_of(self._update)
        self._header = UpdateHeader("", 0, "", size, digest, EXAMPLES, 0.5, 0.0)

    async def _next(self) -> None:
        self._task = (await self._tasks.get())[1]

    async def _fetch(self) -> Path:
        path = await self._coordinator.download(self._task.adapter, self._folder)
        for other in self._folder.glob("?" * 64):
            if other != path:
                other.unlink()
        return path

    async def round(self) -> Phases:
        """Deliver, wait for the next task, and fetch what came of it."""
        header = replace(self._header, round=self._task.round, adapter_sha256=self._task.adapter.sha256)
        times = [time.perf_counter()]
        await self._coordinator.submit(header, self._update)
        times.append(time.perf_counter())
        await self._next()
        times.append(time.perf_counter())
        await self._fetch()
        times.append(time.perf_counter())
        upload, wait, download = (after - before for before, after in pairwise(times))
        return {"upload": upload, "wait": wait, "download": download}

    async def pushed(self) -> float:
        """When the next task came."""
        return (await self._tasks.get())[0]

    async def _watch(self) -> None:
        async for task in self._coordinator.tasks():
            if isinstance(task, TrainTask):
                self._tasks.put_nowait((time.time(), task))
            elif isinstance(task, SecureNews):
                await self._heard(task)

    async def _heard(self, news: SecureNews) -> None:
        """Of a run that sums masked updates."""

    async def _beat(self, interval: float) -> None:
        while True:
            await self._coordinator.heartbeat(Progress(Activity.IDLE))
            await asyncio.sleep(interval)


class Fleet:
    """The workers of one process, all at once."""

    def __init__(self, mutes: list[Mute]) -> None:
        self._mutes = mutes

    async def here(self) -> None:
        """The process is up."""

    async def join(self) -> None:
        """All have their first adapter and an update to deliver."""
        await self._all(mute.prepare() for mute in self._mutes)

    async def renew(self) -> None:
        """All have another update to deliver."""
        for mute in self._mutes:
            mute.renew()

    async def round(self) -> Phases:
        """Seconds of a round's parts, the mean over the workers."""
        found = await asyncio.gather(*(mute.round() for mute in self._mutes))
        return {part: statistics.fmean(phases[part] for phases in found) for part in found[0]}

    async def idle(self) -> None:
        """All have joined; as many at a time as would come by chance, not thousands in one moment."""
        places = asyncio.Semaphore(JOINS)

        async def one(mute: Mute) -> None:
            async with places:
                await mute.join()

        await self._all(one(mute) for mute in self._mutes)

    async def pushed(self) -> list[float]:
        """When each worker had its next task: seconds of the system's clock."""
        return list(await asyncio.gather(*(mute.pushed() for mute in self._mutes)))

    async def _all(self, work: Iterable[Coroutine[Any, Any, object]]) -> None:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)


async def serve(options: argparse.Namespace) -> None:
    """Do what the standard input says, until it ends."""
    set_up_allocator()
    mutes: list[Mute] = []
    for name in options.names:
        folder = options.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        audited = not options.unaudited
        if options.secure:
            from benchmarks.masked import MaskedMute

            mutes.append(MaskedMute(options.coordinator, name, folder, options.tls, audited))
        else:
            mutes.append(Mute(options.coordinator, name, folder, options.tls, audited))
    fleet = Fleet(mutes)
    commands = {
        "here": fleet.here,
        "join": fleet.join,
        "renew": fleet.renew,
        "round": fleet.round,
        "idle": fleet.idle,
        "pushed": fleet.pushed,
    }
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        say(await commands[line]())


def main() -> None:
    """The command."""
    parser = parser_of(__doc__)
    parser.add_argument("--coordinator", type=Address.parse, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--names", nargs="+", required=True)
    parser.add_argument("--tls", type=Path, help="holds a folder of certificates for every name")
    parser.add_argument("--unaudited", action="store_true", help="keep no log of what is sent")
    parser.add_argument("--secure", action="store_true", help="updates are summed masked")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
