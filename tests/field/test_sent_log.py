"""A worker that waits for months does not fill its disk, and can still be audited."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.errors import StoreError
from worker import sent_log
from worker.sent_log import SENT_FILE, SentLog, audit_worker, read_sent

FILE, KEPT = 2000, 3


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sent_log, "FILE_BYTES", FILE)
    monkeypatch.setattr(sent_log, "KEPT_FILES", KEPT)


def write(folder: Path, count: int, restart_every: int = 0) -> None:
    log = SentLog(folder)
    for number in range(count):
        log.record("Heartbeat", "control", b"%d" % number, 100)
        if restart_every and number % restart_every == 0:
            log.close()
            log = SentLog(folder)
    log.close()


def aside(folder: Path) -> list[Path]:
    return sorted(folder.glob("sent.0*.jsonl"))


@pytest.mark.parametrize("restart_every", [0, 1, 7])
def test_what_it_takes_is_bounded_and_the_audit_says_what_is_gone(tmp_path: Path, restart_every: int) -> None:
    write(tmp_path, 200, restart_every)
    assert len(aside(tmp_path)) == KEPT
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < (KEPT + 1) * (FILE + 600)
    found = audit_worker(tmp_path)
    (total,) = found.totals
    assert total.messages < 200
    assert total.messages + found.earlier_messages == 200
    assert total.bytes + found.earlier_bytes == 20_000
    shown = CliRunner().invoke(app, ["audit", str(tmp_path)], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert (
        f"{found.earlier_messages} messages of {found.earlier_bytes:,} bytes in all were sent" in shown.output
    )


def test_a_log_of_few_files_is_whole(tmp_path: Path) -> None:
    write(tmp_path, 15)
    assert aside(tmp_path)
    found = audit_worker(tmp_path)
    assert (found.totals[0].messages, found.earlier_messages) == (15, 0)
    shown = CliRunner().invoke(app, ["audit", str(tmp_path)])
    assert "the log is unbroken" in shown.output and "deleted" not in shown.output


def test_a_file_taken_from_the_middle_shows(tmp_path: Path) -> None:
    write(tmp_path, 200)
    aside(tmp_path)[1].unlink()
    with pytest.raises(StoreError, match="was changed or taken out"):
        audit_worker(tmp_path)


def test_the_last_file_put_aside_taken_out_shows(tmp_path: Path) -> None:
    write(tmp_path, 15)
    aside(tmp_path)[-1].unlink()
    found = audit_worker(tmp_path) if len(aside(tmp_path)) == 0 else None
    # Nothing else is left before it: then it is told as what it is, files that are gone.
    if found is None:
        pytest.fail("there was one file put aside")
    assert found.earlier_messages > 0


def test_a_line_cut_from_a_file_put_aside_shows(tmp_path: Path) -> None:
    write(tmp_path, 200)
    path = aside(tmp_path)[-1]
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(StoreError, match="was changed or taken out"):
        audit_worker(tmp_path)


def test_sums_that_do_not_add_up_show(tmp_path: Path) -> None:
    write(tmp_path, 15)
    text = (tmp_path / SENT_FILE).read_bytes()
    (tmp_path / SENT_FILE).write_bytes(text.replace(b'"messages": ', b'"messages": 1'))
    with pytest.raises(StoreError, match="was changed or taken out"):
        list(read_sent(tmp_path))


def test_a_process_that_dies_between_two_files_goes_on(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / SENT_FILE).rename(tmp_path / "sent.000001.jsonl")
    write(tmp_path, 1)
    found = audit_worker(tmp_path)
    assert (found.totals[0].messages, found.earlier_messages) == (6, 0)
