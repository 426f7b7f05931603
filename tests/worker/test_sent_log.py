"""The worker's own log of what it sent: complete, unbroken, and telling when it is not."""

import json
import os
from pathlib import Path

import pytest

from common.errors import StoreError
from worker.sent_log import SENT_FILE, SentLog, audit_worker, read_sent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    log = SentLog(tmp_path)
    log.record("Join", "control", b"hello", 10)
    log.record("SubmitUpdate", "update", b"header", 11, update="f" * 64)
    log.record("SubmitUpdate", "update", b"chunk", 500)
    log.close()
    return tmp_path


def lines(folder: Path) -> list[bytes]:
    return (folder / SENT_FILE).read_bytes().splitlines(keepends=True)


def test_the_log_adds_up(folder: Path) -> None:
    found = audit_worker(folder)
    assert [(t.call, t.kind, t.messages, t.bytes) for t in found.totals] == [
        ("Join", "control", 1, 10),
        ("SubmitUpdate", "update", 2, 511),
    ]
    assert found.bytes == 521
    assert found.updates == ("f" * 64,)


def test_a_restarted_worker_goes_on_in_the_same_log(folder: Path) -> None:
    again = SentLog(folder)
    again.record("Leave", "control", b"bye", 3)
    again.close()
    assert [s.call for s in read_sent(folder)] == ["Join", "SubmitUpdate", "SubmitUpdate", "Leave"]


@pytest.mark.parametrize("cut", [1, 40])
def test_a_line_that_broke_off_was_not_sent_and_goes(folder: Path, cut: int) -> None:
    path = folder / SENT_FILE
    os.truncate(path, path.stat().st_size - cut)
    again = SentLog(folder)
    again.record("Leave", "control", b"bye", 3)
    again.close()
    assert [s.call for s in read_sent(folder)] == ["Join", "SubmitUpdate", "Leave"]


def test_a_changed_line_shows(folder: Path) -> None:
    first, *rest = lines(folder)
    changed = json.dumps(json.loads(first) | {"bytes": 1}).encode() + b"\n"
    (folder / SENT_FILE).write_bytes(b"".join([changed, *rest]))
    with pytest.raises(StoreError, match="line 2: a line before it was changed or taken out"):
        audit_worker(folder)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_line_taken_out_shows(folder: Path, missing: int) -> None:
    left = [line for number, line in enumerate(lines(folder)) if number != missing]
    (folder / SENT_FILE).write_bytes(b"".join(left))
    with pytest.raises(StoreError, match="was changed or taken out"):
        audit_worker(folder)


def test_a_line_of_anything_else_shows(folder: Path) -> None:
    (folder / SENT_FILE).write_bytes(b"{}\n")
    with pytest.raises(StoreError, match="line 1 is not what was written"):
        audit_worker(folder)


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / SENT_FILE).mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        SentLog(tmp_path)
