"""The header of a safetensors file from somebody else, judged before any library opens the file.

The format: 8 bytes, the header's length N (unsigned, little-endian); N bytes of JSON, padded by spaces;
then the tensors' values. JSON maps each name to dtype, shape and its place among the values.
"""

import json
import math
import re
import struct
from collections.abc import Iterable
from typing import Any, NoReturn

import torch

from common.errors import BadUpdate
from common.storage.schema import Schema, TensorSpec

# Room for 8,000 tensors; the library's own limit is 100 times as much.
MAX_HEADER_BYTES = 1 << 20
# The length that stands before the header.
PREFIX_BYTES = 8

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,511}")
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**32
# Digits of the largest number that can mean anything here; Python would read millions, slowly.
_MAX_DIGITS = 19

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_LABELS = {dtype: label for label, dtype in _DTYPES.items()}
_ORDER = [_DTYPES[label] for label in ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")]


def header_bytes(prefix: bytes, size: int) -> int:
    """Bytes that the header of a file of `size` bytes takes, by the file's first 8.

    Raises BadUpdate when there are too few or too many.
    """
    if len(prefix) < PREFIX_BYTES or size < PREFIX_BYTES:
        raise BadUpdate(f"a safetensors file has at least {PREFIX_BYTES} bytes, got {min(len(prefix), size)}")
    (length,) = struct.unpack_from("<Q", prefix)
    if not 2 <= length <= min(MAX_HEADER_BYTES, size - PREFIX_BYTES):
        limit = min(MAX_HEADER_BYTES, size - PREFIX_BYTES)
        raise BadUpdate(f"a safetensors header must have 2 to {limit} bytes here, got {length}")
    return int(length)


def read_header(begin: bytes, size: int) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes in a file of `size` bytes that begins with `begin`, its header at least.

    Raises BadUpdate unless the header is well-formed JSON of bounded size, names every tensor once, and
    the tensors fill the rest of the file exactly: without gaps, overlaps or anything behind them.
    """
    length = header_bytes(begin, size)
    text = begin[PREFIX_BYTES : PREFIX_BYTES + length]
    if len(text) < length:
        raise BadUpdate(f"a safetensors header of {length} bytes breaks off after {len(text)}")
    entries = _json(text)
    values = size - PREFIX_BYTES - length
    _metadata(entries.pop("__metadata__", {}))
    schema: dict[str, TensorSpec] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in entries.items():
        schema[name], (start, end) = _tensor(name, entry, values)
        places.append((start, end, name))
    at = 0
    for start, end, name in sorted(places):
        if start != at:
            what = "overlaps another" if start < at else f"leaves a gap of {start - at} bytes"
            raise BadUpdate(f"tensor {name} {what}")
        at = end
    if at != values:
        raise BadUpdate(f"{values - at} bytes follow the last tensor")
    return schema


def write_header(schema: Schema) -> bytes:
    """The begin of a file with these tensors, up to its first value; as the safetensors library writes it.

    The values follow in the order of `in_file_order`.
    """
    text = json.dumps(_entries(schema, in_file_order(schema)), separators=(",", ":")).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return struct.pack("<Q", len(text)) + text


def in_file_order(schema: Schema) -> list[str]:
    """Names as the library orders them: by type, the widest first, then by themselves."""
    return sorted(schema, key=lambda name: (_ORDER.index(schema[name].dtype), name))


def smallest_header_bytes(schema: Schema) -> int:
    """Bytes of the shortest header that a file with these tensors can have, and of what precedes it."""
    return PREFIX_BYTES + len(json.dumps(_entries(schema, schema), separators=(",", ":")).encode())


def _entries(schema: Schema, order: Iterable[str]) -> dict[str, dict[str, Any]]:
    entries, at = {}, 0
    for name in order:
        spec = schema[name]
        end = at + math.prod(spec.shape) * spec.dtype.itemsize
        entries[name] = {"dtype": _LABELS[spec.dtype], "shape": list(spec.shape), "data_offsets": [at, end]}
        at = end
    return entries


def _json(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise BadUpdate("a safetensors header must begin with {")
    try:
        entries: dict[str, Any] = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_distinct,
            parse_constant=_no_number,
            parse_float=_no_number,
            parse_int=_integer,
        )
    except (ValueError, RecursionError) as error:
        raise BadUpdate(f"a safetensors header must be JSON: {str(error)[:100]}") from None
    if not isinstance(entries, dict):
        raise BadUpdate("a safetensors header must be one JSON object")
    return entries


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise BadUpdate("a safetensors header names something twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise BadUpdate(f"a safetensors header holds whole numbers only, got {text[:20]}")


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise BadUpdate(f"a safetensors header holds a number of {len(text)} digits")
    return int(text)


def _metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise BadUpdate("a safetensors header's __metadata__ must map names to texts")


def _tensor(name: str, entry: object, values: int) -> tuple[TensorSpec, tuple[int, int]]:
    """What a tensor is, and where it begins and ends among so many bytes of values."""
    if not _NAME.fullmatch(name):
        shown = name[:40].encode("ascii", "backslashreplace").decode()
        raise BadUpdate(f"a tensor's name must be letters, digits, '_', '.' and '-', got {shown!r}")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise BadUpdate(f"tensor {name} must have dtype, shape and data_offsets, and nothing else")
    label, shape, place = entry["dtype"], entry["shape"], entry["data_offsets"]
    dtype = _DTYPES.get(label) if isinstance(label, str) else None
    if dtype is None:
        raise BadUpdate(f"tensor {name} must have one of the dtypes {', '.join(_DTYPES)}")
    if not _whole(shape, _MAX_DIMENSION) or len(shape) > _MAX_DIMENSIONS:
        raise BadUpdate(f"tensor {name} must have at most {_MAX_DIMENSIONS} dimensions of 0 to 2^32")
    if not _whole(place, values) or len(place) != 2 or place[0] > place[1]:
        raise BadUpdate(f"tensor {name} must lie within the {values} bytes of values")
    # Python's numbers do not overflow.
    needed = math.prod(shape) * dtype.itemsize
    if place[1] - place[0] != needed:
        raise BadUpdate(
            f"tensor {name} needs {needed} bytes for its shape, its place has {place[1] - place[0]}"
        )
    if place[0] % dtype.itemsize:
        raise BadUpdate(f"tensor {name} must begin at a multiple of its values' {dtype.itemsize} bytes")
    return TensorSpec(tuple(shape), dtype), (place[0], place[1])


def _whole(numbers: object, most: int) -> bool:
    """Whether these are whole numbers from 0 to `most`; Python's booleans are numbers, JSON's are not."""
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n <= most for n in numbers)
