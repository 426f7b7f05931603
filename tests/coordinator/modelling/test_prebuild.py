"""`fedpft build`: the sub-FM ahead of a run."""

import json
import os
import subprocess
import sys
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


def command(model: Path, corpus: Path, out: Path, *extra: str) -> list[str]:
    given = ["build", "--model", str(model), "--corpus", str(corpus), "--out", str(out)]
    return [*given, "--steps", "12", "--max-length", "16", *extra]


def test_a_build_says_how_much_closer_the_sub_fm_came(
    model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, command(model_folder, corpus, tmp_path / "out"))
    assert result.exit_code == 0, result.output
    about = json.loads((tmp_path / "out" / "build.json").read_text())
    assert about["hidden_error_after"] < about["hidden_error_before"]
    assert about["ffn_widths"] == [64, 16, 16, 64]
    assert not (tmp_path / "out" / CHECKPOINT_FILE).exists()


def test_a_build_is_not_overwritten(model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, command(model_folder, corpus, tmp_path / "out")).exit_code == 0
    again = CliRunner().invoke(app, command(model_folder, corpus, tmp_path / "out"))
    assert again.exit_code == 2
    assert "holds a built sub-FM already" in again.output


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        (("--set", "sub_fm.saliency=l3"), "sub_fm.saliency must be 'l2', 'activation'"),
        (("--set", "sub_fm.salience=l2"), "unknown key sub_fm.salience"),
        (("--set", "steps=600"), "must be SECTION.KEY=VALUE"),
        (("--set", "sub_fm.construction=full"), 'sub_fm.construction = "full" needs no building'),
        (("--steps", "0"), "--steps must be >= 1"),
    ],
)
def test_bad_settings_are_one_line(
    extra: tuple[str, ...], told: str, model_folder: Path, corpus: Path, tmp_path: Path
) -> None:
    result = CliRunner().invoke(app, command(model_folder, corpus, tmp_path / "out", *extra))
    assert result.exit_code == 2
    assert told in result.output and result.output.strip().count("\n") == 0


@pytest.mark.slow
def test_several_processes_build_one_sub_fm(model_folder: Path, corpus: Path, tmp_path: Path) -> None:
    """Two real processes: not the bits of one, because each reads batches of its own."""
    alone = CliRunner().invoke(app, command(model_folder, corpus, tmp_path / "alone"))
    assert alone.exit_code == 0, alone.output
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = tmp_path / "command.py"
    script.write_text("from cli.main import main\nmain()\n")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(script), *command(model_folder, corpus, tmp_path / "together")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 process(es)" in " ".join(done.stdout.split())
    one, two = (TensorFile(tmp_path / name / "layers.safetensors") for name in ("alone", "together"))
    assert set(one) == set(two)
    assert any((one[name] != two[name]).any() for name in one)
    errors = [
        json.loads((tmp_path / name / "build.json").read_text())["hidden_error_after"]
        for name in ("alone", "together")
    ]
    assert errors[1] == pytest.approx(errors[0], rel=0.2)
