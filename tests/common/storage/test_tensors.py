"""Named tensors in safetensors files, and what is refused about them."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import BadUpdate
from common.model.update import Prefixed
from common.storage.schema import TensorSpec, check, content_bytes, schema_of
from common.storage.tensor_header import in_file_order
from common.storage.tensors import TensorFile, TensorFileWriter, to_bytes
from tests.dtypes import EVERY_DTYPE
from tests.small import same_bits

Tensors = dict[str, Tensor]


@pytest.fixture
def tensors() -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 4, generator=generator),
        "b": torch.randn(5, generator=generator),
        "n": torch.arange(6),
    }


def test_a_file_holds_what_was_written(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "file").write_bytes(to_bytes(tensors))
    file = TensorFile(tmp_path / "file")
    assert len(file) == 3
    assert same_bits(file.load(), tensors)
    with pytest.raises(KeyError):
        file["c"]


def test_bytes_do_not_depend_on_the_order_of_names(tensors: Tensors) -> None:
    assert to_bytes(tensors) == to_bytes(dict(reversed(tensors.items())))


def test_views_and_transposes_are_written_as_their_values(tmp_path: Path, tensors: Tensors) -> None:
    views = {"t": tensors["a"].T, "s": tensors["n"][::2]}
    (tmp_path / "file").write_bytes(to_bytes(views))
    assert same_bits(TensorFile(tmp_path / "file").load(), views)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 64])
def test_a_file_of_another_kind_is_a_bad_update(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd").write_bytes(content)
    with pytest.raises(BadUpdate, match="odd is not a valid safetensors file"):
        TensorFile(tmp_path / "odd")


def test_a_truncated_file_is_a_bad_update(tmp_path: Path, tensors: Tensors) -> None:
    (tmp_path / "short").write_bytes(to_bytes(tensors)[:-1])
    with pytest.raises(BadUpdate, match="short"):
        TensorFile(tmp_path / "short")


def test_written_one_by_one_a_file_has_the_same_bytes(tmp_path: Path, tensors: Tensors) -> None:
    tensors |= {f"of {dtype}".split(".")[1]: torch.ones(3).to(dtype) for dtype in EVERY_DTYPE}
    tensors |= {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 4), "transposed": tensors["a"].T}
    schema = schema_of(tensors)
    with (tmp_path / "file").open("wb") as file:
        writer = TensorFileWriter(file, schema)
        for name in in_file_order(schema):
            writer.write(name, tensors[name])
        sha256 = writer.finish()
    content = to_bytes(tensors)
    assert (tmp_path / "file").read_bytes() == content
    assert (sha256, writer.size) == (hashlib.sha256(content).hexdigest(), len(content))


def test_what_does_not_fit_the_schema_is_not_written(tmp_path: Path, tensors: Tensors) -> None:
    with (tmp_path / "file").open("wb") as file:
        writer = TensorFileWriter(file, schema_of(tensors))
        with pytest.raises(ValueError, match="expected tensor n, got a"):
            writer.write("a", tensors["a"])
        writer = TensorFileWriter(file, schema_of(tensors))
        with pytest.raises(ValueError, match="expected tensor n, got n as"):
            writer.write("n", tensors["n"].float())
        writer = TensorFileWriter(file, schema_of(tensors))
        writer.write("n", tensors["n"])
        with pytest.raises(ValueError, match="tensor a is missing"):
            writer.finish()


def test_a_large_file_is_read_whole_a_part_of_it_mapped_at_a_time(tmp_path: Path) -> None:
    values = {f"{i:02}": torch.full((1 << 18,), float(i)) for i in range(8)}
    (tmp_path / "file").write_bytes(to_bytes(values))
    file = TensorFile(tmp_path / "file", beside=100)
    # Several windows of it, and tensors of an earlier one stay what they are.
    assert same_bits(dict(file), values)
    assert file.schema() == schema_of(values)


def test_tensors_satisfy_their_own_schema(tensors: Tensors) -> None:
    schema = schema_of(tensors)
    assert schema["a"] == TensorSpec((3, 4), torch.float32)
    assert content_bytes(schema) == 12 * 4 + 5 * 4 + 6 * 8
    check(tensors, schema)


def _with_value(value: float) -> Callable[[Tensors], Tensors]:
    def change(tensors: Tensors) -> Tensors:
        spoilt = tensors["a"].clone()
        spoilt[1, 2] = value
        return tensors | {"a": spoilt}

    return change


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda t: {n: t[n] for n in t if n != "b"}, r"tensor b is missing \(1 of 3 are\)"),
        (lambda t: t | {"z": t["a"]}, "tensor z is not expected"),
        (lambda t: t | {"a": t["a"].T}, r"tensor a must be torch.float32 \[3, 4\], got .* \[4, 3\]"),
        (lambda t: t | {"b": t["b"].double()}, r"tensor b must be torch.float32 .*, got torch.float64"),
        (lambda t: t | {"n": t["n"].float()}, r"tensor n must be torch.int64"),
        (_with_value(float("nan")), "tensor a holds NaN or infinite"),
        (_with_value(float("inf")), "tensor a holds NaN or infinite"),
        (_with_value(float("-inf")), "tensor a holds NaN or infinite"),
    ],
    ids=["missing", "unknown", "shape", "dtype", "integer dtype", "NaN", "Inf", "-Inf"],
)
def test_what_does_not_fit_is_a_bad_update_naming_the_tensor(
    tensors: Tensors, spoil: Callable[[Tensors], Tensors], problem: str
) -> None:
    with pytest.raises(BadUpdate, match=problem):
        check(spoil(tensors), schema_of(tensors))


def test_finite_values_whose_norm_overflows_are_accepted() -> None:
    large = {"a": torch.full((4,), 3e38)}
    check(large, schema_of(large))


def test_a_prefix_selects_and_is_taken_off(tensors: Tensors) -> None:
    both = Prefixed.add(tensors, "delta.") | {"apoz.1.zeros": torch.zeros(2)}
    selected = Prefixed(both, "delta.")
    assert len(selected) == 3
    assert same_bits(dict(selected), tensors)
    with pytest.raises(KeyError):
        selected["1.zeros"]
