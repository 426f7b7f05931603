"""What happened in a run: kept in the store, logged, counted, and told to whoever follows."""

import logging
import time
from collections.abc import AsyncIterator

from common.errors import StoreError
from common.run_status import Event
from common.runtime.notifier import Notifier
from coordinator.storage.event_levels import level_of
from coordinator.storage.store import Store

log = logging.getLogger(__name__)


class EventLog:
    """Numbers and spreads events. Lives on the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._last = store.events.last()
        self._changed = Notifier()
        self._closed = False

    def record(self, kind: str, text: str, round: int = 0, worker: str = "", **values: float) -> None:
        """Something happened; `text` is one line for people, `values` its figures."""
        self._last += 1
        log.log(level_of(kind), "%s", text, extra={"event": kind, "round": round, "worker": worker})
        try:
            self._store.events.add(Event(self._last, time.time(), kind, text, round, worker, values))
        except StoreError as error:
            # No event is worth a run. What matters fails by itself on the same disk.
            log.error("event %d is not kept: %s", self._last, error)
        self._changed.notify()

    async def follow(self, after: int) -> AsyncIterator[Event]:
        """Events with a higher sequence number, and then new ones as they come, until the end."""
        while True:
            looked_at = self._last
            for event in self._store.events.all(after):
                yield event
                after = event.sequence
            if looked_at < self._last:
                continue
            if self._closed:
                return
            await self._changed.wait()

    def close(self) -> None:
        """No more events will come: whoever follows is told the last ones and ends."""
        self._closed = True
        self._changed.notify()
