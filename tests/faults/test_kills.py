"""Killed at any point of a run, a service comes back, and the run ends as if nothing had happened."""

from collections.abc import Callable, Collection
from enum import StrEnum

import pytest

from tests.faults.conftest import Make
from tests.faults.federation import Federation, Outcome
from tests.faults.points import (
    COORDINATOR_AGAIN,
    WORKER_AGAIN,
    CoordinatorPoint,
    WorkerPoint,
    is_volatile,
)

# In `make test`, too.
QUICK = {
    "file-written/update=power",
    "reply-received/SubmitUpdate=kill",
    "transaction-committed/scores=kill",
}
# With those, in `make test-all`: one of every kind.
USUAL = {
    "chunk-received/sub_model#2=kill",
    "file-renamed/adapter=kill",
    "transaction-committed/update=kill",
    "file-renamed/update-header=power",
    "transaction-made/adapter=kill",
    "reply-ready/SubmitUpdate=kill",
    "chunk-received/upload#3=power",
    "step/round-closed=kill",
    "transaction-committed/outcome=kill",
    "step/trained-a-step=kill",
    "step/validated=kill",
    "step/scored=kill",
}


def faults(
    points: type[StrEnum],
    again: list[tuple[StrEnum, int]],
    quick: Collection[str] = QUICK,
    usual: Collection[str] = USUAL,
) -> list[object]:
    """Each point killed once; some a second time, later; and those where power matters without it."""
    names = [*(f"{point}=kill" for point in points), *(f"{point}#{n}=kill" for point, n in again)]
    names += [f"{point}=power" for point in points if is_volatile(point)]
    names += [f"{point}#{n}=power" for point, n in again if is_volatile(point)]
    return [pytest.param(name, marks=_marks(name, quick, usual)) for name in names]


def _marks(fault: str, quick: Collection[str], usual: Collection[str]) -> tuple[pytest.MarkDecorator, ...]:
    if fault in quick:
        return ()
    return (pytest.mark.slow,) if fault in usual else (pytest.mark.faults,)


def note_fault(victim: str, told: str, fault: str, note: Callable[[str, object], None]) -> None:
    """For the table at the end."""
    note("fault", f"{victim} {told.partition('=')[2]}: {told.partition('/')[0]}")
    note("point", fault.partition("=")[0])


def struck(federation: Federation, victim: str) -> None:
    """The fault must have."""
    assert federation.kills == {victim: 1}, f"the fault did not strike: {federation.kills}"


def end(federation: Federation, victim: str, fault: str, note: Callable[[str, object], None]) -> None:
    """See the run through; the fault must have struck."""
    note_fault(victim, fault, fault, note)
    federation.faults[victim] = [fault]
    federation.start_all()
    # A worker that dies as it says goodbye may come back when the coordinator has gone home.
    late = ("Leave" in fault and victim != "coordinator") or "delivered" in fault
    federation.supervise(forgive=(victim,) if late else ())
    struck(federation, victim)


@pytest.mark.parametrize("fault", faults(CoordinatorPoint, COORDINATOR_AGAIN))
def test_a_killed_coordinator_goes_on(
    fault: str, make: Make, reference: Outcome, record_property: Callable[[str, object], None]
) -> None:
    federation = make()
    end(federation, "coordinator", fault, record_property)
    assert federation.outcome() == reference


@pytest.mark.parametrize("fault", faults(WorkerPoint, WORKER_AGAIN))
def test_a_killed_worker_comes_back(
    fault: str, make: Make, reference: Outcome, record_property: Callable[[str, object], None]
) -> None:
    federation = make()
    end(federation, "worker-1", fault, record_property)
    assert federation.outcome() == reference


def test_the_enums_name_every_point_that_a_run_passes(undisturbed: Federation) -> None:
    def passed(name: str) -> set[str]:
        return set((undisturbed.folder / f"{name}.trace").read_text().split())

    assert passed("coordinator") == set(CoordinatorPoint)
    assert passed("worker-1") | passed("worker-2") == set(WorkerPoint)


@pytest.mark.faults
def test_one_death_after_the_other_changes_nothing(make: Make, reference: Outcome) -> None:
    federation = make()
    federation.faults = {
        "coordinator": [
            "file-renamed/sub_model=power",
            "transaction-committed/update=kill",
            "step/round-opened=kill",
            "file-written/adapter=power",
            "step/re-aligned=kill",
            "transaction-made/try-closed=kill",
        ],
        "worker-1": ["chunk-received/sub_model#2=power", "step/trained=kill", "chunk-sent/update#3=kill"],
        "worker-2": ["file-written/update=power", "reply-received/SubmitUpdate=kill"],
    }
    deaths = {name: len(faults) for name, faults in federation.faults.items()}
    federation.start_all()
    federation.supervise()
    assert federation.kills == deaths
    assert federation.outcome() == reference
