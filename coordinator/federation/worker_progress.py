"""How far workers have come with their turns, and since when no further. Time is an argument."""

from collections.abc import Iterable
from dataclasses import dataclass, field

# A process is heard of now and then only, so two that die at the same place seem to have come differently
# far. Further than another is who came further by this factor.
_FURTHER = 1.25


@dataclass
class _Turn:
    """One worker's, in one round."""

    since: float
    """When its present process last came further."""
    best: dict[str, int] = field(default_factory=dict)
    """How far its processes before this one came, by what is counted: steps, or bytes of a file."""
    here: dict[str, int] = field(default_factory=dict)
    """How far the present one came."""
    further: bool = False
    """Whether that is further than those before it."""
    queued: bool = False
    """Whether it waits for the coordinator: that is not its standstill."""


class WorkerProgress:
    """Of all workers of the open round. Noted at every heartbeat and chunk, so this is no state machine."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    def begin(self, workers: Iterable[str], now: float) -> None:
        """These workers have a turn now."""
        self._turns = {worker: _Turn(now) for worker in workers}

    def advance(self, worker: str, what: str, amount: int, now: float) -> tuple[bool, bool]:
        """The worker has done so much of something: is that further, and further than processes before it?"""
        turn = self._turns.get(worker)
        if turn is None or amount <= turn.here.get(what, 0):
            return False, False
        turn.here[what], turn.since, turn.queued = amount, now, False
        further = amount > _FURTHER * turn.best.get(what, 0)
        turn.further = turn.further or further
        return True, further

    def queue(self, worker: str) -> None:
        """The worker waits for its turn at the coordinator, until it comes further."""
        if turn := self._turns.get(worker):
            turn.queued = True

    def is_further(self, worker: str) -> bool:
        """Whether the worker's present process has come further than those before it."""
        turn = self._turns.get(worker)
        return turn is not None and turn.further

    def restart(self, worker: str, now: float) -> None:
        """The worker is there as another process, which begins anew."""
        if turn := self._turns.get(worker):
            turn.best |= {what: max(amount, turn.best.get(what, 0)) for what, amount in turn.here.items()}
            turn.here, turn.further, turn.since, turn.queued = {}, False, now, False

    def standing(self, seconds: float, now: float) -> list[str]:
        """Workers that have come no further for so long, by name."""
        return sorted(w for w, t in self._turns.items() if not t.queued and now - t.since >= seconds)
