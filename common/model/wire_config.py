"""A model's configuration from the other side: known keys, of bounded values, before transformers sees it.

transformers would take any key: one names code to download (`attn_implementation`), others make it reserve
whatever memory they ask for.
"""

import dataclasses
import json
import math
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from common.errors import ModelError
from common.model.families import family_named
from common.records import TaskKind, TaskSpec
from common.task_forms import FORMS

# Of what all families share, only the classes and what weights are held in matter here.
_SHARED = frozenset({"id2label", "label2id", "problem_type", "dtype"})
_DTYPES = ("float32", "bfloat16")
CLASSES = ("id2label", "label2id")
# So many classes stand in the configuration itself, as workers of before protocol 3 want it.
FEW = 1000
# Positions come with the weights: DistilBERT would compute them first. No task here predicts masked words.
_WITHOUT = frozenset({"sinusoidal_pos_embds", "sparse_pred_ignore_index"})

_LAYERS = frozenset({"num_hidden_layers", "n_layers", "n_layer"})
# Rows of tables, and positions that rotary embeddings have no table for.
_LONG = frozenset({"vocab_size", "max_position_embeddings", "n_positions", "sliding_window"})
MOST_LAYERS, MOST_ROWS, MOST = 1024, 2**24, 2**17
MOST_CLASSES, _MOST_ITEMS, _MOST_CHARACTERS = 2**16, 2**11, 1000
# Where each kind of layer, such as sliding or full attention, may have a table of its own.
_BY_KIND = frozenset({"rope_parameters"})
_MOST_KINDS = 16


def read_config(text: str, task: TaskSpec) -> PretrainedConfig:
    """The sub-FM's configuration from its JSON, without keys that its family does not know.

    Raises ModelError when it is unreadable, out of bounds or does not fit the task, UnsupportedFamily.
    """
    try:
        fields: dict[str, Any] = json.loads(text, parse_constant=_no_number, parse_int=_integer)
        model_type = str(fields.pop("model_type"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"the run's model configuration is not readable: {str(error)[:200]}") from None
    sizes = family_named(model_type).sizes
    known = known_keys(model_type)
    kept = {key: value for key, value in fields.items() if key in known}
    outputs = FORMS[task.kind].outputs(task.labels)
    if task.labels and not any(key in kept for key in CLASSES):
        kept |= {
            "id2label": {str(i): name for i, name in enumerate(task.labels)},
            "label2id": {name: i for i, name in enumerate(task.labels)},
        }
    if (dtype := kept.get("dtype") or _DTYPES[0]) not in _DTYPES:
        told = str(dtype)[:60]
        raise ModelError(f"the run's model configuration has dtype = {told}, must be {' or '.join(_DTYPES)}")
    _require_bounds(kept)
    if sizes is not None:
        # The encoder's own: as much of it as its class knows, and within the same bounds.
        if not isinstance(inner := fields.get(sizes), dict):
            raise ModelError(f"the run's model configuration has no {sizes}")
        declared = _declared(CONFIG_MAPPING[model_type].sub_configs[sizes])
        own = {key: value for key, value in inner.items() if key in declared}
        _require_bounds(own)
        kept[sizes] = own
    try:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **kept)
    except Exception as error:
        # Of no one class: whatever transformers and what it is built on make of a wrong value.
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"the run's model configuration cannot be used: {reason}") from error
    if task.kind is not TaskKind.CAUSAL_LM and len(outputs) != config.num_labels:
        raise ModelError(f"the model has {config.num_labels} classes, the task {len(outputs)}")
    return config


def known_keys(model_type: str) -> frozenset[str]:
    """What a configuration of this family may say."""
    kind = CONFIG_MAPPING[model_type]
    # A part's configuration is looked at by itself, or not at all.
    declared = _declared(kind) - frozenset(kind.sub_configs)
    return declared | _SHARED | frozenset(family_named(model_type).undeclared)


def _declared(kind: type[PretrainedConfig]) -> frozenset[str]:
    own = {field.name for field in dataclasses.fields(kind)}
    common = {field.name for field in dataclasses.fields(PretrainedConfig)}
    return frozenset(name for name in own - common - _WITHOUT if not name.startswith("_"))


def _require_bounds(fields: dict[str, Any]) -> None:
    for key, value in fields.items():
        if not _bounded(key, value):
            raise ModelError(f"the run's model configuration has {key} = {str(value)[:60]}: out of bounds")


def _bounded(key: str, value: object) -> bool:
    match value:
        case None | bool():
            return True
        case int():
            most = MOST_LAYERS if key in _LAYERS else MOST_ROWS if _is_long(key) else MOST
            return -1 <= value <= most
        case float():
            return math.isfinite(value)
        case str():
            return len(value) <= _MOST_CHARACTERS
        case list():
            return len(value) <= _MOST_ITEMS and all(_plain(key, item) for item in value)
        case dict():
            # Names of classes, or how rotary embeddings are stretched: flat, or so by kind of layer.
            tables = [v for v in value.values() if isinstance(v, dict) and key in _BY_KIND]
            rest = {k: v for k, v in value.items() if not any(v is table for table in tables)}
            most = MOST_CLASSES if key in _SHARED else _MOST_ITEMS
            return (
                len(tables) <= _MOST_KINDS
                and _flat_table(rest, most)
                and all(_flat_table(table, _MOST_ITEMS) for table in tables)
            )
    return False


def _flat_table(table: dict[str, object], most: int) -> bool:
    return len(table) <= most and all(len(k) <= _MOST_CHARACTERS and _flat(v) for k, v in table.items())


def _is_long(key: str) -> bool:
    return key in _LONG or key.endswith("_token_id")


def _plain(key: str, value: object) -> bool:
    return not isinstance(value, list | dict) and _bounded(key, value)


def _flat(value: object) -> bool:
    """Whether this may stand within a table; what is numbered there are classes and positions."""
    return not isinstance(value, dict) and _bounded("max_position_embeddings", value)


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)
