"""A safetensors header is believed only when it can be true."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadUpdate
from common.storage.schema import TensorSpec, schema_of
from common.storage.tensor_header import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    header_bytes,
    read_header,
    smallest_header_bytes,
)
from common.storage.tensors import TensorFile, to_bytes
from tests.dtypes import EVERY_DTYPE

NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,30}", fullmatch=True)
TENSORS = st.dictionaries(
    NAMES,
    st.tuples(st.sampled_from(EVERY_DTYPE), st.lists(st.integers(0, 5), max_size=4)).map(
        lambda drawn: torch.zeros(drawn[1], dtype=drawn[0])
    ),
    max_size=6,
)
X = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def file_of(header: object, values: int = 24) -> bytes:
    """A file with this header, as text or as what JSON makes of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + bytes(values)


def judged(content: bytes) -> dict[str, TensorSpec]:
    return read_header(content, len(content))


@settings(max_examples=50)
@given(TENSORS)
def test_what_the_library_writes_is_believed_and_read_as_it_is(tensors: dict[str, torch.Tensor]) -> None:
    content = to_bytes(tensors)
    assert judged(content) == schema_of(tensors)
    length = header_bytes(content[:PREFIX_BYTES], len(content))
    assert read_header(content[: PREFIX_BYTES + length], len(content)) == schema_of(tensors)
    # The library pads to 8 bytes, and may put the tensors in another order.
    assert abs(PREFIX_BYTES + length - smallest_header_bytes(schema_of(tensors))) < 8 + 20 * len(tensors)


@pytest.mark.parametrize(
    ("header", "values", "reason"),
    [
        (b"", 0, "2 to 0 bytes"),
        (b"[]", 0, "begin with {"),
        (b'{"x":', 24, "must be JSON"),
        (b'{"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}}', 24, "must be JSON"),
        (b'{"x\xff":1}', 0, "must be JSON"),
        (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 0, "must be JSON"),
        ({"x": X}, 25, "1 bytes follow"),
        ({"x": X}, 23, "within the 23 bytes"),
        ({"x": {**X, "data_offsets": [0, 20]}}, 24, "needs 24 bytes"),
        ({"x": {**X, "data_offsets": [4, 28]}}, 28, "gap of 4"),
        ({"x": {**X, "data_offsets": [24, 0]}}, 24, "must lie within"),
        ({"x": {**X, "data_offsets": [-24, 0]}}, 24, "must lie within"),
        ({"x": {**X, "data_offsets": [0, 24, 24]}}, 24, "must lie within"),
        ({"x": X, "y": X}, 24, "overlaps"),
        ({"x": X, "y": {**X, "data_offsets": [20, 44]}}, 44, "overlaps"),
        (b'{"x":1,"x":1}', 24, "twice"),
        (b'{"x":{"dtype":"F32","dtype":"F64","shape":[2,3],"data_offsets":[0,24]}}', 24, "twice"),
        ({"x": {**X, "shape": [2, 3, 2**70]}}, 24, "digits"),
        ({"x": {**X, "shape": [2**62, 0]}}, 24, "dimensions"),
        ({"x": {**X, "shape": [2**32, 2**32, 2**32]}}, 24, "needs"),
        ({"x": {**X, "shape": [1] * 9 + [6]}}, 24, "dimensions"),
        ({"x": {**X, "shape": [-2, -3]}}, 24, "dimensions"),
        ({"x": {**X, "shape": [True, 6]}}, 24, "dimensions"),
        ({"x": {**X, "shape": 6}}, 24, "dimensions"),
        (b'{"x":{"dtype":"F32","shape":[2.0,3],"data_offsets":[0,24]}}', 24, "whole numbers"),
        (b'{"x":{"dtype":"F32","shape":[6],"data_offsets":[0,Infinity]}}', 24, "whole numbers"),
        (b'{"x":{"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}', 24, "whole numbers"),
        ({"x": {**X, "dtype": "C64"}}, 24, "dtypes"),
        ({"x": {**X, "dtype": ["F32"]}}, 24, "dtypes"),
        ({"x": {**X, "more": 1}}, 24, "nothing else"),
        ({"x": {"dtype": "F32", "shape": [6]}}, 24, "nothing else"),
        ({"x": [1]}, 24, "nothing else"),
        ({"../x": X}, 24, "name"),
        ({"": X}, 24, "name"),
        ({"x" * 513: X}, 24, "name"),
        ({"x\u0000": X}, 24, "name"),
        ({"x": X, "__metadata__": {"a": 1}}, 24, "texts"),
        ({"x": X, "__metadata__": []}, 24, "texts"),
        (
            {
                "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [1, 5]},
            },
            5,
            "multiple",
        ),
    ],
)
def test_a_header_that_cannot_be_true_is_refused(header: Any, values: int, reason: str) -> None:
    with pytest.raises(BadUpdate, match=reason):
        judged(file_of(header, values))


def test_a_header_longer_than_allowed_or_than_the_file_is_not_read() -> None:
    for length in (MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1):
        with pytest.raises(BadUpdate, match="must have 2 to"):
            header_bytes(struct.pack("<Q", length), 2**40)
    with pytest.raises(BadUpdate, match="must have 2 to 92"):
        header_bytes(struct.pack("<Q", 93), 100)
    with pytest.raises(BadUpdate, match="at least 8"):
        header_bytes(b"1234567", 7)
    with pytest.raises(BadUpdate, match="breaks off"):
        read_header(file_of({"x": X})[:30], len(file_of({"x": X})))


@settings(max_examples=50)
@given(TENSORS.filter(len), st.data())
def test_a_header_changed_in_one_place_is_refused_or_still_true(
    tensors: dict[str, torch.Tensor], data: st.DataObject
) -> None:
    """Whatever passes fills its file exactly, so that no value can come from elsewhere."""
    content = bytearray(to_bytes(tensors))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    try:
        schema = judged(bytes(content))
    except BadUpdate:
        return
    taken = sum(math.prod(s.shape) * s.dtype.itemsize for s in schema.values())
    assert taken == len(content) - PREFIX_BYTES - header_bytes(bytes(content[:8]), len(content))


def test_a_file_from_elsewhere_is_judged_before_it_is_opened(tmp_path: Path) -> None:
    good = to_bytes({"x": torch.ones(2, 3)})
    (tmp_path / "good").write_bytes(good)
    assert torch.equal(TensorFile.foreign(tmp_path / "good")["x"], torch.ones(2, 3))
    # The library itself takes the last of two tensors of one name.
    entry = json.dumps(X)
    (tmp_path / "twice").write_bytes(file_of(f'{{"x":{entry},"x":{entry}}}'.encode()))
    assert list(TensorFile(tmp_path / "twice")) == ["x"]
    with pytest.raises(BadUpdate, match="twice"):
        TensorFile.foreign(tmp_path / "twice")
    with pytest.raises(BadUpdate, match="cannot be read"):
        TensorFile.foreign(tmp_path / "missing")
