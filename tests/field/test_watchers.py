"""Who only looks at a run needs no right to write there, and is not told that half a run is a whole one."""

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.records import ArtifactKind
from common.run_status import Evaluation
from coordinator.campaign.status import open_run, stored_status
from coordinator.storage.store import Store
from tests.contexts import context

NOBODY = 65534


def begun(folder: Path) -> Store:
    """A run with one round done, open as a coordinator has it."""
    store = Store(folder)
    run = context(store)
    store.database.write("run", "UPDATE run SET config = ?", run.config.model_dump_json())
    store.commit_adapter(0, store.artifacts.add(ArtifactKind.ADAPTER, b"adapter"))
    store.commit_evaluation(Evaluation(0, "fm", 0.5, float("nan")))
    return store


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*")}


def as_nobody(work: Callable[[], None]) -> int:
    """Exit code of a process that does it without any right to write."""
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.setuid(NOBODY)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def look(folder: Path) -> None:
    store, config = open_run(folder)
    status = stored_status(store, config)
    assert (status.run_id, status.round) == ("run", 0)
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("live", [True, False], ids=["while it runs", "after a crash"])
def test_a_monitoring_user_without_the_right_to_write_can_look(tmp_path: Path, live: bool) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | 0o055)
    store = begun(tmp_path / "run")
    if not live:
        # A crash leaves the log beside the database; the file that readers share is gone with the machine.
        shutil.copytree(tmp_path / "run", tmp_path / "kept")
        store.close()
        (tmp_path / "kept" / "run.sqlite-shm").unlink()
    folder = tmp_path / ("run" if live else "kept")
    assert as_nobody(lambda: look(folder)) == 0
    if live:
        store.close()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    before = listing(tmp_path / "run")
    look(tmp_path / "run")
    for command in (["status", "--run"], ["status", "--json", "--run"]):
        result = CliRunner().invoke(app, [*command, str(tmp_path / "run")])
        assert result.exit_code == 0, result.output
    after = listing(tmp_path / "run")
    # SQLite may leave its own empty files of readers behind.
    assert {k: v for k, v in after.items() if not k.endswith(("-shm", "-wal")) and k != "."} == before
    assert "NaN" not in result.output


def test_a_run_of_an_older_version_is_looked_at_as_it_is(tmp_path: Path) -> None:
    begun(tmp_path / "run").close()
    db = sqlite3.connect(tmp_path / "run" / "run.sqlite")
    db.execute("DROP TABLE content")
    db.commit()
    db.close()
    store = Store.existing(tmp_path / "run")
    assert store.content() is None
    store.close()
