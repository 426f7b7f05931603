"""The ledger: written before a training, unbroken, telling when it is not, never too little."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StoreError
from worker.ledger import LEDGER_FILE, Charge, Ledger, audit_ledger

CHARGE = Charge("run", "da7a", "example", 1, 10, 0.2, 1.5, 1.0, 1e-5, 0.5, 0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ledger = Ledger(tmp_path)
    for number in (1, 2, 3):
        ledger.write(replace(CHARGE, round=number))
    return tmp_path


def lines(folder: Path) -> list[bytes]:
    return (folder / LEDGER_FILE).read_bytes().splitlines(keepends=True)


def test_what_was_written_is_read_again(folder: Path) -> None:
    assert [charge.round for charge in audit_ledger(folder)] == [1, 2, 3]
    assert [charge.round for charge in Ledger(folder).on("da7a")] == [1, 2, 3]
    assert Ledger(folder).on("other") == []
    assert (folder / LEDGER_FILE).stat().st_mode & 0o777 == 0o600


def test_a_folder_without_one_has_paid_nothing(tmp_path: Path) -> None:
    assert audit_ledger(tmp_path) == []


def test_a_later_process_goes_on_with_the_chain(folder: Path) -> None:
    Ledger(folder).write(replace(CHARGE, round=4))
    assert [charge.round for charge in audit_ledger(folder)] == [1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 60])
def test_a_line_that_broke_off_stands_for_no_training(folder: Path, cut: int) -> None:
    path = folder / LEDGER_FILE
    os.truncate(path, path.stat().st_size - cut)
    ledger = Ledger(folder)
    assert [charge.round for charge in ledger.charges] == [1, 2]
    ledger.write(replace(CHARGE, round=9))
    assert [charge.round for charge in audit_ledger(folder)] == [1, 2, 9]


@pytest.mark.parametrize("line", [1, 2])
def test_a_line_that_was_changed_shows(folder: Path, line: int) -> None:
    found = lines(folder)
    told = json.loads(found[line - 1]) | {"noise": 99.0}
    found[line - 1] = json.dumps(told, sort_keys=True).encode() + b"\n"
    (folder / LEDGER_FILE).write_bytes(b"".join(found))
    with pytest.raises(StoreError, match=f"line {line + 1}: a line before it was changed or taken out"):
        Ledger(folder)


def test_a_line_that_was_taken_out_shows(folder: Path) -> None:
    first, _, last = lines(folder)
    (folder / LEDGER_FILE).write_bytes(first + last)
    with pytest.raises(StoreError, match="line 2: a line before it was changed or taken out"):
        Ledger(folder)


@pytest.mark.parametrize(
    "content", [b"nothing\n", b"{}\n", b"[]\n", json.dumps({"noise": 1}).encode() + b"\n", b"\xff\n"]
)
def test_what_is_no_ledger_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LEDGER_FILE).write_bytes(content)
    with pytest.raises(StoreError, match=r"privacy\.jsonl, line 1 is not what was written"):
        Ledger(tmp_path)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"rate": 0.0}, {"noise": -1.0}, {"delta": 1.0}])
def test_numbers_that_cannot_be_are_not_taken(tmp_path: Path, wrong: dict[str, float]) -> None:
    Ledger(tmp_path).write(replace(CHARGE, **wrong))  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="its numbers cannot be"):
        Ledger(tmp_path)


def test_a_folder_that_cannot_be_written_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"privacy\.jsonl"):
        Ledger(tmp_path / "file").write(CHARGE)
