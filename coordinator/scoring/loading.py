"""What is scored: a plain transformers model, or a PEFT adapter on its foundation model."""

import warnings
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from common.config.model_path import names_directory
from common.data.processors import Processor, load_processor
from common.errors import ModelError
from common.listing import first_few
from common.model.families import FAMILIES
from common.model.layers import positions_of
from common.model.tasks import auto_class
from common.records import TaskKind
from common.task_forms import FORMS
from coordinator.modelling.checkpoint import reason
from coordinator.modelling.hub import asked_of_hub

# What it reports by the screenful is judged and told in a line here; its bars are noise.
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()

_ADAPTER = "adapter_config.json"
_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "tokenizer.model")
_IMAGES = ("preprocessor_config.json", "processor_config.json")
# How classes of transformers end, and what they do.
_HEADS = (
    ("ForSequenceClassification", TaskKind.TEXT_CLASSIFICATION),
    ("ForTokenClassification", TaskKind.TOKEN_CLASSIFICATION),
    ("ForImageClassification", TaskKind.IMAGE_CLASSIFICATION),
    ("ForImageClassificationWithTeacher", TaskKind.IMAGE_CLASSIFICATION),
    ("ForCausalLM", TaskKind.CAUSAL_LM),
    ("LMHeadModel", TaskKind.CAUSAL_LM),
)
_PEFT_TASKS = {
    "SEQ_CLS": TaskKind.TEXT_CLASSIFICATION,
    "TOKEN_CLS": TaskKind.TOKEN_CLASSIFICATION,
    "CAUSAL_LM": TaskKind.CAUSAL_LM,
}
# Of texts whose model says of no number how long they may be.
_USUAL_LENGTH = 1024


@dataclass(frozen=True)
class Subject:
    """A model that is scored, in eval mode, with what prepares its inputs."""

    model: PreTrainedModel
    processor: Processor
    kind: TaskKind
    labels: tuple[str, ...]
    positions: int | None
    """Tokens that a text can have; None: its configuration names no number."""

    @property
    def usual_length(self) -> int:
        """Tokens of a text at most, unless something else is asked for."""
        return min(self.positions or _USUAL_LENGTH, _USUAL_LENGTH)


class Held(StrEnum):
    """What weights are held and computed with in."""

    AUTO = "auto"
    """float32 on a CPU, where it is fastest; on other devices as the model was published."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def load_subject(path: str, base: str | None, device: torch.device, held: Held = Held.AUTO) -> Subject:
    """The model in the folder `path`, or by its id on the hub; an adapter goes on its foundation model, which
    is `base`, or where the adapter says.

    Raises ModelError when it cannot be loaded, when weights are missing, or when it is of no kind that is
    scored.
    """
    _require_folder(path)
    adapter = _adapter(path)
    if adapter is None and base is not None:
        raise ModelError(f"{path} is no adapter: there is no {_ADAPTER} in it; leave out --base")
    root = path if adapter is None else _base_of(path, adapter, base)
    config = _config(path if (Path(path) / "config.json").is_file() or adapter is None else root)
    kind = _kind(path, config, adapter)
    labels = _labels(config, kind)
    config.dtype = _dtype(config, device, held)
    model = _loaded(root, config, kind, adapter)
    if adapter is not None:
        model = _with_adapter(model, path, root)
    if kind is TaskKind.CAUSAL_LM:
        # Likelihoods need no cache; generation asks for one.
        model.config.use_cache = False
    own = _IMAGES if kind is TaskKind.IMAGE_CLASSIFICATION else _TOKENIZERS
    has_own = not Path(path).is_dir() or any((Path(path) / name).is_file() for name in own)
    processor = load_processor(path if has_own else root, kind)
    return Subject(model.eval().to(device), processor, kind, labels, _positions(model))


def _require_folder(path: str) -> None:
    if Path(path).is_file():
        raise ModelError(f"model {path}: this is a file; name the model's folder")
    if not Path(path).is_dir() and names_directory(path):
        raise ModelError(f"model {path}: no such folder")


def _adapter(path: str) -> PeftConfig | None:
    if not (Path(path) / _ADAPTER).is_file():
        return None
    try:
        found: PeftConfig = PeftConfig.from_pretrained(path)
    except Exception as error:
        # Of no one class: whatever peft makes of a wrong value.
        raise ModelError(f"adapter {path}: {_ADAPTER} cannot be used: {reason(error)}") from error
    if found.is_prompt_learning:
        raise ModelError(
            f"adapter {path}: it is of the kind {found.peft_type}, which is not scored; LoRA's are"
        )
    return found


def _base_of(path: str, adapter: PeftConfig, base: str | None) -> str:
    """Where the adapter's foundation model is. Raises ModelError."""
    if base is not None:
        _require_folder(base)
        return base
    named = adapter.base_model_name_or_path
    if not named or (not Path(named).is_dir() and names_directory(named)):
        where = f", which it names as {named!r}, is not there" if named else " is not named in it"
        raise ModelError(f"adapter {path}: its foundation model{where}; say where it is with --base")
    return str(named)


def _config(path: str) -> PretrainedConfig:
    here, load = Path(path).is_dir(), partial(AutoConfig.from_pretrained, trust_remote_code=False)
    try:
        config: PretrainedConfig = load(path) if here else asked_of_hub(path, load)
    except ModelError:
        raise
    except Exception as error:
        # Of no one class, as above.
        told = "config.json cannot be used" if here else "no such directory, and not to be had from the hub"
        raise ModelError(f"model {path}: {told}: {reason(error)}") from error
    return config


def _kind(path: str, config: PretrainedConfig, adapter: PeftConfig | None) -> TaskKind:
    """By the class that its configuration names; an adapter may say it, too."""
    names = list(config.architectures or ())
    kind = next((kind for name in names for end, kind in _HEADS if name.endswith(end)), None)
    if (
        adapter is not None
        and (own := _PEFT_TASKS.get(str(adapter.task_type).rpartition(".")[2])) is not None
    ):
        # Of the base's configuration it is the base's kind.
        kind = own
    if kind is None:
        told = first_few(names) or "none"
        ends = ", ".join(end for end, _ in _HEADS[:3])
        raise ModelError(
            f"model {path}: config.json names no class that is scored (architectures: {told}); "
            f"scored are {ends} and ForCausalLM"
        )
    if kind is TaskKind.TEXT_CLASSIFICATION:
        if config.problem_type == "multi_label_classification":
            return TaskKind.TEXT_MULTI_LABEL
        if config.problem_type == "regression" or config.num_labels == 1:
            return TaskKind.TEXT_REGRESSION
    return kind


def _labels(config: PretrainedConfig, kind: TaskKind) -> tuple[str, ...]:
    if not FORMS[kind].named:
        return ()
    names = {int(i): str(name) for i, name in dict(config.id2label or {}).items()}
    return tuple(names[i] for i in sorted(names))


def _dtype(config: PretrainedConfig, device: torch.device, held: Held) -> torch.dtype:
    """In 16 bits likelihoods move by tenths with the rows beside them; float32 keeps four digits."""
    if held is not Held.AUTO:
        found: torch.dtype = getattr(torch, held)
        return found
    published = config.dtype
    return published if device.type != "cpu" and isinstance(published, torch.dtype) else torch.float32


def _loaded(
    root: str, config: PretrainedConfig, kind: TaskKind, adapter: PeftConfig | None
) -> PreTrainedModel:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = auto_class(kind).from_pretrained(
                root,
                config=config,
                dtype=config.dtype,
                use_safetensors=True,
                trust_remote_code=False,
                # An adapter brings a head of its own, of another size.
                ignore_mismatched_sizes=adapter is not None,
                output_loading_info=True,
            )
    except Exception as error:
        # Of no one class: safetensors, the hub and transformers each have their own.
        raise ModelError(f"model {root}: cannot be loaded: {reason(error)}") from error
    brought = tuple(getattr(adapter, "modules_to_save", None) or ())
    missing = {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}
    left = sorted(name for name in missing if not any(part in name.split(".") for part in brought))
    if left:
        raise ModelError(
            f"model {root}: its file lacks {first_few(left)}; "
            "scores would be of random numbers in their place"
        )
    found: PreTrainedModel = model
    return found


def _with_adapter(model: PreTrainedModel, path: str, root: str) -> PreTrainedModel:
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5 deprecates.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            whole: Any = PeftModel.from_pretrained(model, path)
    except Exception as error:
        # Of no one class, as above: sizes that do not fit, names that are not there.
        raise ModelError(f"adapter {path} does not go on {root}: {reason(error)}") from error
    inner: PreTrainedModel = whole.get_base_model()
    return inner


def _positions(model: PreTrainedModel) -> int | None:
    if model.config.model_type in FAMILIES and (own := positions_of(model)) is not None:
        return own
    known = getattr(model.config, "max_position_embeddings", None) or getattr(
        model.config, "n_positions", None
    )
    return None if known is None else int(known)
