"""Run by test_sharded_distillation in each of several processes: FOLDER RANK COUNT.

Distils pairs that the processes hold together; the main one writes {case}.safetensors, whole.
"""

import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from common.data.batches import Batch
from common.storage.tensors import to_bytes
from coordinator.algorithms.distillation import Settings, hidden_error
from coordinator.algorithms.sharded_distillation import distil_sharded
from coordinator.algorithms.sharding import Ranks, shard, whole
from tests.coordinator.algorithms.pairs import COMPRESSED, batches, pair
from tests.small import copies

SETTINGS = Settings(6, 3e-3, 0.1, 0.01, 0.1, 0.1)
# A fused FFN is of two maps in one module; GPT-2 keeps its weights transposed.
FAMILIES = ("bert", "vit", "gpt2", "llama", "phi3")


def one_row(batch: Batch) -> Batch:
    """Fewer rows than there are processes."""
    return Batch({name: values[:1] for name, values in batch.inputs.items()})


def main(folder: Path, rank: int, count: int) -> None:
    """Every case in turn."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "meeting"), count)  # type: ignore[attr-defined]  # of its C half
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    ranks = Ranks(init_device_mesh("cpu", (count,)))

    def run(
        case: str,
        family: str,
        half: bool = False,
        rows: bool = True,
        resume: bool = False,
        settings: Settings = SETTINGS,
    ) -> None:
        fm, sub_fm = pair(family)
        if half:
            fm.bfloat16()
            sub_fm.bfloat16()
        shard(fm, ranks)
        shard(sub_fm, ranks, trained=True)
        data = batches(fm) if rows else (one_row(batch) for batch in batches(fm))
        losses: list[float] = []
        distil_sharded(
            fm,
            sub_fm,
            COMPRESSED,
            data,
            settings,
            ranks,
            on_step=lambda step, steps, loss: losses.append(loss),
            on_checkpoint=lambda state: kept.append(copies(state)),
            checkpoint_every=4,
            resume=shared[0] if resume else None,
        )
        parts = {name: p for name, p in sub_fm.named_parameters() if p.device.type != "meta"}
        result = {name: whole(p.detach()).cpu() for name, p in parts.items()}
        result["losses"] = torch.tensor(losses, dtype=torch.float64)
        result["error"] = torch.tensor(hidden_error(fm, sub_fm, COMPRESSED, islice(batches(fm), 2)))
        held = sum(p.to_local().numel() for p in parts.values())  # type: ignore[attr-defined]  # DTensors
        result["held"] = torch.tensor([held, sum(p.numel() for p in parts.values())])
        if ranks.is_main:
            (folder / f"{case}.safetensors").write_bytes(to_bytes(result))

    kept: list[dict[str, Tensor]] = []
    shared: list[dict[str, Tensor] | None] = [None]
    for family in FAMILIES:
        run(family, family)
    assert len(kept) == (len(FAMILIES) if ranks.is_main else 0)
    shared = [kept[0] if kept else None]
    dist.broadcast_object_list(shared)
    run("resumed", "bert", resume=True)
    run("half", "llama", half=True)
    run("one row", "bert", rows=False)
    run("margin", "bert", settings=replace(SETTINGS, margin=0.2))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
