"""Loading the foundation model and its tokenizer, from a directory or the hub."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from common.errors import ModelError
from common.model.families import family_named, family_of
from common.records import ArtifactKind

# What a worker gets of a tokenizer: data for the fast tokenizer, and its settings.
TOKENIZER_FILES = {
    ArtifactKind.TOKENIZER: "tokenizer.json",
    ArtifactKind.TOKENIZER_CONFIG: "tokenizer_config.json",
}


# The new head is reported missing, and weights "load" with a progress bar: noise in a service's log.
logging.set_verbosity_error()
logging.disable_progress_bar()


def load_foundation(
    path: str, labels: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The FM with a task head for `labels`, float32, in eval mode; a new head is drawn from `seed`.

    Raises ModelError when there is no such model or it cannot be read, UnsupportedFamily when its
    architecture is not supported.
    """
    config = _config(path)
    family_of(config)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
                path, config=config, dtype=torch.float32, use_safetensors=True
            )
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {path}: cannot be loaded: {_first_line(error)}") from error
    return model.eval(), tokenizer


def _config(path: str) -> PretrainedConfig:
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model {path}: the directory holds no config.json")
        try:
            model_type = json.loads((folder / "config.json").read_text()).get("model_type")
        except ValueError as error:
            raise ModelError(f"model {path}: config.json is not valid JSON: {error}") from error
        # Asked first: transformers would otherwise refuse types it does not know in its own words.
        family_named(str(model_type))
    elif folder.is_absolute() or path.startswith("."):
        raise ModelError(f"model {path}: no such directory")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {path}: no such directory, and not to be had from the hub: {_first_line(error)}"
        ) from error
    return config


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def wire_config(config: PretrainedConfig) -> str:
    """The model configuration for workers, JSON: no code to load and no path of this machine."""
    fields = config.to_dict()
    for private in ("_name_or_path", "auto_map", "custom_pipelines"):
        fields.pop(private, None)
    return json.dumps(fields, sort_keys=True)
