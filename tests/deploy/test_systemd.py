"""The systemd units, by systemd's own checks."""

import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from worker.cli import worker

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))


@pytest.fixture
def systemd_analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd-analyze is not installed")
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_valid_and_confined(unit: Path, systemd_analyze: str, tmp_path: Path) -> None:
    # Its program is not installed here.
    text = unit.read_text().replace(f"/opt/fedpft/bin/{unit.stem}", "/bin/true")
    assert "/bin/true" in text
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run([systemd_analyze, "verify", "--man=no", copy], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # Tenths of a point of exposure.
    command = [systemd_analyze, "security", "--offline=true", "--threshold=40", copy]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_workers_unit_uses_options_that_it_knows() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(worker)
    known = {name for p in typer.main.get_command(app).params for name in p.opts}
    (unit,) = [unit for unit in UNITS if "worker" in unit.stem]
    start = unit.read_text().split("ExecStart=")[1].split("\n#")[0]
    options = {word for word in start.split() if word.startswith("--")}
    assert options and options <= known
    named = {line.partition("=")[0] for line in (unit.parent / "worker.env").read_text().splitlines()}
    used = {word.strip("${}") for word in start.split() if word.startswith("$")}
    assert used and used <= named
