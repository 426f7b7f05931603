"""The demo on the packaged MiniLM and BBC News, with as little training as shows that it learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import ROOT


@pytest.mark.packaged
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_runs_on_real_weights_and_real_text(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    arguments = ["demo", "--rounds", "2", "--directory", str(tmp_path / "run"), "--json", str(out)]
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    # Two rounds of the usual four; chance is 0.2.
    assert result["accuracy"]["fm_after"] > 0.8
    assert result["accuracy"]["fm_before"] < 0.4
    parameters = result["parameters"]
    assert parameters["fm_layer_parameters"] == 10_646_784
    assert parameters["sub_fm_layer_parameters"] == 7_103_232
    # LoRA of rank 8 on 4 projections of 6 layers, and a head of 5 classes.
    assert parameters["adapter_parameters"] == 6 * 4 * 2 * 8 * 384 + 5 * 384 + 5
    for traffic in result["bytes_by_worker"].values():
        later = [t for t in traffic["by_round"] if t["round"] == 2]
        assert 0 < sum(t["bytes_up"] for t in later) < 0.01 * parameters["fm_bytes"]
        assert 0 < sum(t["bytes_down"] for t in later) < 0.01 * parameters["fm_bytes"]
    assert "FM after, adapter plugged in" in done.stdout
