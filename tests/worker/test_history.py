"""The runs that a worker took part in, on its own disk."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import StoreError
from worker.cli import app
from worker.history import HISTORY_FILE, KEPT, History, PastRun


def entry(run: str, began: float = 1.0, **rest: object) -> PastRun:
    return PastRun(run, "hub:1", began, **rest)  # type: ignore[arg-type]


def test_how_a_run_ended_replaces_that_it_began(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.put(entry("a"))
    assert [e.outcome for e in history.all()] == ["under way"]
    history.put(entry("b", 2.0))
    history.put(entry("a", rounds=3, outcome="finished"))
    assert [(e.run, e.outcome, e.rounds) for e in History(tmp_path).all()] == [
        ("b", "under way", 0),
        ("a", "finished", 3),
    ]


def test_a_run_that_is_declined_again_for_the_same_reason_is_no_news(tmp_path: Path) -> None:
    history = History(tmp_path)
    for began, why in enumerate(("too long", "too long", "too large")):
        history.declined(entry("a", float(began), outcome=f"declined: {why}"))
    assert [e.outcome for e in history.all()] == ["declined: too long", "declined: too large"]


def test_the_oldest_are_forgotten(tmp_path: Path) -> None:
    lines = [json.dumps({"run": str(n), "coordinator": "hub:1", "began": n}) for n in range(KEPT)]
    (tmp_path / HISTORY_FILE).write_text("\n".join(lines) + "\n")
    History(tmp_path).put(entry("new", KEPT))
    kept = History(tmp_path).all()
    assert (len(kept), kept[0].run, kept[-1].run) == (KEPT, "1", "new")


def test_a_line_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / HISTORY_FILE).write_text('{"run": "a", "coordinator": "hub:1"}\nnonsense\n')
    with pytest.raises(StoreError, match="line 2"):
        History(tmp_path).all()


def test_the_command_lists_them(tmp_path: Path) -> None:
    called = CliRunner().invoke(app, ["history", "--folder", str(tmp_path)])
    assert (called.exit_code, called.output.strip()) == (0, "no run yet")
    # Of a folder that is mistyped this would be an answer that is wrong.
    mistyped = CliRunner().invoke(app, ["history", "--folder", str(tmp_path / "nowhere")])
    assert mistyped.exit_code == 2 and "is no folder of a worker" in mistyped.output
    History(tmp_path).put(
        entry("run-1", label="spring", rounds=2, bytes_up=3_000_000, epsilon=1.5, outcome="finished")
    )
    shown = CliRunner().invoke(app, ["history", "--folder", str(tmp_path)], env={"COLUMNS": "160"}).output
    for part in ("run-1 (spring)", "hub:1", "3.00 MB", "1.50", "finished"):
        assert part in shown
    (found,) = json.loads(CliRunner().invoke(app, ["history", "--folder", str(tmp_path), "--json"]).output)
    assert found["rounds"] == 2


def test_without_a_coordinator_working_is_refused_and_what_is_beside_it_is_not(tmp_path: Path) -> None:
    working = CliRunner().invoke(app, [])
    assert working.exit_code == 2 and "--coordinator" in working.output
    path = tmp_path / "policy.toml"
    for arguments, code in (([], 0), ([], 2), (["--force"], 0), (["--check"], 0)):
        assert CliRunner().invoke(app, ["policy", str(path), *arguments]).exit_code == code
    path.write_text("[limits]\nrounds = 0\n")
    checked = CliRunner().invoke(app, ["policy", str(path), "--check"])
    assert checked.exit_code == 2 and "limits.rounds must be >= 1" in checked.output
