"""What a task announces for download, judged before its first byte is asked for."""

import json
from collections import Counter
from dataclasses import dataclass

import torch

from common.data.processors import FILES, MOST_BYTES
from common.errors import BadMessage, ModelError
from common.model.adapter import PEFT_PREFIX, Adapted
from common.model.families import sizes_of
from common.model.ffn import Projection, ffns_of
from common.model.submodel import Held, empty, tied_names
from common.model.wire_config import MOST, MOST_CLASSES, MOST_LAYERS, read_config
from common.records import ArtifactKind, ArtifactRef, ModelTask, RunSpec, SubModelRef
from common.storage.schema import Schema, content_bytes, schema_of
from common.storage.tensor_header import MAX_HEADER_BYTES

# What a worker downloads for one task, all together, unless told otherwise.
MOST_DOWNLOAD_BYTES = 20 * 10**9
# Values that a model makes for itself beside its weights: masks, frequencies.
_MOST_BUFFER_BYTES = 2**30
_MOST_LABELS_BYTES = 2**26
_LORA_A = ".lora_A.weight"


@dataclass(frozen=True)
class Limits:
    """Bytes that the files of a sub-FM and its adapter can have at most, and the weights themselves."""

    base: int
    patch: int
    adapter: int
    weights: Schema
    tied: frozenset[str]
    """Names of weights that are others', and need not be sent."""


def limits_of(run: RunSpec, wanted: SubModelRef) -> Limits:
    """By the shapes that configuration, widths and LoRA's rank imply; nothing of that size is reserved.

    Raises ModelError, UnsupportedFamily when there can be no such model.
    """
    config = read_config(wanted.config_json, run.task)
    layers = sizes_of(config).num_hidden_layers
    if layers != len(wanted.ffn_widths) or len(wanted.ffn_widths) > MOST_LAYERS:
        raise ModelError(
            f"{len(wanted.ffn_widths)} FFN widths given for {layers} layers of at most {MOST_LAYERS}"
        )
    if not all(1 <= width <= MOST for width in (*wanted.ffn_widths, run.adapter.rank)):
        raise ModelError(f"FFN widths and LoRA's rank must be 1 to {MOST}")
    try:
        with torch.device("meta"):
            held = Held(run.quantization, wanted.new_modules)
            model = empty(config, run.task.kind, wanted.ffn_widths, held, buffers=True)
            weights, tied = schema_of(model.state_dict()), tied_names(model)
            ffns = ffns_of(model)
            ffn = sum(p.nbytes for f in ffns for p in f.neuron_parameters())
            ffn += sum(t.nbytes for f in ffns for m in (*f.ins, f.out) for t in m.module.buffers())
            adapted = Adapted(model, run.task.kind, run.adapter, new=wanted.new_modules)
    except ModelError:
        raise
    except Exception as error:
        # Of no one class: what transformers makes of sizes that do not fit each other.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the run's model configuration cannot be used: {reason}") from error
    if (buffers := sum(b.nbytes for b in model.buffers())) > _MOST_BUFFER_BYTES:
        raise ModelError(f"the model wants {buffers} bytes beside its weights")
    adapter = adapted.schema()
    exact = not run.adapter.targets.neurons
    residuals = sum(_mapped(adapted, name) for name in adapter if exact and name.endswith(_LORA_A))
    return Limits(
        base=content_bytes(weights) + MAX_HEADER_BYTES,
        # Beside the values each neuron's number.
        patch=ffn + 8 * sum(wanted.ffn_widths) + MAX_HEADER_BYTES,
        adapter=content_bytes(adapter) + residuals + MAX_HEADER_BYTES,
        weights={name: spec for name, spec in weights.items() if name not in tied},
        tied=frozenset(tied),
    )


def _mapped(adapted: Adapted, name: str) -> int:
    """Bytes of the base weight that a LoRA stands beside: its residual has as many."""
    path = name.removeprefix(PEFT_PREFIX).removesuffix(_LORA_A)
    return Projection(adapted.base.get_submodule(path)).weight.nbytes


def judge(task: ModelTask, limits: Limits, most: int) -> None:
    """Raise BadMessage when a file announced is of a wrong kind, or larger than it can be.

    `most` bytes are allowed for all files of the task together.
    """
    sub_model = task.sub_model
    kinds = Counter(ref.kind for ref in sub_model.processor)
    if odd := [kind for kind, times in kinds.items() if kind not in FILES or times > 1]:
        raise BadMessage(f"the run announces {kinds[odd[0]]} files of kind {odd[0]} for its inputs")
    _require(sub_model.base, ArtifactKind.SUB_MODEL, limits.base)
    for patch in sub_model.patches:
        _require(patch, ArtifactKind.NEURON_PATCH, limits.patch)
    _require(task.adapter, ArtifactKind.ADAPTER, limits.adapter)
    for file in sub_model.processor:
        _require(file, file.kind, MOST_BYTES[file.kind])
    total = sum(ref.size for ref in named(task))
    if total > most:
        raise BadMessage(
            f"the run announces {total / 1e9:.1f} GB to download, --max-download allows {most / 1e9:.1f}"
        )


def require_labels_file(file: ArtifactRef) -> None:
    """Raise BadMessage when this cannot be the names of a task's classes."""
    _require(file, ArtifactKind.LABELS, _MOST_LABELS_BYTES)


def read_labels(content: bytes) -> tuple[str, ...]:
    """The names of a task's classes, of a file from the coordinator. Raises BadMessage."""
    try:
        labels = json.loads(content)
    except (ValueError, RecursionError):
        labels = None
    if not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise BadMessage("the run's file of labels is no list of names")
    if len(labels) > MOST_CLASSES:
        raise BadMessage(f"the run has {len(labels)} classes; at most {MOST_CLASSES} are taken")
    return tuple(labels)


def named(task: ModelTask) -> list[ArtifactRef]:
    """All files that a task names."""
    sub_model = task.sub_model
    return [sub_model.base, *sub_model.patches, *sub_model.processor, task.adapter]


def _require(ref: ArtifactRef, kind: ArtifactKind, most: int) -> None:
    if ref.kind is not kind:
        raise BadMessage(f"the run announces a {ref.kind} where a {kind} belongs")
    if not 0 < ref.size <= most:
        raise BadMessage(f"the run announces a {kind} of {ref.size} bytes; this model's has at most {most}")
