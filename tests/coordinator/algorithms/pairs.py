"""A small FM of any family, the sub-FM cut from it, and batches for both."""

from collections.abc import Iterator
from itertools import count

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.model.families import FAMILIES, family_of
from common.model.ffn import Projection, ffns_of
from common.model.submodel import build
from coordinator.algorithms.compression import cut, ffn_widths, plan_ffn_pruning
from coordinator.algorithms.saliency import l2_norm
from tests.families import small_inputs, small_model

# The sub-FM's layers that kept 16 of 64 neurons; the first and the last are whole.
COMPRESSED = (1, 2)


def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """FM and sub-FM, always the same ones."""
    fm = small_model(family)
    plan = plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], drop_ratio=0.75)
    assert plan.compressed == COMPRESSED
    return fm, build(fm.config, FAMILIES[family].tasks[0], ffn_widths(fm, plan), cut(fm, plan))


def batches(model: PreTrainedModel, seed: int = 0) -> Iterator[Batch]:
    """Four examples at a time, without end."""
    return (Batch(small_inputs(model, 4, seed=1000 * seed + number)) for number in count())


def add_lora(model: PreTrainedModel) -> None:
    """LoRA, already trained to something, on attention output and FFN, the latter's maps wrapped."""
    family = family_of(model.config)
    paths = "|".join((family.attention[-1], *family.ffn_in, family.ffn_out))
    config = LoraConfig(
        r=2,
        lora_dropout=0.5,
        target_modules=rf".*\.\d+\.({paths})",
        # As peft wants it for maps that are stored transposed.
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    adapted = get_peft_model(model, config)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=draw))
    assert all(isinstance(f.out, Projection) and f.out.site is not f.out.module for f in ffns_of(model))


def values(model: PreTrainedModel) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether both hold the same names and, under each, the same values."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
