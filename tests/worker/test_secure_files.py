"""A worker's secrets on its own disk: there again after a restart, refused when damaged, gone when told."""

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import SecureRefused
from common.records import UpdateHeader
from common.secagg import history
from common.secagg.context import digest
from common.storage.tensors import write_tensors
from tests.common.secagg.parties import Parties, a_round, flipped, until_opened
from worker.secure_files import SecureFiles

HEADER = UpdateHeader("", 1, "ab" * 32, 0, "", 0, 0.0, 0.0, 1, b"c" * 32)
NAME = "w000"


@pytest.fixture(scope="module")
def parties() -> Parties:
    return until_opened(3)


def write(path: Path) -> None:
    write_tensors(path, {"delta.x": torch.arange(5)})


def filled(folder: Path, parties: Parties) -> SecureFiles:
    """With all that a worker keeps of a try."""
    files = SecureFiles(folder)
    me = parties.all[NAME]
    files.remember(history.begin(None, parties.round))
    files.keep_keys(parties.round, me.secrets, me.keys)
    files.keep_roster(parties.roster, parties.dealt(NAME))
    files.keep_held(parties.held(NAME))
    files.keep_masked(HEADER, write)
    files.keep_endorsement(parties.endorse()[0])
    return files


READERS: dict[str, Callable[[SecureFiles], object]] = {
    "history": SecureFiles.history,
    "try/round": SecureFiles.round,
    "try/secrets": SecureFiles.secrets,
    "try/keys": SecureFiles.keys,
    "try/roster": SecureFiles.roster,
    "try/dealt": SecureFiles.dealt,
    "try/held": SecureFiles.held,
    "try/endorsement": SecureFiles.endorsement,
    "try/masked.json": SecureFiles.masked,
    "try/masked.safetensors": SecureFiles.masked,
}


def test_another_process_finds_what_the_one_before_kept(tmp_path: Path, parties: Parties) -> None:
    before = filled(tmp_path, parties)
    after = SecureFiles(tmp_path)
    for read in READERS.values():
        assert read(after) == read(before) is not None
    assert after.round() == parties.round
    assert (after.secrets(), after.keys()) == (parties.all[NAME].secrets, parties.all[NAME].keys)
    assert after.roster() == list(parties.roster)
    assert (after.dealt(), after.held()) == (parties.dealt(NAME), parties.held(NAME))
    masked = after.masked()
    assert masked is not None and replace(masked[0], size=0, sha256="") == HEADER
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        *READERS
    }


def test_nobody_else_on_the_machine_reads_them(tmp_path: Path, parties: Parties) -> None:
    filled(tmp_path, parties)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == stat.S_IMODE((tmp_path / "try").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "try" / "secrets").stat().st_mode) == 0o600


def test_without_a_try_there_is_nothing(tmp_path: Path) -> None:
    files = SecureFiles(tmp_path)
    assert [read(files) for name, read in READERS.items() if name != "try/roster"] == [None] * 9
    assert files.roster() == []


@pytest.mark.parametrize("spoil", ["one bit", "half", "nothing", "something else"])
@pytest.mark.parametrize("name", READERS)
def test_what_is_damaged_is_not_believed(name: str, spoil: str, tmp_path: Path, parties: Parties) -> None:
    files = filled(tmp_path, parties)
    path, content = tmp_path / name, (tmp_path / name).read_bytes()
    spoilt = {
        "one bit": flipped(content, len(content) // 2),
        "half": content[: len(content) // 2],
        "nothing": b"",
        "something else": b"\xff" * 100,
    }[spoil]
    path.write_bytes(spoilt)
    try:
        found = READERS[name](files)
    except SecureRefused:
        return
    # What is not framed itself is held against something that is: see below.
    assert name in ("try/round", "try/roster", "try/endorsement", "try/masked.json")
    assert found is None or found == [] or spoil == "one bit"


def test_a_masked_update_is_never_made_anew(tmp_path: Path, parties: Parties) -> None:
    files = filled(tmp_path, parties)
    (tmp_path / "try" / "masked.safetensors").unlink()
    with pytest.raises(SecureRefused, match="masked anew it would show what it hides"):
        files.masked()


def test_secrets_go_with_their_try_and_the_history_stays(tmp_path: Path, parties: Parties) -> None:
    files = filled(tmp_path, parties)
    files.clear()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["history"]
    assert files.history() is not None
    files.forget_history()
    assert files.history() is None


def test_clearing_that_was_interrupted_leaves_no_secret(
    tmp_path: Path, parties: Parties, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = filled(tmp_path, parties)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("worker.secure_files.shutil.rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.clear()
    assert not (tmp_path / "try" / "secrets").exists()
    assert SecureFiles(tmp_path).secrets() is None


def test_a_history_says_whose_try_it_is_of(tmp_path: Path) -> None:
    files = SecureFiles(tmp_path)
    told = a_round(5, attempt=2)
    files.remember(history.begin(None, told))
    found = files.history()
    assert found is not None
    assert (found.run_id, found.round, found.attempt, found.context) == ("run", 1, 2, digest(told))


def test_the_header_is_json_that_says_what_goes_out(tmp_path: Path, parties: Parties) -> None:
    filled(tmp_path, parties)
    about = json.loads((tmp_path / "try" / "masked.json").read_text())
    assert (about["examples"], about["loss"], about["seconds"]) == (0, 0.0, 0.0)
