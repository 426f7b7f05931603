"""The GPU's benchmark, run whole on the CPU: it must not fail first where there is a device for minutes."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks import gpu, llamas


@pytest.mark.slow
def test_it_measures_both_kinds_and_says_what_it_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "gpu.json"
    small = ["--device", "cpu", "--sizes", "tiny", "--batch", "2", "--tokens", "16", "--repeats", "1"]
    with patch("sys.argv", ["gpu", *small, "--json", str(file)]):
        gpu.main()
    told = json.loads(file.read_text())
    figures, targets = told["figures"], told["targets"]
    assert set(figures["tiny, training"]) == {"plain loop, FM", *gpu.SUB_FMS, "real_weights"}
    assert set(figures["tiny, alignment"]) == {"plain loop", "coordinator"}
    for name in ("plain loop, FM", *gpu.SUB_FMS):
        assert figures["tiny, training"][name]["tokens_per_second"]["median"] > 0
    assert figures["left_out"] == {} and len(targets) == 2
    with patch("sys.argv", ["gpu", *small, "--minutes", "0", "--json", str(file)]):
        gpu.main()
    assert set(json.loads(file.read_text())["figures"]["left_out"]) == {"tiny, training", "tiny, alignment"}
    assert "left out, no time was left" in capsys.readouterr().out


def test_the_alignment_changes_what_the_loop_by_hand_does() -> None:
    """Of the layers that were cut: all of the FFN, float32 meanwhile, bfloat16 before and after."""
    import torch

    setting = gpu.Setting(torch.device("cpu"), 2, 8, 1)
    fm, real = llamas.model_of("tiny", setting.device)
    sub_fm, layers = llamas.sub_model_of(fm, setting.device)
    assert (real, layers) == (False, (1, 2))
    data = setting.data(fm.config.vocab_size)
    before = {name: value.clone() for name, value in sub_fm.state_dict().items()}
    gpu.alignment(fm, sub_fm, layers, data, setting.batch)()
    changed = {n for n, value in sub_fm.state_dict().items() if not torch.equal(value, before[n])}
    assert changed and all(value.dtype is torch.bfloat16 for value in sub_fm.state_dict().values())
    assert all(".mlp." in name or "norm" in name for name in changed)
    assert {int(name.split(".")[2]) for name in changed} == set(layers)


def test_without_a_device_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with patch("sys.argv", ["gpu"]), pytest.raises(SystemExit):
        gpu.main()
    assert "there is no CUDA device here" in capsys.readouterr().err
