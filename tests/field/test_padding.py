"""Decoders that classify read the last token before the padding, whatever their folder calls padding."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.encoding import encode
from common.data.examples import Examples
from common.data.processors import Processor, processor_files, write_processor
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.submodel import build, own_weights
from common.model.wire_config import read_config
from common.records import TaskKind, TaskSpec
from coordinator.modelling.foundation import load_foundation, wire_config
from tests.conftest import LABELS, VOCABULARY, sentences, write_tokenizer
from tests.families import small_model
from tests.field.test_models import edit_json

TEXT = TaskKind.TEXT_CLASSIFICATION
DECODERS = [name for name, family in FAMILIES.items() if {TaskKind.CAUSAL_LM, TEXT} <= set(family.tasks)]
TASK = TaskSpec(TEXT, LABELS, 32, False)


def answers(model: torch.nn.Module, processor: Processor, batch_size: int) -> Tensor:
    """Scores by text, in the order of `sentences`."""
    texts, labels = sentences(12)
    data = encode(processor, Examples("texts", texts, label_names=labels), TEXT, 32, LABELS)
    with torch.no_grad():
        batches = [range(i, min(i + batch_size, 12)) for i in range(0, 12, batch_size)]
        return torch.cat([model(**data.batch(rows).inputs).logits for rows in batches])


@pytest.mark.parametrize(
    ("told", "pad_token", "side"),
    [(-1, "[PAD]", "right"), (None, None, "left"), (7, "[PAD]", "left"), (0, None, "right")],
)
@pytest.mark.parametrize("model_type", DECODERS)
def test_one_by_one_and_in_batches_the_answers_are_the_same(
    model_type: str, told: int | None, pad_token: str | None, side: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    small_model(model_type, TEXT, vocabulary=len(VOCABULARY)).save_pretrained(folder)
    write_tokenizer(folder, eos_token="[SEP]", padding_side=side)
    edit_json(folder / "config.json", pad_token_id=told)
    edit_json(folder / "tokenizer_config.json", pad_token=pad_token)
    loaded = load_foundation(str(folder), TEXT, LABELS, 1)
    alone = answers(loaded.model, loaded.processor, 1)
    assert torch.allclose(answers(loaded.model, loaded.processor, 5), alone, atol=1e-4)
    # As a worker has it, from what goes over the wire.
    config = read_config(wire_config(loaded.model.config), TASK)
    assert config.pad_token_id == json.loads(wire_config(loaded.model.config))["pad_token_id"] >= 0
    widths = [ffn.width for ffn in ffns_of(loaded.model)]
    there = build(config, TEXT, widths, own_weights(loaded.model))
    processor = write_processor(tmp_path / "worker", processor_files(loaded.processor), TEXT)
    assert torch.allclose(answers(there, processor, 1), alone, atol=1e-5)
    assert torch.allclose(answers(there, processor, 5), alone, atol=1e-4)
