"""The small random BERT of `conftest`, loaded, and texts tokenised for it."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from common.data.batches import Batch, TextDataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.data.processors import load_processor
from common.records import AdapterSpec, AdapterTargets, TaskKind
from tests.conftest import LABELS, sentences

TEXT = TaskKind.TEXT_CLASSIFICATION
LORA = AdapterSpec(AdapterTargets.ATTENTION, rank=4, alpha=8.0, dropout=0.1)
HEAD_ONLY = AdapterSpec(AdapterTargets.NONE, rank=4, alpha=8.0, dropout=0.1)


def load_model(folder: Path) -> PreTrainedModel:
    """The model in `folder`, in eval mode."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder)
    return model.eval()


def load_texts(folder: Path, count: int, seed: int = 0) -> TextDataset:
    """Labelled sentences of different lengths."""
    texts, labels = sentences(count, seed)
    examples = Examples("sentences", texts, label_names=labels)
    dataset = encode(load_processor(folder, TEXT), examples, TEXT, 32, LABELS)
    assert isinstance(dataset, TextDataset)
    return dataset


@torch.no_grad()
def logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    """The model's output for a batch."""
    return model(**batch.inputs).logits


def copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Values that no later change reaches."""
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Whether both hold the same names and, under each, the same values."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
