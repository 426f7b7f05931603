"""`fedpft build --processes`: real processes, started, watched and ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.storage.tensors import TensorFile
from coordinator.modelling.building import CHECKPOINT_FILE
from tests.conftest import write_table
from tests.services import ROOT


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_table(tmp_path / "public.csv", 64, 90, labelled=False)


def arguments(model: Path, corpus: Path, out: Path, *extra: str) -> list[str]:
    given = ["build", "--model", str(model), "--corpus", str(corpus), "--out", str(out)]
    return [*given, "--max-length", "16", "--processes", "2", *extra]


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (("--set", "alignment.method=closed-form"), 'needs alignment.method = "gradient", got "closed-form"'),
        (("--set", "alignment.method=both"), 'needs alignment.method = "gradient", got "both"'),
        (("--set", "alignment.batch_size=1"), "--processes must be <= alignment.batch_size"),
        (("--set", "sub_fm.construction=full"), 'sub_fm.construction = "full" needs no building'),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    extra: tuple[str, ...], told: str, model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, arguments(model_folder, corpus, tmp_path / "out", *extra))
    assert result.exit_code == 2
    assert told in result.output and result.output.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def started(given: list[str]) -> "subprocess.Popen[str]":
    path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path},
    )


def children(parent: int) -> dict[int, str]:
    """Processes that it has started, with their command lines."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue
    return found


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


def gone(number: int) -> bool:
    return not Path(f"/proc/{number}").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_process_that_is_killed_is_named_and_the_same_command_goes_on_to_what_one_builds(
    model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    extra = ("--steps", "40", "--set", "alignment.checkpoint_every=2")
    given = arguments(model_folder, corpus, tmp_path / "two", *extra)
    first = started(given)
    wait_for(tmp_path / "two" / CHECKPOINT_FILE, first)
    ranks = children(first.pid)
    (second,) = (number for number, command in ranks.items() if command.endswith("\x001\x002\x00"))
    os.kill(second, signal.SIGKILL)
    _, told = first.communicate(timeout=120)
    assert first.returncode == 1
    assert told.count("error:") == 1 and "process 2 of 2 was ended by SIGKILL" in told
    assert "Traceback" not in told
    assert len(ranks) == 2 and all(gone(number) for number in ranks)

    again = started(given)
    output, told = again.communicate(timeout=240)
    assert again.returncode == 0, told
    assert "going on from" in told and "on 2 process(es)" in " ".join(output.split())
    one = [each if each != "2" else "1" for each in arguments(model_folder, corpus, tmp_path / "one", *extra)]
    assert CliRunner().invoke(app, one).exit_code == 0
    alone, together = (TensorFile(tmp_path / name / "layers.safetensors") for name in ("one", "two"))
    assert set(alone) == set(together)
    assert max(float((alone[name] - together[name]).abs().max()) for name in alone) < 1e-4
    assert not (tmp_path / "two" / CHECKPOINT_FILE).exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_all_of_them(
    number: signal.Signals, model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    extra = ("--steps", "100000", "--set", "alignment.checkpoint_every=2")
    process = started(arguments(model_folder, corpus, tmp_path / "out", *extra))
    wait_for(tmp_path / "out" / CHECKPOINT_FILE, process)
    ranks = children(process.pid)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == (-number if number is signal.SIGKILL else 128 + number)
    assert "Traceback" not in told
    limit = time.monotonic() + 20
    while not all(gone(each) for each in ranks) and time.monotonic() < limit:
        time.sleep(0.1)
    assert len(ranks) == 2 and all(gone(each) for each in ranks)
