"""A small random model of every family, to be saved as a hub directory or used as it is."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from common.model.families import FAMILIES
from common.model.tasks import from_config
from common.records import TaskKind
from common.task_forms import FORMS
from tests.conftest import VOCABULARY, labels_of, write_tokenizer

LAYERS, HIDDEN, FFN, HEADS = 4, 32, 64, 4
# What is tested everyday at length, by whole runs, say: the others are built like one of these.
EVERYDAY = ("bert", "vit", "dinov2", "gpt2", "llama")
# How else a layer may be built, each in a family that builds it so: what it takes is tested everyday, too.
BUILDS = {
    "scaled by a number": "granite",
    "normalised behind, too": "gemma2",
    "normalised behind": "olmo2",
    "tokens end to end": "opt",
    "no biases": "nemotron",
    "gate and up in one": "glm4",
}
TEXT_FAMILIES = tuple(
    n for n, family in FAMILIES.items() if TaskKind.IMAGE_CLASSIFICATION not in family.tasks
)
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
    encoder = decoder
    grouped = {**decoder, "num_key_value_heads": 2}
    # Where heads have a size of their own.
    sized = {**grouped, "head_dim": HIDDEN // HEADS}
    images = {**_SIZES, **_SPREAD, **_IMAGES}
    configs: dict[str, dict[str, Any]] = {
        "bert": encoder,
        "roberta": encoder,
        "distilbert": {
            "dim": HIDDEN,
            "hidden_dim": FFN,
            "n_layers": LAYERS,
            "n_heads": HEADS,
            **_SPREAD,
            **tokens,
            **positions,
        },
        "vit": {**images, **_FFN},
        "deit": {**images, **_FFN},
        "clip": {"vision_config": {**images, **_FFN}, "initializer_factor": 3.0},
        "siglip": {"vision_config": {**_SIZES, **_FFN, **_IMAGES}},
        "beit": {**images, **_FFN, "layer_scale_init_value": 0.5, "use_relative_position_bias": True},
        "dinov2": {**images, "mlp_ratio": FFN // HIDDEN},
        "gpt2": {
            "n_embd": HIDDEN,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_inner": FFN,
            "n_positions": 66,
            **_SPREAD,
            **tokens,
        },
        "llama": decoder,
        "mistral": grouped,
        "qwen2": grouped,
        "xlm-roberta": encoder,
        "camembert": encoder,
        "ernie": encoder,
        # As DeBERTa v3 is published.
        "deberta-v2": {
            **encoder,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "pooler_hidden_size": HIDDEN,
        },
        "mpnet": encoder,
        "electra": {**encoder, "embedding_size": 16},
        "eurobert": encoder,
        "dinov2_with_registers": {**images, "mlp_ratio": FFN // HIDDEN},
        "qwen3": sized,
        "smollm3": grouped,
        "ministral": sized,
        "gemma": sized,
        "helium": sized,
        "stablelm": grouped,
        "starcoder2": grouped,
        "phi": grouped,
        "cohere2": grouped,
        "gpt_neox": decoder,
        "gemma2": {**sized, "query_pre_attn_scalar": HIDDEN // HEADS, "final_logit_softcapping": 2.0},
        "gemma3_text": {
            **sized,
            "query_pre_attn_scalar": HIDDEN // HEADS,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
            "sliding_window": 4,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
        "olmo2": grouped,
        "olmo3": {
            **grouped,
            "sliding_window": 4,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5e5},
            },
        },
        "exaone4": grouped,
        "modernbert": {**encoder, "local_attention": 8},
        "phi3": {
            **decoder,
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 2.2, 2.4, 2.6],
            },
        },
        "glm": sized,
        "glm4": sized,
        "nemotron": grouped,
        "opt": {**_SIZES, "ffn_dim": FFN, "init_std": 0.2, **tokens, **positions},
        "granite": {
            **grouped,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 3.0,
            "attention_multiplier": 0.3,
            "logits_scaling": 0.5,
        },
    }
    fields = configs[model_type]
    if sizes := FAMILIES[model_type].sizes:
        inner = {name: changes.pop(name) for name in changes.keys() & fields[sizes].keys()}
        fields = {**fields, sizes: {**fields[sizes], **inner}}
    config: PretrainedConfig = AutoConfig.for_model(model_type, **{**fields, **changes})
    return config


def is_gated(model_type: str) -> bool:
    """Whether the FFN has a gate."""
    return len(FAMILIES[model_type].ffn_in) * FAMILIES[model_type].rows == 2


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
