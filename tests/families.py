"""A small random model of every family, to be saved as a hub directory or used as it is."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    DeiTConfig,
    Dinov2Config,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    ViTConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from common.model.families import FAMILIES
from common.model.tasks import from_config
from common.records import TaskKind
from common.task_forms import FORMS
from tests.conftest import VOCABULARY, labels_of, write_tokenizer

LAYERS, HIDDEN, FFN, HEADS = 4, 32, 64, 4
# Larger than the usual 0.02: a random model's layers must do something to be told apart.
_SPREAD = {"initializer_range": 0.2}
_SIZES = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_FFN = {"intermediate_size": FFN}
_IMAGES = {"image_size": 32, "patch_size": 8}


def small_config(model_type: str, vocabulary: int = 64, **changes: Any) -> PretrainedConfig:
    """4 layers of hidden size 32 and 64 FFN neurons, whatever the family calls them."""
    tokens = {"vocab_size": vocabulary, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    positions = {"max_position_embeddings": 66}
    decoder = {**_SIZES, **_FFN, **_SPREAD, **tokens, **positions}
    configs: dict[str, Any] = {
        "bert": lambda: BertConfig(**{**decoder, **changes}),
        "roberta": lambda: RobertaConfig(**{**decoder, **changes}),
        "distilbert": lambda: DistilBertConfig(
            **{
                "dim": HIDDEN,
                "hidden_dim": FFN,
                "n_layers": LAYERS,
                "n_heads": HEADS,
                **_SPREAD,
                **tokens,
                **positions,
                **changes,
            }
        ),
        "vit": lambda: ViTConfig(**{**_SIZES, **_FFN, **_SPREAD, **_IMAGES, **changes}),
        "deit": lambda: DeiTConfig(**{**_SIZES, **_FFN, **_SPREAD, **_IMAGES, **changes}),
        "dinov2": lambda: Dinov2Config(
            **{**_SIZES, **_SPREAD, **_IMAGES, "mlp_ratio": FFN // HIDDEN, **changes}
        ),
        "gpt2": lambda: GPT2Config(
            **{
                "n_embd": HIDDEN,
                "n_layer": LAYERS,
                "n_head": HEADS,
                "n_inner": FFN,
                "n_positions": 66,
                **_SPREAD,
                **tokens,
                **changes,
            }
        ),
        "llama": lambda: LlamaConfig(**{**decoder, **changes}),
        "mistral": lambda: MistralConfig(**{**decoder, "num_key_value_heads": 2, **changes}),
        "qwen2": lambda: Qwen2Config(**{**decoder, "num_key_value_heads": 2, **changes}),
    }
    config: PretrainedConfig = configs[model_type]()
    return config


def small_model(
    model_type: str, kind: TaskKind | None = None, seed: int = 0, **changes: Any
) -> PreTrainedModel:
    """A random model for `kind`, or for the family's first task, in eval mode."""
    kind = kind or FAMILIES[model_type].tasks[0]
    vocabulary = changes.pop("vocabulary", 64)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = from_config(small_config(model_type, vocabulary, **changes), kind)
    return model.eval()


def write_family(folder: Path, model_type: str, kind: TaskKind) -> Path:
    """A small random model and its tokenizer or image processor, as a hub directory."""
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        small_model(model_type, kind).save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    else:
        # As many outputs as the task has, unnamed: 2 of a language model, which has no head of its own.
        outputs = len(FORMS[kind].outputs(labels_of(kind))) or 2
        model = small_model(model_type, kind, vocabulary=len(VOCABULARY), num_labels=outputs)
        model.save_pretrained(folder)
        # A language model's texts end somewhere.
        write_tokenizer(folder, eos_token="[SEP]")
    return folder


def small_inputs(model: PreTrainedModel, count: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs: images, or token rows of which all but the first end in padding."""
    draw = torch.Generator().manual_seed(seed)
    if TaskKind.IMAGE_CLASSIFICATION in FAMILIES[model.config.model_type].tasks:
        return {"pixel_values": torch.randn(count, 3, 32, 32, generator=draw)}
    tokens = torch.randint(4, model.config.vocab_size, (count, 8), generator=draw)
    mask = torch.ones_like(tokens)
    for row in range(1, count):
        mask[row, 8 - row :] = 0
    return {"input_ids": tokens.where(mask.bool(), torch.tensor(0)), "attention_mask": mask}
