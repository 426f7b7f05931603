"""A model's folder or hub id, looked at before its weights are read: what is wrong is told in one line."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.utils.hub import cached_file

from common.config.model_path import names_directory
from common.errors import ModelError, Stopped
from common.model.families import family_named
from coordinator.modelling.hub import asked_of_hub

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

# What Git leaves in a clone in place of a large file.
_POINTER = b"version https://git-lfs"

# Runs in the model's folder; `weights_only` runs no code that the file may hold.
CONVERT = (
    'python -c "from glob import glob; from torch import load; from safetensors.torch import save_file; '
    "save_file({k: v.clone().contiguous() for f in glob('pytorch_model*.bin') "
    "for k, v in load(f, map_location='cpu', weights_only=True).items()}, "
    "'model.safetensors', {'format': 'pt'})\""
)


def read_config(path: str) -> PretrainedConfig:
    """A model's configuration, its weights found to be there and whole where it is a directory.

    Raises ModelError, UnsupportedFamily.
    """
    folder = Path(path)
    if folder.is_dir():
        _require_no_pointers(folder)
        # Asked first: transformers would otherwise refuse types it does not know in its own words.
        family_named(_model_type(folder))
    elif folder.exists():
        raise ModelError(f"model {path}: this is a file; model.path must name the model's directory")
    elif names_directory(path):
        raise ModelError(f"model {path}: no such directory")
    load = AutoConfig.from_pretrained
    try:
        config: PretrainedConfig = load(path) if folder.is_dir() else asked_of_hub(path, load)
    except (ModelError, Stopped):
        raise
    except Exception as error:
        # Of no one class: whatever transformers and what it is built on make of a wrong value.
        if folder.is_dir():
            raise ModelError(f"model {path}: config.json cannot be used: {reason(error)}") from error
        raise ModelError(
            f"model {path}: no such directory, and not to be had from the hub: {reason(error)}"
        ) from error
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"model {path}: its weights are quantised (quantization_config in config.json), which cannot be "
            "cut and aligned; take the model as it was before, in float32, bfloat16 or float16"
        )
    if folder.is_dir():
        _require_weights(folder)
    return config


def reason(error: Exception) -> str:
    """A library's error as part of a line."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{lines[0][:300]}" if lines else type(error).__name__


def _model_type(folder: Path) -> str:
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"model {folder}: this is a PEFT adapter, not a model; merge it into its base "
                "(merge_and_unload, save_pretrained) and name the result"
            )
        raise ModelError(f"model {folder}: the directory holds no config.json")
    fields = read_json(file)
    if "model_type" not in fields:
        raise ModelError(f"model {folder}: config.json does not name its model_type, such as bert")
    return str(fields["model_type"])


def read_json(file: Path) -> dict[str, Any]:
    """A model's JSON file. Raises ModelError unless it holds one object."""
    where = f"model {file.parent}: {file.name}"
    try:
        fields = json.loads(file.read_bytes().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ModelError(f"{where} is not UTF-8 (at byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is not valid JSON: {reason(error)}") from None
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}") from None
    if not isinstance(fields, dict):
        raise ModelError(f"{where} must hold a JSON object, got {type(fields).__name__}")
    return fields


def _require_no_pointers(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if not file.is_file():
            continue
        try:
            with file.open("rb") as opened:
                begin = opened.read(len(_POINTER))
        except OSError as error:
            raise ModelError(f"model {folder}: {file.name} cannot be read: {error.strerror}") from None
        if begin == _POINTER:
            raise ModelError(
                f"model {folder}: {file.name} is a Git LFS pointer, not the file itself; "
                "run `git lfs pull` there, or download the model with `hf download`"
            )


def _require_weights(folder: Path) -> None:
    if (folder / WEIGHTS).exists():
        _require_whole(folder / WEIGHTS)
        return
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"model {folder}: {INDEX} lists no files (weight_map)")
        for name in sorted(set(map(str, shards.values()))):
            if not (folder / name).is_file():
                raise ModelError(
                    f"model {folder}: {name} is missing, which {INDEX} lists; the download is not complete"
                )
            _require_whole(folder / name)
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise ModelError(
            f"model {folder}: its weights are in pytorch_model.bin only, a format that can hold code; "
            f"convert them, in that directory: {CONVERT}"
        )
    found = sorted(
        f.name for f in folder.iterdir() if f.suffix in (".h5", ".msgpack", ".gguf", ".onnx", ".pt")
    )
    others = f"; {found[0]} is in another format" if found else ""
    raise ModelError(f"model {folder}: no weights: there must be {WEIGHTS} or {INDEX}{others}")


def _require_whole(file: Path) -> None:
    """By the header: the library's own words for a broken file name neither it nor what to do."""
    where = f"model {file.parent}: {file.name}"
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        text = opened.read(length) if size > 8 and length <= size else b""
    try:
        entries = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        wanted = 8 + length + max(ends, default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        begins = f", and begins with {text[:1] or 'too little'!r}" if text else ""
        raise ModelError(
            f"{where} is no safetensors file, or not all of it: {size:,} bytes{begins}; download it again"
        ) from None
    if size != wanted:
        raise ModelError(f"{where} has {size:,} of {wanted:,} bytes: download it again")


def own_file(path: str, name: str) -> Path | None:
    """A file of the model's as it was published, from its folder or the hub's cache; None without one."""
    if Path(path).is_dir():
        return file if (file := Path(path) / name).is_file() else None
    try:
        found = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise ModelError(f"model {path}: {name} cannot be had from the hub: {reason(error)}") from error
    return None if found is None else Path(found)
