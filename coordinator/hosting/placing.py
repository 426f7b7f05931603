"""Which run begins next, and which is offered to a worker first. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from common.hosted_runs import RunState
from coordinator.hosting.catalogue import KeptRun


@dataclass(frozen=True)
class Place:
    """An active run as a worker that looks for one sees it. `needed` workers are what it wants in all."""

    run: str
    waits: tuple[int, int]
    present: int
    needed: int
    here: bool = False
    """Whether the worker takes part in it."""


def to_begin(runs: Iterable[KeptRun], held: frozenset[str], at_once: int) -> list[KeptRun]:
    """Runs that there is room for, in order: first those that had begun, then by priority, then age."""
    waiting = [kept for kept in runs if not kept.entry.state.over and kept.entry.run not in held]
    waiting.sort(key=lambda kept: (kept.entry.state is not RunState.RUNNING, *kept.waits))
    return waiting[: max(0, at_once - len(held))]


def in_order(places: Sequence[Place]) -> list[str]:
    """Runs as they are offered: where the worker is, then those that lack workers, by priority, then age."""
    ordered = sorted(places, key=lambda p: (not p.here, p.present >= p.needed, *p.waits))
    return [place.run for place in ordered]
