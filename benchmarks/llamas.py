"""LLaMAs of several sizes in bfloat16, their sub-FMs, and tokens by chance: for what needs no text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from common.data.batches import Batch, Dataset
from common.errors import ModelError
from common.model.ffn import ffns_of
from common.model.submodel import build
from common.records import TaskKind
from coordinator.algorithms.compression import config_of, cut, ffn_widths, plan_ffn_pruning
from coordinator.algorithms.saliency import l2_norm

KIND = TaskKind.CAUSAL_LM
# Hidden size, layers, FFN neurons, heads, heads of keys and values, vocabulary.
SIZES = {
    "tiny": (64, 4, 256, 4, 2, 512),
    "smollm2": (576, 30, 1536, 9, 3, 49152),
    "1b": (2048, 22, 5632, 32, 4, 32000),
    "8b": (4096, 32, 14336, 32, 8, 128256),
}


@dataclass(frozen=True)
class RandomTokens(Dataset):
    """Rows of tokens by chance, on a device already."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows."""
        ids = self.ids[list(indices)]
        return Batch({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids)


def model_of(size: str, device: torch.device) -> tuple[PreTrainedModel, bool]:
    """The FM in bfloat16, and whether its weights are real ones."""
    if size == "smollm2":
        try:
            from experiments.smollm2 import _FOLDER, smollm2

            path = smollm2(_FOLDER)
            real = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
            return real.to(device).eval(), True  # type: ignore[arg-type]  # mistyped in transformers 5
        except (ModelError, ImportError) as error:
            print(f"{size}: weights drawn at random, for {error}", flush=True)
    hidden, layers, ffn, heads, kv, vocabulary = SIZES[size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        tie_word_embeddings=size == "smollm2",
        dtype=torch.bfloat16,
    )
    torch.manual_seed(7)
    with device:
        model = LlamaForCausalLM._from_config(config)
    return model.eval(), False


def sub_model_of(fm: PreTrainedModel, device: torch.device) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """The sub-FM, with weights of its own, and its compressed layers."""
    plan = plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], 0.75)
    weights = {name: tensor.clone() for name, tensor in cut(fm, plan).items()}
    return build(config_of(fm, plan), KIND, ffn_widths(fm, plan), weights, device), tuple(plan.compressed)
