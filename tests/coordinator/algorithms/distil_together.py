"""Run by test_distillation_processes under `accelerate launch`: distillations in one of several processes.

Writes {case}.{process}.safetensors into the folder given: the student's parameters and the losses.
"""

import gc
import sys
from pathlib import Path
from typing import Any
from weakref import ref

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.storage.tensors import to_bytes
from coordinator.algorithms.distillation import Settings, distil
from tests.coordinator.algorithms.pairs import COMPRESSED, add_lora, batches, pair, values
from tests.small import copies

SETTINGS = Settings(20, 3e-3, 0.1, 0.01)
NEURONS = {1: torch.tensor([0, 5, 15]), 2: torch.tensor([3])}


def main(folder: Path) -> None:
    """Every case in turn, those that are not alone with the same accelerator."""
    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    process = accelerator.process_index

    def run(
        case: str, seed: int, together: bool = True, lora: bool = False, times: int = 1, **options: Any
    ) -> None:
        fm, sub_fm = pair("bert")
        if lora:
            add_lora(fm)
            add_lora(sub_fm)
        losses: list[float] = []
        for _ in range(times):
            distil(
                fm,
                sub_fm,
                COMPRESSED,
                batches(fm, seed),
                SETTINGS,
                accelerator=accelerator if together else None,
                on_step=lambda step, steps, loss: losses.append(loss),
                **options,
            )
        result = values(sub_fm) | {"losses": torch.tensor(losses, dtype=torch.float64)}
        (folder / f"{case}.{process}.safetensors").write_bytes(to_bytes(result))
        last_models[:] = [ref(fm), ref(sub_fm)]

    last_models: list[ref[nn.Module]] = []
    kept: list[dict[str, Tensor]] = []
    run(
        "own batches",
        seed=process,
        on_checkpoint=lambda state: kept.append(copies(state)),
        checkpoint_every=8,
    )
    gc.collect()
    assert [model() for model in last_models] == [None, None], "the accelerator keeps them"
    assert len(kept) == (2 if accelerator.is_main_process else 0)
    shared: list[Any] = [kept[0] if kept else None]
    torch.distributed.broadcast_object_list(shared)
    run("resumed", seed=process, resume=shared[0])
    run("neurons", seed=process, neurons=NEURONS)
    run("LoRA", seed=process, lora=True)
    run("same batches", seed=0)
    run("alone", seed=0, together=False)
    run("twice", seed=0, times=2)
    run("twice alone", seed=0, times=2, together=False)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
