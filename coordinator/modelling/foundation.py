"""Loading the foundation model and its tokenizer or image processor, from a directory or the hub."""

import json
import logging
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from common.config.choices import ModelDtype
from common.config.run import RunConfig
from common.data.images import ImageProcessor
from common.data.processors import Processor, load_processor
from common.errors import ModelError
from common.listing import first_few
from common.model.families import family_of, sizes_of
from common.model.tasks import auto_class, plain, require_task
from common.model.wire_config import CLASSES, FEW
from common.records import TaskKind
from common.runtime import seeds
from common.task_forms import FORMS
from coordinator.modelling.checkpoint import read_config, reason
from coordinator.modelling.published_head import brings_output, draw_output, rows_by_name, take_rows
from coordinator.modelling.weights import Brought, left_unread, new_modules

log = logging.getLogger(__name__)

# transformers reports by the screenful what `weights` judges and tells in a line; weights "load" with a
# progress bar, which is noise in a service's log.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Foundation:
    """The FM with a head for the task, in eval mode, and what prepares its inputs."""

    model: PreTrainedModel
    processor: Processor
    new_modules: tuple[str, ...]
    """Modules beside the head that the checkpoint did not bring: tuned in full, as the head is."""
    dtype: torch.dtype
    """What the checkpoint's weights were kept in."""


def foundation_of(config: RunConfig) -> Foundation:
    """A run's, as `load_foundation` has it."""
    task, seed = config.task, seeds.derive(config.run.seed, "head")
    return load_foundation(config.model.path, task.kind, task.labels, seed, config.model.dtype)


def load_foundation(
    path: str,
    kind: TaskKind,
    labels: tuple[str, ...],
    seed: int,
    held: ModelDtype = ModelDtype.AUTO,
) -> Foundation:
    """The FM as the task wants it, its weights `held` so; what is new of it is drawn from `seed`, and the log
    says what.

    Raises ModelError when there is no such model, it cannot be read, its weights are not those of its
    configuration, or it cannot do the task; UnsupportedFamily when its architecture is not supported.
    """
    config = plain(read_config(path))
    family = family_of(config)
    require_task(config, kind)
    processor = load_processor(path, kind)
    if not isinstance(processor, ImageProcessor) and TaskKind.CAUSAL_LM in family.tasks:
        # A decoder's classifier reads the last token that is not this one: it must be the one that pads.
        config.pad_token_id = processor.pad_token_id
    dtype = config.dtype if isinstance(config.dtype, torch.dtype) else torch.float32
    if held is ModelDtype.BFLOAT16 and not family.half:
        raise ModelError(
            f"model {path}: a {family.model_type} model computes in float32 alone; "
            'set model.dtype = "float32"'
        )
    config.dtype = _held(dtype, held if family.half else ModelDtype.FLOAT32)
    if kind is TaskKind.CAUSAL_LM:
        model, brought = _loaded(path, config, kind, seed)
    else:
        model, brought = _with_head(path, config, kind, FORMS[kind].outputs(labels), seed)
    _untie(model)
    new = new_modules(path, brought, family, kind, sizes_of(config).num_hidden_layers)
    _tell(path, brought, new)
    return Foundation(model.eval(), processor, new, dtype)


def _with_head(
    path: str, config: PretrainedConfig, kind: TaskKind, outputs: tuple[str, ...], seed: int
) -> tuple[PreTrainedModel, Brought]:
    """With the published head where its outputs are the task's, by name; with a new one otherwise."""
    published = {int(i): str(name) for i, name in dict(config.id2label or {}).items()}
    rows = rows_by_name(published, outputs)
    if len(outputs) == 1 and len(published) > 1:
        # A number is no class among others, though transformers calls a first class without a name so, too.
        rows = None
    if rows is not None:
        model, brought = _loaded(path, config, kind, seed)
        if brings_output(model, kind, brought):
            take_rows(model, kind, rows)
            _name_classes(model.config, outputs)
            log.info("model %s: its published head knows the task's classes, and is taken by name", path)
            return model, brought
    _name_classes(config, outputs)
    model, brought = _loaded(path, config, kind, seed)
    if brings_output(model, kind, brought):
        # As many classes by chance.
        draw_output(model, kind, seed)
        told = first_few(published[i] for i in sorted(published))
        log.info(
            "model %s: its published head is for %s, not for the task's classes; it starts anew "
            "(if they are the same, name them in id2label of its config.json)",
            path,
            told,
        )
    return model, brought


def _loaded(
    path: str, config: PretrainedConfig, kind: TaskKind, seed: int
) -> tuple[PreTrainedModel, Brought]:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model, info = auto_class(kind).from_pretrained(
                path,
                config=config,
                dtype=config.dtype,
                use_safetensors=True,
                # A published model's head for other classes makes room for the task's own; what else does
                # not fit is refused by its name.
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        # Of no one class: safetensors, the hub and transformers each have their own.
        raise ModelError(f"model {path}: cannot be loaded: {reason(error)}") from error
    if info["error_msgs"]:
        raise ModelError(f"model {path}: cannot be loaded: {' '.join(str(info['error_msgs']).split())[:300]}")
    return model, Brought.of(info)


def _held(published: torch.dtype, wanted: ModelDtype) -> torch.dtype:
    """float16 becomes float32: few processors compute with it, and its range is too small to train in."""
    match wanted:
        case ModelDtype.FLOAT32:
            return torch.float32
        case ModelDtype.BFLOAT16:
            return torch.bfloat16
    return torch.bfloat16 if published is torch.bfloat16 else torch.float32


def _untie(model: PreTrainedModel) -> None:
    """A checkpoint may bring a head that its configuration says is the embedding: it stays a head."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is not model.get_input_embeddings().weight:
        model.config.tie_word_embeddings = False


def _name_classes(config: PretrainedConfig, labels: tuple[str, ...]) -> None:
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def hub_revision(path: str) -> str:
    """The commit of a hub's repository that is used here. Raises ModelError when it is not to be had."""
    return str(getattr(read_config(path), "_commit_hash", None) or "unknown")


def _tell(path: str, brought: Brought, new: tuple[str, ...]) -> None:
    """What of the model is new, and what of the file goes unread."""
    if drawn := sorted({*brought.missing, *brought.mismatched}):
        modules = sorted({name.rpartition(".")[0] for name in drawn})
        log.info("model %s: new, drawn from the run's seed: %s", path, ", ".join(modules))
    if new:
        log.info("model %s: its checkpoint lacks %s, tuned with the head", path, ", ".join(new))
    if unread := left_unread(brought):
        log.info("model %s: the task does not read %s", path, unread)


def wire_config(config: PretrainedConfig) -> str:
    """The model configuration for workers, JSON: no code to load and no path of this machine."""
    fields = config.to_dict()
    without = ["_name_or_path", "auto_map", "custom_pipelines"]
    if len(config.id2label or ()) > FEW:
        # Classes are the task's, on both sides; there may be too many of them for a message.
        without += CLASSES
    for key in without:
        fields.pop(key, None)
    return json.dumps(fields, sort_keys=True)
