"""What named tensors must be: their names, shapes and dtypes, and finite."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import BadUpdate


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype that a named tensor must have."""

    shape: tuple[int, ...]
    dtype: torch.dtype


Schema = Mapping[str, TensorSpec]


def schema_of(tensors: Mapping[str, Tensor]) -> dict[str, TensorSpec]:
    """The schema that exactly these tensors satisfy."""
    return {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}


def content_bytes(schema: Schema) -> int:
    """Bytes of the tensors' values, without a file's header."""
    return sum(torch.Size(s.shape).numel() * s.dtype.itemsize for s in schema.values())


def check_specs(found: Schema, schema: Schema) -> None:
    """Raise BadUpdate unless names, shapes and dtypes found are the schema's."""
    if missing := sorted(schema.keys() - found.keys()):
        raise BadUpdate(f"tensor {missing[0]} is missing ({len(missing)} of {len(schema)} are)")
    if unknown := sorted(found.keys() - schema.keys()):
        raise BadUpdate(f"tensor {unknown[0]} is not expected")
    for name, spec in schema.items():
        if found[name] != spec:
            raise BadUpdate(
                f"tensor {name} must be {spec.dtype} {list(spec.shape)}, "
                f"got {found[name].dtype} {list(found[name].shape)}"
            )


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise BadUpdate when a value is NaN or infinite; one tensor is read at a time."""
    for name, tensor in tensors.items():
        # The norm is 20 times faster than isfinite, and finite only if every value is (or overflows).
        suspect = tensor.is_floating_point() and not tensor.norm().isfinite()
        if suspect and not tensor.isfinite().all():
            raise BadUpdate(f"tensor {name} holds NaN or infinite values")


def check(tensors: Mapping[str, Tensor], schema: Schema) -> None:
    """Raise BadUpdate unless names, shapes and dtypes are the schema's and all values finite."""
    check_specs(schema_of(tensors), schema)
    check_finite(tensors)
