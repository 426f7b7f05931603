"""Workers that tell their classes before they may join. Lives on the event loop."""

from collections.abc import AsyncIterator

from common.errors import DataError, RunFailed, TooMany
from common.records import ClassCounts
from common.runtime.notifier import Notifier


class Census:
    """What is told counts while its worker's call lasts: until the census is over."""

    def __init__(self) -> None:
        self.changed = Notifier()
        self.told: dict[str, ClassCounts] = {}
        """By worker; of those that still wait."""
        self._known: frozenset[str] | None = None
        self._needed: int | None = None
        self._over = False
        self._failed = ""

    def open(self, needed: int, known: tuple[str, ...]) -> None:
        """Wait for `needed` workers; `known` are the run's labels, none when these are asked for."""
        self._needed, self._known = needed, frozenset(known) or None
        self.changed.notify()

    def close(self, failed: str = "") -> None:
        """Let all go that wait: they may join now, or the run has failed, and why."""
        self._over, self._failed = True, failed
        self.changed.notify()

    async def take(self, told: ClassCounts, most_workers: int) -> AsyncIterator[str]:
        """A worker's classes; gives what is waited for, for people, until the census is over.

        Raises DataError for a class that the run does not know, TooMany beyond `most_workers`, RunFailed.
        """
        if told.worker not in self.told and len(self.told) >= most_workers:
            raise TooMany(f"{most_workers} workers have told their classes; limits.workers allows no more")
        self.told[told.worker] = told
        self.changed.notify()
        last = ""
        try:
            while not self._over:
                if self._known is not None and (unknown := sorted(told.counts.keys() - self._known)):
                    raise DataError(f"the data have label {unknown[0]!r}, which the run does not know")
                if (now := self._waiting_for()) != last:
                    # While it is sent much can happen: look again before waiting.
                    yield (last := now)
                    continue
                await self.changed.wait()
        finally:
            # A worker that is gone counts no more, unless it has told again by now.
            if self.told.get(told.worker) is told:
                del self.told[told.worker]
                self.changed.notify()
        if self._failed:
            raise RunFailed(self._failed)

    def _waiting_for(self) -> str:
        if self._needed is None:
            return "the coordinator is starting"
        # Not who else is there: that is between each worker and the owner.
        return f"the run waits until {self._needed} worker(s) have told their classes"
