"""Runs as a coordinator holds them that holds many: what admins submit, and what they are told."""

from dataclasses import dataclass
from enum import StrEnum


class RunState(StrEnum):
    """Where a run stands with its coordinator."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        """Whether it will not go on."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True)
class Submission:
    """A run that an admin wants. `request` is drawn at random, and the same when it is asked for again."""

    request: str
    configuration: str
    settings: tuple[str, ...] = ()
    priority: int = 0
    label: str = ""


@dataclass(frozen=True)
class RunFacts:
    """How far a running run has come. `seconds_left` estimates its rounds alone; 0 where there is nothing to
    go by."""

    phase: str = ""
    round: int = 0
    rounds: int = 0
    workers: int = 0
    score: str = ""
    seconds_left: float = 0.0


@dataclass(frozen=True)
class RunEntry:
    """A run as its coordinator holds it. Times in seconds since 1970, 0 where it has not come to that."""

    run: str
    label: str
    priority: int
    submitter: str
    submitted: float
    state: RunState = RunState.QUEUED
    reason: str = ""
    began: float = 0.0
    ended: float = 0.0
    facts: RunFacts = RunFacts()
