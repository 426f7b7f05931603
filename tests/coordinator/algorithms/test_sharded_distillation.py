"""Two real processes that hold FM and sub-FM together end with what one process ends with."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.batches import Batch
from common.storage.tensors import TensorFile
from coordinator.algorithms.distillation import Settings, distil, hidden_error
from tests.coordinator.algorithms import shard_together
from tests.coordinator.algorithms.pairs import COMPRESSED, batches, pair, values
from tests.coordinator.algorithms.shard_together import FAMILIES, SETTINGS, one_row

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
PROCESSES = 2


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """By case, what two processes ended with."""
    folder = tmp_path_factory.mktemp("together")
    path = os.pathsep.join((str(ROOT), str(ROOT / "proto")))
    running = [
        subprocess.Popen(
            [sys.executable, shard_together.__file__, str(folder), str(rank), str(PROCESSES)],
            env=os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    try:
        told = [process.communicate(timeout=240)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0, 0], told[0][-2000:] + told[1][-2000:]
    return {file.stem: TensorFile(file).load() for file in folder.glob("*.safetensors")}


def alone(
    family: str, half: bool = False, rows: bool = True, settings: Settings = SETTINGS
) -> dict[str, Tensor]:
    fm, sub_fm = pair(family)
    if half:
        fm.bfloat16()
        sub_fm.bfloat16()
    data: Iterator[Batch] = batches(fm) if rows else (one_row(batch) for batch in batches(fm))
    losses: list[float] = []
    distil(fm, sub_fm, COMPRESSED, data, settings, on_step=lambda step, steps, loss: losses.append(loss))
    error = hidden_error(fm, sub_fm, COMPRESSED, islice(batches(fm), 2))
    return values(sub_fm) | {
        "losses": torch.tensor(losses, dtype=torch.float64),
        "error": torch.tensor(error),
    }


def furthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference over what both name; the head is given up together."""
    shared = one.keys() & other.keys() - {"held"}
    assert len(shared) > 20 and any("layer" in name or ".h." in name for name in shared)
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in shared)


@pytest.mark.parametrize("family", FAMILIES)
def test_they_end_with_the_weights_losses_and_error_of_one_process(
    family: str, together: dict[str, dict[str, Tensor]]
) -> None:
    assert furthest(alone(family), together[family]) < 1e-5
    before = values(pair(family)[1])
    assert furthest(before, together[family]) > 1e-3, "nothing was trained"


@pytest.mark.parametrize("family", FAMILIES)
def test_each_holds_its_part_of_the_weights(family: str, together: dict[str, dict[str, Tensor]]) -> None:
    held, whole = together[family]["held"].tolist()
    assert whole / PROCESSES <= held < 0.55 * whole


def test_they_go_on_from_a_checkpoint_to_the_same_bits(together: dict[str, dict[str, Tensor]]) -> None:
    whole, resumed = together["bert"], together["resumed"]
    assert len(resumed["losses"]) == 2
    for name in whole.keys() - {"losses"}:
        assert torch.equal(whole[name], resumed[name]), name
    assert torch.equal(whole["losses"][4:], resumed["losses"])


def test_in_bfloat16_they_train_in_float32_as_one_does(together: dict[str, dict[str, Tensor]]) -> None:
    # Sums in bfloat16 of other parts differ in their last bits, which are the third digit.
    assert furthest(alone("llama", half=True), together["half"]) < 1e-2


def test_they_leave_the_owner_the_same_margin(together: dict[str, dict[str, Tensor]]) -> None:
    found = alone("bert", settings=replace(SETTINGS, margin=0.2))
    assert furthest(found, together["margin"]) < 1e-5
    assert furthest(found, together["bert"]) > 1e-4, "no margin was left"


def test_a_process_without_rows_adds_nothing(together: dict[str, dict[str, Tensor]]) -> None:
    assert furthest(alone("bert", rows=False), together["one row"]) < 1e-5
