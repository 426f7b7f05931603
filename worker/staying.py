"""A worker that stays: run after run, with whatever is between them."""

import asyncio
import gc
import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import aclosing

from common.errors import (
    BadMessage,
    ConfigError,
    DataError,
    FedPftError,
    ModelError,
    NotAllowed,
    ProtocolMismatch,
    RunFailed,
    Stopped,
    StoreError,
)
from common.records import RunSpec
from common.runtime.allocator import give_back
from worker.client import CoordinatorClient
from worker.fresh import Fresh
from worker.joining import require_wanted
from worker.local_model import Place
from worker.retries import backoff
from worker.taking_part import Means, declined, take_part

log = logging.getLogger(__name__)

# It is looked so often whether a rest is over.
_REST_SECONDS = 30.0
# What is waited between two runs at most, where the same is offered again and again.
_LONGEST_PAUSE_SECONDS = 60.0
# Runs that this worker takes no part in, as it is now, are remembered.
_REMEMBERED = 1000
# What speaks against a run with these data, or under this policy, and will again.
_AGAINST = (NotAllowed, DataError, ModelError, BadMessage, ConfigError, ProtocolMismatch)


class Staying:
    """Lives on the event loop. `place` gives where and under which policy this worker works now, `client`
    connects to the coordinator anew."""

    def __init__(
        self, means: Means, fresh: Fresh, place: Callable[[], Place], client: Callable[[], CoordinatorClient]
    ) -> None:
        self._means, self._fresh, self._place, self._client = means, fresh, place, client
        self._declined: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._last = ""
        self._told = self._complained = ""
        self._pauses = backoff(1.0, _LONGEST_PAUSE_SECONDS)

    async def run(self) -> None:
        """For ever. Raises StoreError when this worker's own folder cannot be used."""
        # What was imported stays: looking through it after every run would be most of the work.
        gc.freeze()
        while True:
            await self._fresh.refresh()
            await self._rest()
            client = self._client()
            try:
                await self._one_run(client)
            except (Stopped, StoreError):
                raise
            except FedPftError as error:
                # What may become right again, such as a certificate that has run out, or another of the name.
                told = " ".join(str(error).split())
                if told != self._complained:
                    self._complained = told
                    log.error("%s; trying again, once a minute at least", told)
                await asyncio.sleep(next(self._pauses))
            finally:
                await client.close()
            del client
            gc.collect()
            give_back()

    async def _rest(self) -> None:
        rest = self._place().rest
        while why := await asyncio.to_thread(rest.why):
            self._tell(f"no run is joined: {why}")
            await asyncio.sleep(_REST_SECONDS)

    def _tell(self, what: str) -> None:
        """Once, until there is something else to tell."""
        if what != self._told:
            self._told = what
            log.info("%s", what)

    async def _one_run(self, client: CoordinatorClient) -> None:
        """Wait for a run and see it through; or until what was read has changed."""
        looking = asyncio.create_task(self._find(client))
        changing = asyncio.create_task(self._fresh.until_changed())
        try:
            await asyncio.wait({looking, changing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            changing.cancel()
            if not looking.done():
                looking.cancel()
            await asyncio.gather(looking, changing, return_exceptions=True)
        if looking.cancelled() or not looking.result():
            return
        if await asyncio.to_thread(self._place().rest.why):
            return
        self._told = ""
        await self._see_through(client)

    async def _find(self, client: CoordinatorClient) -> bool:
        """Whether there is a run to join; those that do not suit are declined meanwhile."""
        async with aclosing(client.found(self._fresh.state)) as stream:
            async for found in stream:
                if isinstance(found, str):
                    self._tell(f"waiting for {found}")
                else:
                    return await self._suits(client, found)
        # Of a coordinator of one run that is older than the question.
        run = await client.described()
        return run is None or await self._suits(client, run)

    async def _suits(self, client: CoordinatorClient, run: RunSpec) -> bool:
        """Whether it is to be joined now; one that does not fit is declined."""
        if run.run_id == self._last or (run.run_id, self._fresh.state) in self._declined:
            # That it is offered again must not keep this worker busy.
            await asyncio.sleep(next(self._pauses))
        else:
            self._pauses = backoff(1.0, _LONGEST_PAUSE_SECONDS)
        if await asyncio.to_thread(self._fresh.changed):
            # What was read last decides on no run.
            return False
        self._last = run.run_id
        client.expect(run.run_id)
        client.known = run
        if (run.run_id, self._fresh.state) in self._declined:
            return False
        try:
            await asyncio.to_thread(require_wanted, self._place(), run, self._fresh.data)
            self._fresh.data.require_form(run.task)
        except _AGAINST as error:
            await self._decline(client, run, error)
            return False
        return True

    async def _see_through(self, client: CoordinatorClient) -> None:
        try:
            if await take_part(self._means, self._place(), self._fresh.data, client):
                self._pauses = backoff(1.0, _LONGEST_PAUSE_SECONDS)
        except RunFailed as error:
            log.warning("%s", error)
        except _AGAINST as error:
            if (run := client.run or client.known) is None:
                raise
            await self._decline(client, run, error)
        if client.run is not None:
            self._last, self._complained = client.run.run_id, ""

    async def _decline(self, client: CoordinatorClient, run: RunSpec, error: FedPftError) -> None:
        log.warning("declining run %s: %s", run.run_id, " ".join(str(error).split()))
        self._declined[run.run_id, self._fresh.state] = None
        while len(self._declined) > _REMEMBERED:
            self._declined.popitem(last=False)
        await declined(self._means, self._place(), client, self._fresh.state, error)
