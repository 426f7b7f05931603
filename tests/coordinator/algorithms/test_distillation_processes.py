"""Several processes distil one sub-FM together, each with batches of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.model.ffn import ffns_of
from common.storage.tensors import TensorFile
from tests.coordinator.algorithms import distil_together
from tests.coordinator.algorithms.pairs import COMPRESSED, add_lora, pair, same_bits, values

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
Results = dict[str, list[dict[str, Tensor]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """By case, what each of two real processes ended with."""
    folder = tmp_path_factory.mktemp("results")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # `--cpu --num_processes 2` would start one process only: more of them it leaves to mpirun.
    options = f"--multi_gpu --num_processes 2 --num_machines 1 --main_process_port {port}"
    options += " --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
    done = subprocess.run(
        [*launch, distil_together.__file__, str(folder)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    cases = sorted({path.name.split(".")[0] for path in folder.iterdir()})
    return {case: [TensorFile(folder / f"{case}.{i}.safetensors").load() for i in (0, 1)] for case in cases}


def weights(result: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in result.items() if name != "losses"}


def test_they_end_with_the_same_bits_and_report_the_same_loss(results: Results) -> None:
    for case in ("own batches", "resumed", "neurons", "LoRA", "same batches"):
        assert same_bits(*results[case]), case


def test_the_loss_falls(results: Results) -> None:
    for case in ("own batches", "neurons", "LoRA"):
        losses = results[case][0]["losses"]
        assert len(losses) == 20
        assert losses[-5:].mean() < losses[:5].mean(), case


def test_both_processes_batches_count(results: Results) -> None:
    assert not same_bits(weights(results["own batches"][0]), weights(results["same batches"][0]))
    assert results["own batches"][0]["losses"][0] != results["same batches"][0]["losses"][0]


def test_with_the_same_batches_they_do_what_one_process_does(results: Results) -> None:
    # The mean of two equal gradients is that gradient, so nothing may differ: not the schedule either.
    assert same_bits(results["same batches"][0], results["alone"][0])


def test_the_same_models_can_be_distilled_again_with_the_same_accelerator(results: Results) -> None:
    assert same_bits(results["twice"][0], results["twice alone"][0])


def test_resumed_together_they_end_with_the_bits_of_an_uninterrupted_run(results: Results) -> None:
    whole, resumed = results["own batches"][0], results["resumed"][0]
    assert same_bits(weights(resumed), weights(whole))
    assert torch.equal(resumed["losses"], whole["losses"][8:])


def test_together_too_nothing_changes_but_what_is_trained(results: Results) -> None:
    _, sub_fm = pair("bert")
    names = {parameter: name for name, parameter in sub_fm.named_parameters()}
    before, after = values(sub_fm), weights(results["neurons"][0])
    trained = {names[parameter] for i in COMPRESSED for parameter in ffns_of(sub_fm)[i].neuron_parameters()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    rows = "bert.encoder.layer.1.intermediate.dense.weight"
    assert (before[rows] != after[rows]).any(1).nonzero().flatten().tolist() == [0, 5, 15]


def test_together_too_lora_is_left_alone(results: Results) -> None:
    _, sub_fm = pair("bert")
    add_lora(sub_fm)
    before, after = values(sub_fm), weights(results["LoRA"][0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any(".lora_" in name for name in changed)
