"""What a server holds, refuses and gives up, without workers."""

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from common.config.serving import RunsSection, ServeConfig
from common.errors import ConfigError, RunFailed, TooMany, UnknownRun
from common.hosted_runs import RunState, Submission
from coordinator.campaign.liveness import ENDPOINT_FILE
from coordinator.hosting.catalogue import COMPUTING_FILE, Catalogue
from coordinator.hosting.host import MOST_DEATHS, Host
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store

RUN = '[model]\npath = "./nowhere"\n[task]\nlabels = ["a", "b"]\n[alignment]\nsteps = 0\n'


def host(folder: Path, **runs: int) -> Host:
    return Host(ServeConfig(runs=RunsSection.model_validate(runs)), Catalogue(folder))


def submitted(held: Host, priority: int = 0, text: str = RUN) -> str:
    return held.submit(Submission(uuid4().hex, text, (), priority), "admin/a")


async def seen_through(held: Host, over: int) -> None:
    """Hold until so many runs are over."""
    holding = asyncio.create_task(held.hold())
    while sum(entry.state.over for entry in held.entries()) < over:
        await held.changed.wait()
    held.close()
    await holding


@pytest.mark.asyncio
async def test_runs_that_cannot_be_loaded_fail_each_with_its_reason(tmp_path: Path) -> None:
    held = host(tmp_path, at_once=1)
    runs = [submitted(held), submitted(held, priority=1), submitted(held)]
    await seen_through(held, 3)
    entries = {entry.run: entry for entry in Host(held.config, Catalogue(tmp_path)).entries()}
    assert {entry.state for entry in entries.values()} == {RunState.FAILED}
    assert all("nowhere" in entry.reason for entry in entries.values())
    # By priority, then age.
    began = sorted(entries.values(), key=lambda entry: entry.began)
    assert [entry.run for entry in began] == [runs[1], runs[0], runs[2]]
    assert not (tmp_path / COMPUTING_FILE).exists()


def test_what_breaks_a_rule_leaves_nothing_behind(tmp_path: Path) -> None:
    held = host(tmp_path)
    with pytest.raises(ConfigError, match=r"leave out \[server\]"):
        submitted(held, text=RUN + "[server]\n")
    assert list(tmp_path.iterdir()) == [] and held.entries() == []


def test_a_queue_that_is_full_takes_no_more(tmp_path: Path) -> None:
    held = host(tmp_path, queue=2)
    submitted(held)
    submitted(held)
    with pytest.raises(TooMany, match=r"2 runs wait already; runs\.queue allows 2"):
        submitted(held)


@pytest.mark.asyncio
async def test_a_cancelled_run_never_begins(tmp_path: Path) -> None:
    held = host(tmp_path)
    run = submitted(held)
    held.cancel(run, "admin/b")
    with pytest.raises(RunFailed, match="has ended already: it is cancelled"):
        held.cancel(run, "admin/b")
    with pytest.raises(UnknownRun):
        held.cancel("nothing", "admin/b")
    other = submitted(held)
    await seen_through(held, 2)
    entries = {entry.run: entry for entry in held.entries()}
    assert (entries[run].reason, entries[run].began) == ("cancelled by admin/b", 0.0)
    assert entries[other].state is RunState.FAILED


@pytest.mark.asyncio
async def test_a_run_that_failed_or_was_cancelled_goes_on_when_an_admin_says_so(tmp_path: Path) -> None:
    held = host(tmp_path)
    failed, cancelled, waiting = submitted(held), submitted(held), submitted(held)
    held.cancel(cancelled, "")
    held.catalogue.change(failed, state=RunState.FAILED, reason="why", ended=1.0)
    for run in (failed, cancelled):
        held.resume(run, "admin/b")
    with pytest.raises(RunFailed, match="is queued; only one that failed or was cancelled is resumed"):
        held.resume(waiting, "admin/b")
    with pytest.raises(UnknownRun):
        held.resume("nothing", "admin/b")
    again = host(tmp_path)
    assert {(entry.state, entry.reason, entry.ended) for entry in again.entries()} == {
        (RunState.QUEUED, "", 0.0)
    }
    # And each is tried, as the one that waited is.
    await seen_through(again, 3)
    assert {entry.state for entry in again.entries()} == {RunState.FAILED}


@pytest.mark.asyncio
async def test_nothing_begins_while_all_runs_take_more_than_the_quota(tmp_path: Path) -> None:
    held = host(tmp_path, quota=100)
    run = submitted(held)
    holding = asyncio.create_task(held.hold())
    while not (entry := held.entries()[0]).reason:
        await held.changed.wait()
    held.close()
    await holding
    assert entry.state is RunState.QUEUED and "runs.quota allows" in entry.reason
    # With room it begins.
    again = host(tmp_path, quota=10**9)
    await seen_through(again, 1)
    assert again.entries()[0].run == run and again.entries()[0].began


def died(folder: Path, run: str) -> Host:
    """The next process after one that died while the run computed."""
    (folder / COMPUTING_FILE).write_text(run)
    (folder / run / ENDPOINT_FILE).write_text("{}")
    held = host(folder)
    held._look_for_deaths()
    return held


def test_a_run_of_which_the_process_dies_again_and_again_fails_alone(tmp_path: Path) -> None:
    held = host(tmp_path)
    guilty, other = submitted(held), submitted(held)
    for run in (guilty, other):
        held.catalogue.change(run, state=RunState.RUNNING)
    store = Store(tmp_path / guilty)
    events = EventLog(store)
    for _ in range(MOST_DEATHS - 1):
        assert died(tmp_path, guilty).catalogue.get(guilty).entry.state is RunState.RUNNING
    # A step forward: what came before is forgotten.
    events.record("round_closed", "done", 1)
    store.close()
    for _ in range(MOST_DEATHS - 1):
        assert died(tmp_path, guilty).catalogue.get(guilty).entry.state is RunState.RUNNING
    entries = {entry.run: entry for entry in died(tmp_path, guilty).entries()}
    assert entries[guilty].state is RunState.FAILED
    assert entries[guilty].reason == "the server died 3 times while it computed, with nothing done between"
    assert entries[other].state is RunState.RUNNING


@pytest.mark.parametrize("content", ["", "nothing", "../x"])
def test_a_death_while_none_of_the_runs_computed_is_nobodys(tmp_path: Path, content: str) -> None:
    held = host(tmp_path)
    run = submitted(held)
    held.catalogue.change(run, state=RunState.RUNNING)
    (tmp_path / COMPUTING_FILE).write_text(content)
    again = host(tmp_path)
    again._look_for_deaths()
    assert again.catalogue.get(run).deaths == 0 and not (tmp_path / COMPUTING_FILE).exists()
