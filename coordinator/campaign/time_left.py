"""How long what is under way will take, by how fast it has been: estimates for people."""

from collections.abc import Sequence
from itertools import pairwise

from common.run_status import Event
from coordinator.storage.store import Store

# Rounds whose length the estimate goes by.
_LATELY = 3
# Sooner there is nothing to go by: the first steps are slow.
_LEAST_SECONDS, _LEAST_STEPS = 2.0, 2


class Pace:
    """Of a computation in steps. Told of each; `clock` in seconds."""

    def __init__(self) -> None:
        self._began: tuple[float, int, int] | None = None
        self._now: tuple[float, int] = (0.0, 0)

    def on_step(self, step: int, steps: int, now: float) -> None:
        """So many of so many steps are done. With fewer than before, or of others, it is another computation,
        which may begin in the middle."""
        if self._began is None or steps != self._began[2] or step < self._now[1]:
            self._began = (now, step, steps)
        self._now = (now, step)

    def left(self, now: float) -> float:
        """Seconds until the last step; 0 where there is nothing to go by."""
        if self._began is None:
            return 0.0
        (began, first, steps), (latest, step) = self._began, self._now
        if step - first < _LEAST_STEPS or latest - began < _LEAST_SECONDS:
            return 0.0
        # Since the last step, too, time has passed.
        return max(0.0, (latest - began) / (step - first) * (steps - step) - (now - latest))


def rounds_left(store: Store, rounds: int) -> float:
    """Seconds that the rounds to come take if they last as the last ones did; 0 where there is nothing to go
    by."""
    return of_rounds(store.events.last_of(("round_closed",), _LATELY + 1), rounds)


def of_rounds(events: Sequence[Event], rounds: int) -> float:
    """The same, by the closing of the last ones. A pause in between, with nobody at work, is no round."""
    closed = sorted(events, key=lambda event: event.sequence)
    lengths = sorted(b.time - a.time for a, b in pairwise(closed) if b.round == a.round + 1)
    if not lengths:
        return 0.0
    return lengths[len(lengths) // 2] * max(0, rounds - closed[-1].round)
