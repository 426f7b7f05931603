"""Which run begins next, and which is offered first."""

from dataclasses import replace

from common.hosted_runs import RunEntry, RunState
from coordinator.hosting.catalogue import KeptRun
from coordinator.hosting.placing import Place, in_order, to_begin


def kept(run: str, number: int, priority: int = 0, state: RunState = RunState.QUEUED) -> KeptRun:
    return KeptRun(RunEntry(run, "", priority, "", 0.0, state), number, run, ())


RUNS = [kept("old", 1), kept("urgent", 3, 5), kept("new", 2), kept("over", 0, 9, RunState.FAILED)]


def names(runs: list[KeptRun]) -> list[str]:
    return [each.entry.run for each in runs]


def test_waiting_runs_begin_by_priority_then_age() -> None:
    assert names(to_begin(RUNS, frozenset(), 10)) == ["urgent", "old", "new"]


def test_those_that_had_begun_come_first() -> None:
    begun = kept("begun", 9, -5, RunState.RUNNING)
    assert names(to_begin([*RUNS, begun], frozenset(), 2)) == ["begun", "urgent"]


def test_no_more_are_held_than_there_is_room_for() -> None:
    held = frozenset({"urgent", "x"})
    assert names(to_begin(RUNS, held, 3)) == ["old"]
    assert to_begin(RUNS, held, 2) == to_begin(RUNS, held, 1) == []


def test_a_worker_is_offered_where_it_is_then_what_lacks_workers() -> None:
    full = Place("full", (-9, 1), present=3, needed=3)
    lacking = Place("lacking", (0, 2), present=1, needed=3)
    younger = Place("younger", (0, 3), present=0, needed=3)
    assert in_order([younger, full, lacking]) == ["lacking", "younger", "full"]
    assert in_order([younger, replace(full, here=True), lacking])[0] == "full"
