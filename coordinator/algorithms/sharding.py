"""Models over several processes, each of which holds an equal part of every weight: torch's FSDP2.

A layer's weights are whole only while it computes. All processes do the same things in the same order, or
they wait for each other for ever.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.model.layers import encoder_of, layers_of


@dataclass(frozen=True)
class Ranks:
    """The processes that hold models together, in one row."""

    mesh: DeviceMesh

    @property
    def count(self) -> int:
        """How many there are."""
        return self.mesh.size()

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return self.mesh.get_local_rank()

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        kind = self.mesh.device_type
        return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        total = value.detach().clone()
        dist.all_reduce(total, group=self.mesh.get_group())
        return total

    def share(self, batch: Batch) -> tuple[Batch, float]:
        """This process's rows of a batch that all have drawn, on its device, and 1.0; with fewer rows than
        processes some have none: they are given one that counts 0.0, since all must compute."""
        own = {name: values[self.rank :: self.count] for name, values in batch.inputs.items()}
        if len(next(iter(own.values()))):
            return Batch(own).to(self.device), 1.0
        return Batch({name: values[:1] for name, values in batch.inputs.items()}).to(self.device), 0.0


def shard(model: PreTrainedModel, ranks: Ranks, trained: bool = False) -> None:
    """From now on this process holds its part of the encoder's weights, in place, layer by layer.

    One that is `trained` is held in float32, and computes in what it was held in before. What is behind the
    encoder, the head, is given up: no alignment looks at it.
    """
    computed = model.dtype
    policy = MixedPrecisionPolicy()
    if trained and computed is not torch.float32:
        # Parts are gathered by layer and must be of one dtype there; FFNs are to be trained in float32.
        policy = MixedPrecisionPolicy(param_dtype=computed, reduce_dtype=torch.float32)
    encoder = encoder_of(model)
    for layer in layers_of(model):
        fully_shard(layer.float() if trained else layer, mesh=ranks.mesh, mp_policy=policy)
    fully_shard(encoder.float() if trained else encoder, mesh=ranks.mesh, mp_policy=policy)
    kept = {*encoder.modules()}
    for module in model.modules():
        if module not in kept:
            for name, parameter in module.named_parameters(recurse=False):
                empty = torch.empty_like(parameter, device="meta")
                module.register_parameter(name, nn.Parameter(empty, requires_grad=False))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, where each process has a part: all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
