"""The list of a server's runs, as people see it."""

import io

import pytest
from rich.console import Console

from common.hosted_runs import RunEntry, RunState
from coordinator.owner.runs_view import show

LONG = "/srv/fedpft/models/minilm: no such directory, " + "and not to be had from anywhere " * 10


def entry(number: int, state: RunState, reason: str = "") -> RunEntry:
    return RunEntry(f"{number:012x}", f"run {number}", 0, "admin/alice", 1.0, state=state, reason=reason)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_reason_takes_a_line_and_old_ones_are_left_out(terminal: bool) -> None:
    entries = [entry(n, RunState.FAILED, f"reason {n}: {LONG}") for n in range(9)]
    entries += [entry(9, RunState.QUEUED, "waits for room on disk"), entry(10, RunState.FINISHED)]
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal, color_system=None)
    show(entries, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    reasons = [line for line in lines if ": reason " in line]
    assert [line.split(": ")[1] for line in reasons] == [f"reason {n}" for n in range(4, 9)]
    assert all(len(line) == 100 for line in reasons) if terminal else all(LONG in line for line in reasons)
    assert any("waits for room on disk" in line for line in lines)
    assert sum(line.startswith("0000000") and "run" in line for line in lines) >= len(entries)


def test_without_runs_it_says_how_to_hand_one_in() -> None:
    console = Console(file=io.StringIO(), width=100)
    show([], console)
    assert "fedpft submit" in console.file.getvalue()  # type: ignore[attr-defined]
