"""What workers will need, tried at the start of a run, before anyone waits for it."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.config.run import RunConfig
from common.data.batches import Batch, Dataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.data.processors import processor_files, write_processor
from common.errors import ConfigError, ModelError
from common.model.families import sizes_of
from common.model.ffn import ffns_of
from common.model.layers import positions_of
from common.model.passes import logits
from common.model.submodel import build, own_weights
from common.model.wire_config import read_config
from common.records import ArtifactKind, ArtifactRef, SubModelRef, TaskKind
from common.transport.rpc import MAX_MESSAGE_BYTES
from common.transport.wire import run_spec_to_pb, sub_model_to_pb
from coordinator.context import labels_apart, of_conversations, run_spec
from coordinator.modelling.chat_check import check_chat_template
from coordinator.modelling.checkpoint import reason
from coordinator.modelling.foundation import Foundation, wire_config
from coordinator.storage.alignments import MOST_PATCHES
from coordinator.storage.class_counts import StoredClasses

log = logging.getLogger(__name__)

# Rows of the batch that is tried: the first ones, and the longest.
_ROWS = 3
# Of a message, beside what is counted here: a session's name, numbers, an adapter's digest.
_ROOM_BYTES = 16 * 1024
# Of a patch that an alignment between rounds adds to what a task names.
_PATCH_BYTES = 96
# A worker's scores beside the coordinator's, of the same weights: no more than rounding apart.
_NOISE = 1e-3

_WORDS = "What stands here\nis read by nobody; 12.5 % are numbers, some naïve: \u65e5\u672c\u8a9e \U0001f600."


def check_run(loaded: Foundation, config: RunConfig, data: Sequence[Dataset | None]) -> Batch:
    """Lengths, vocabulary, weights, what goes to workers, and a forward pass of the FM on its device.

    `data` are the owner's own; the first that is there gives the batch, else one is made up. Returns the
    batch. Raises ConfigError, ModelError, DataError.
    """
    path, task = config.model.path, config.task
    if isinstance(loaded.processor, PreTrainedTokenizerBase):
        _check_length(loaded.model, path, task.max_length)
        _check_vocabulary(loaded.model, loaded.processor, path)
    _check_finite(loaded.model, f"model {path}")
    _check_messages(loaded.model, config)
    _check_processor(loaded, config)
    there = next((one for one in data if one is not None and len(one)), None)
    batch = _some(there if there is not None else _made_up(loaded, config))
    device = next(loaded.model.parameters()).device
    batch = batch.to(device)
    _check_elsewhere(loaded.model, config, batch, f"model {path}")
    return batch


def check_sub_model(sub_fm: PreTrainedModel, config: RunConfig, batch: Batch) -> None:
    """The sub-FM is whole, and as workers build it answers as here. Raises ModelError."""
    what = f"model {config.model.path}: its sub-FM"
    _check_finite(sub_fm, what)
    _check_elsewhere(sub_fm, config, batch, what)


def _check_elsewhere(sub_fm: PreTrainedModel, config: RunConfig, batch: Batch, what: str) -> None:
    """What workers make of configuration and weights answers as the model itself."""
    task = run_spec(config, "").task
    widths, device = [ffn.width for ffn in ffns_of(sub_fm)], next(sub_fm.parameters()).device
    theirs_config = read_config(wire_config(sub_fm.config), task)
    there = build(theirs_config, task.kind, widths, own_weights(sub_fm), device)
    here, theirs = scores(sub_fm, batch, what), scores(there, batch, what)
    if not torch.allclose(here, theirs, rtol=_NOISE, atol=_NOISE):
        raise ModelError(
            f"{what} would be another model at workers: its configuration says what does not go over the wire"
        )


@torch.no_grad()
def scores(model: nn.Module, batch: Batch, what: str) -> Tensor:
    """A model's logits for a batch. Raises ModelError when it fails or they are not finite."""
    try:
        answers = logits(model, batch.inputs)
    except Exception as error:
        # Of no one class: whatever a model makes of inputs that it was not built for.
        raise ModelError(f"{what} cannot read this data: {reason(error)}") from error
    if not torch.isfinite(answers).all():
        raise ModelError(f"{what} gives scores that are no numbers (NaN or infinite) on this data")
    return answers


def _check_finite(model: nn.Module, what: str) -> None:
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ModelError(
                f"{what}: {name} holds values that are no numbers (NaN or infinite); "
                "the file is damaged, or a training diverged"
            )


def _check_length(model: PreTrainedModel, path: str, length: int) -> None:
    positions = positions_of(model)
    if positions is not None and length > positions:
        raise ConfigError(
            f"task.max_length must be <= {positions} for model {path}: it has no more positions; got {length}"
        )
    known = getattr(model.config, "max_position_embeddings", None)
    if positions is None and known is not None and length > known:
        log.warning("task.max_length = %d, but model %s was made for texts of %d tokens", length, path, known)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    rows = embedding.num_embeddings
    token, number = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if number >= rows:
        raise ModelError(
            f"model {path}: its tokenizer numbers tokens up to {number} ({token!r}), its embedding has "
            f"{rows} rows; resize it (resize_token_embeddings), or take the tokenizer that belongs to it"
        )


def _check_messages(model: PreTrainedModel, config: RunConfig) -> None:
    """What a worker is told at joining, and with each task: by the coordinator's own bounds and by its."""
    labels = ArtifactRef(ArtifactKind.LABELS, "0" * 64, 2**24) if labels_apart(config) else None
    names = config.task.labels
    classes = StoredClasses(names, (1,) * len(names), len(names), 1) if config.asks_classes else None
    spec = run_spec(config, "0" * 12, labels, classes)
    try:
        read_config(wire_config(model.config), spec.task)
    except ModelError as error:
        raise ModelError(f"model {config.model.path}: no worker would take it: {error}") from error
    file = ArtifactRef(ArtifactKind.SUB_MODEL, "0" * 64, 2**40)
    widths = (2**17,) * sizes_of(model.config).num_hidden_layers
    reference = SubModelRef(wire_config(model.config), widths, file, (), (file,) * 3)
    patches = _PATCH_BYTES * MOST_PATCHES if config.realigns else 0
    largest = max(run_spec_to_pb(spec).ByteSize(), sub_model_to_pb(reference).ByteSize() + patches)
    if largest > (most := MAX_MESSAGE_BYTES - _ROOM_BYTES):
        raise ConfigError(
            f"task.labels: to tell workers of {len(spec.task.labels):,} classes takes {largest:,} bytes, "
            f"a message holds {most:,}; use fewer classes, or shorter names"
        )


def _check_processor(loaded: Foundation, config: RunConfig) -> None:
    """Tokenizer or image processor, by the files that a worker gets, do there what they do here."""
    task, path = config.task, config.model.path
    files = processor_files(loaded.processor, task.kind)
    name = type(getattr(loaded.processor, "inner", loaded.processor)).__name__
    if task.kind is not TaskKind.IMAGE_CLASSIFICATION and ArtifactKind.TOKENIZER not in files:
        raise ModelError(
            f"model {path}: its tokenizer ({name}) exists in Python only, and workers run no code that comes "
            "with a model; convert it to a fast one (tokenizer.json), or take a model that has one"
        )
    with tempfile.TemporaryDirectory() as folder:
        try:
            there = write_processor(Path(folder), files, task.kind)
        except ModelError as error:
            told = str(error).replace(f"model {folder}: ", "")
            raise ModelError(f"model {path}: no worker could load its {name}: {told}") from error
    examples = _examples(config)
    rows = [
        _some(encode(one, examples, task.kind, task.max_length, None)).inputs
        for one in (loaded.processor, there)
    ]
    if rows[0].keys() != rows[1].keys() or not all(
        torch.equal(rows[0][key], rows[1][key]) for key in rows[0]
    ):
        raise ModelError(
            f"model {path}: its {name} would read differently at workers, from the files that they get; "
            "save it anew with save_pretrained, and see whether it still reads the same"
        )
    if task.kind is TaskKind.CAUSAL_LM:
        check_chat_template(loaded.processor, there, path, needed=of_conversations(config))


def _examples(config: RunConfig) -> Examples:
    """Made up, of the task's kind."""
    if config.task.kind is TaskKind.IMAGE_CLASSIFICATION:
        image = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
        with tempfile.SpooledTemporaryFile() as file:
            image.save(file, "PNG")
            file.seek(0)
            return Examples("an image made up", None, images=[file.read()] * 2)
    texts = [_WORDS, " ".join(_WORDS.split()[:4]), _WORDS.upper()]
    return Examples("texts made up", texts, pairs=texts[::-1] if config.task.pairs else None)


def _made_up(loaded: Foundation, config: RunConfig) -> Dataset:
    return encode(loaded.processor, _examples(config), config.task.kind, config.task.max_length, None)


def _some(data: Dataset) -> Batch:
    """The first rows and the longest."""
    rows = list(range(min(_ROWS, len(data))))
    if data.lengths is not None:
        rows.append(max(range(len(data)), key=data.lengths.__getitem__))
    return data.batch(rows)
