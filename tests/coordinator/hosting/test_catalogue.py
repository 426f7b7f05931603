"""Which runs there are, over restarts."""

import json
from pathlib import Path

import pytest

from common.errors import StoreError, UnknownRun
from common.hosted_runs import RunFacts, RunState, Submission
from coordinator.hosting.catalogue import CONFIG_FILE, ENTRY_FILE, Catalogue, bytes_in

SUBMISSION = Submission("ab" * 8, "[run]\n", ("rounds.count=3",), 2, "for a test")


def added(folder: Path, submission: Submission = SUBMISSION) -> str:
    catalogue = Catalogue(folder)
    return catalogue.add(catalogue.new_id(), submission, "admin/owner").entry.run


def test_what_was_submitted_and_changed_is_there_after_a_restart(tmp_path: Path) -> None:
    run = added(tmp_path)
    facts = RunFacts("training", 1, 3, 2, "accuracy 0.5", 4.0)
    Catalogue(tmp_path).change(run, state=RunState.FAILED, reason="why", ended=5.0, facts=facts)
    kept = Catalogue(tmp_path).get(run)
    assert kept.entry.state is RunState.FAILED and kept.entry.reason == "why"
    assert (kept.entry.label, kept.entry.priority, kept.entry.submitter) == ("for a test", 2, "admin/owner")
    assert kept.entry.facts == facts
    assert kept.settings == ("rounds.count=3",)
    assert Catalogue(tmp_path).configuration(run) == "[run]\n"
    again = Catalogue(tmp_path).of_request(SUBMISSION.request)
    assert again is not None and again.entry.run == run


def test_later_submissions_are_younger_also_after_a_restart(tmp_path: Path) -> None:
    runs = [added(tmp_path, Submission(f"{n:016x}", "")) for n in range(3)]
    assert [kept.entry.run for kept in Catalogue(tmp_path)] == runs


def test_a_submission_that_was_never_answered_leaves_nothing(tmp_path: Path) -> None:
    unfinished = tmp_path / "0123456789ab"
    unfinished.mkdir()
    (unfinished / CONFIG_FILE).write_text("")
    (unfinished / f".{ENTRY_FILE}.x.part").write_text("{")
    theirs = tmp_path / "something"
    theirs.mkdir()
    (theirs / CONFIG_FILE).write_text("")
    assert list(Catalogue(tmp_path)) == []
    assert not unfinished.exists() and theirs.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"entry": {"state": "odd"}}', '{"entry": {}}'])
def test_a_damaged_record_is_named(tmp_path: Path, content: str) -> None:
    run = added(tmp_path)
    (tmp_path / run / ENTRY_FILE).write_text(content)
    with pytest.raises(StoreError, match=f"{run}.*is no record of a run.*move .* away"):
        Catalogue(tmp_path)


def test_a_folder_under_another_name_is_refused(tmp_path: Path) -> None:
    run = added(tmp_path)
    (tmp_path / run).rename(tmp_path / "moved")
    with pytest.raises(StoreError, match=f"is of run {run}"):
        Catalogue(tmp_path)


def test_deaths_in_a_row_are_counted_and_a_step_forward_begins_anew(tmp_path: Path) -> None:
    run = added(tmp_path)
    assert [Catalogue(tmp_path).count_death(run, step).deaths for step in (4, 4, 9, 9, 9)] == [1, 2, 1, 2, 3]


def test_a_run_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownRun, match="does not hold run 'nothing'"):
        Catalogue(tmp_path).get("nothing")


def test_bytes_are_those_of_all_files_below(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_bytes(bytes(100))
    (tmp_path / "y").write_bytes(bytes(11))
    assert bytes_in(tmp_path) == 111
    assert bytes_in(tmp_path / "nothing") == 0


def test_the_record_is_for_people_too(tmp_path: Path) -> None:
    run = added(tmp_path)
    assert json.loads((tmp_path / run / ENTRY_FILE).read_text())["entry"]["state"] == "queued"
