"""What a worker hears and says beside its work: the newest task, secure aggregation's news, signs of life."""

import asyncio
import logging
from contextlib import suppress
from dataclasses import replace

from common.errors import BadMessage, BadShare, SecureRefused
from common.records import Activity, Progress, Task
from common.runtime.notifier import Notifier
from common.secagg.news import SecureNews
from worker.client import CoordinatorClient
from worker.metrics import Metrics
from worker.secure import SecureDesk

log = logging.getLogger(__name__)


class Contact:
    """Lives on the event loop."""

    def __init__(self, coordinator: CoordinatorClient, metrics: Metrics) -> None:
        self._coordinator, self._metrics = coordinator, metrics
        self.task: Task | None = None
        """The newest."""
        self.told = 0
        """How many came, the same again among them."""
        self.changed = Notifier()
        """Of the task, or of what secure aggregation has come to."""
        self.progress = Progress()
        self.desk: SecureDesk | None = None
        """Of a run that sums masked updates."""
        self._news: asyncio.Queue[SecureNews] = asyncio.Queue()
        self._urgent = Notifier()
        """Of the heartbeat: what it has to say must not wait."""

    def report(self, progress: Progress) -> None:
        """How far the work has come; told with the next heartbeat, trouble at once."""
        self.progress = progress
        self._metrics.progressed(progress)

    def hurry(self) -> None:
        """What was reported last must not wait."""
        self._urgent.notify()

    async def watch(self) -> None:
        """Keep the newest task, and hand on what comes beside it."""
        async for told in self._coordinator.tasks():
            if isinstance(told, SecureNews):
                self._news.put_nowait(told)
            else:
                self.task, self.told = told, self.told + 1
                self.changed.notify()

    async def attend(self) -> None:
        """Do what secure aggregation asks for, whatever else goes on."""
        while True:
            news = await self._news.get()
            if self.desk is None:
                continue
            try:
                await self.desk.hear(news)
            except (SecureRefused, BadShare, BadMessage) as error:
                self.desk.refused = f"secure aggregation: {error}"
                log.error("round %d: %s", news.round, error)
                self.report(
                    Progress(Activity.IDLE, news.round, trouble=self.desk.refused, attempt=news.attempt)
                )
                self.hurry()
            self.changed.notify()

    async def beat(self, interval: float) -> None:
        """Say "alive", and how far the work has come."""
        further, before = 0, self.progress
        while True:
            told = self.progress
            further += told != before
            before = told
            # Steps times their batches would tell how many examples there are: only that it goes on.
            shown = told if self.desk is None else replace(told, step=further, steps=0, loss=0.0)
            await self._coordinator.heartbeat(shown)
            if self.progress.trouble and self.progress != told:
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._urgent.wait()
