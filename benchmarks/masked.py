"""A worker that does not train, whose updates are summed masked: a real worker's keys, shares and
openings."""

import asyncio
import time
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

from benchmarks.fleet import EXAMPLES, Mute, Phases
from common.address import Address
from common.protocol import PROTOCOL_MAX
from common.records import AdapterSpec, JoinRequest
from common.runtime.notifier import Notifier
from common.secagg.news import SecureNews
from common.storage.tensors import header_of
from common.trust.signing import signing, verifier
from common.trust.tls import TlsFiles
from worker.outbox import Outbox
from worker.secure import SecureDesk
from worker.secure_policy import SecurePolicy


class MaskedMute(Mute):
    """What it does before its first upload, a real worker does while it trains."""

    def __init__(self, address: Address, name: str, folder: Path, tls: Path, audited: bool) -> None:
        super().__init__(address, name, folder, tls, audited)
        files = TlsFiles.in_folder(tls / name)
        self._policy = SecurePolicy(True, 3, partial(signing, files), verifier(files.authority))
        self._changed = Notifier()

    def _joining(self, name: str) -> JoinRequest:
        return JoinRequest(name, 1, PROTOCOL_MAX, "benchmark", 0)

    async def join(self) -> AdapterSpec:
        """As a worker of a run that takes nothing but sums."""
        run = await self._coordinator.describe()
        outbox, folder = Outbox(self._folder / "outbox"), self._folder / "secure"
        self._desk = SecureDesk(self._name, run, self._coordinator, outbox, folder, self._policy)
        return await super().join()

    async def prepare(self) -> None:
        """The first task's adapter, an update that will do for any round, and keys for the first."""
        await super().prepare()
        await self._agree()

    async def _agree(self) -> None:
        path = await self._coordinator.download(self._task.adapter, self._folder)
        await self._desk.begin(self._task, header_of(path))
        while not self._desk.agreed:
            await self._changed.wait()

    async def round(self) -> Phases:
        """Mask, deliver, endorse, open, and fetch what came of it; then the next round's keys, untimed."""
        header = replace(self._header, round=self._task.round, adapter_sha256=self._task.adapter.sha256)
        times = [time.perf_counter()]
        masked = await asyncio.to_thread(self._desk.masked, header, self._update, EXAMPLES)
        await self._coordinator.submit(*masked)
        times.append(time.perf_counter())
        await self._next()
        times.append(time.perf_counter())
        await self._fetch()
        times.append(time.perf_counter())
        await self._agree()
        upload, wait, download = (after - before for before, after in pairwise(times))
        return {"upload": upload, "wait": wait, "download": download}

    async def _heard(self, news: SecureNews) -> None:
        await self._desk.hear(news)
        self._changed.notify()
