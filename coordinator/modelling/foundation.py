"""Loading the foundation model and its tokenizer or image processor, from a directory or the hub."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from common.config.model_path import names_directory
from common.data.images import ImageProcessor
from common.data.processors import Processor, load_processor
from common.errors import ModelError
from common.model.families import family_named, family_of
from common.model.tasks import auto_class, plain, require_task
from common.records import TaskKind
from coordinator.modelling.hub import asked_of_hub

# The new head is reported missing, and weights "load" with a progress bar: noise in a service's log.
logging.set_verbosity_error()
logging.disable_progress_bar()


def load_foundation(
    path: str, kind: TaskKind, labels: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, Processor]:
    """The FM with a head for the task, float32, in eval mode, and what prepares its inputs.

    A new head is drawn from `seed`. Raises ModelError when there is no such model, it cannot be read
    or cannot do the task, UnsupportedFamily when its architecture is not supported.
    """
    config = plain(_config(path))
    family_of(config)
    require_task(config, kind)
    if kind is not TaskKind.CAUSAL_LM:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    processor = load_processor(path, kind)
    if not isinstance(processor, ImageProcessor) and getattr(config, "pad_token_id", None) is None:
        # Decoders often have none, and their classifiers cannot tell the last token without.
        config.pad_token_id = processor.pad_token_id
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = auto_class(kind).from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,
                # A published model's head for other classes makes room for the task's own.
                ignore_mismatched_sizes=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"model {path}: cannot be loaded: {_first_line(error)}") from error
    return model.eval(), processor


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
    elif names_directory(path):
        raise ModelError(f"model {path}: no such directory")
    try:
        load = AutoConfig.from_pretrained
        config: PretrainedConfig = load(path) if folder.is_dir() else asked_of_hub(path, load)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model {path}: no such directory, and not to be had from the hub: {_first_line(error)}"
        ) from error
    return config


def hub_revision(path: str) -> str:
    """The commit of a hub's repository that is used here. Raises ModelError when it is not to be had."""
    return str(getattr(_config(path), "_commit_hash", None) or "unknown")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def wire_config(config: PretrainedConfig) -> str:
    """The model configuration for workers, JSON: no code to load and no path of this machine."""
    fields = config.to_dict()
    for private in ("_name_or_path", "auto_map", "custom_pipelines"):
        fields.pop(private, None)
    return json.dumps(fields, sort_keys=True)
