"""Named tensors ↔ safetensors files, with checks of name, shape, dtype and finiteness."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
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


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; the same tensors give the same bytes whatever their order."""
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping whose tensors are read, memory-mapped, when asked for.

    Raises BadUpdate when the file is not safetensors.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise BadUpdate(f"{path.name} is not a valid safetensors file: {error}") from error
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        # A mapping's own way would be to read the tensor.
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def load(self) -> dict[str, Tensor]:
        """All tensors at once."""
        return dict(self)


class Prefixed(Mapping[str, Tensor]):
    """The tensors of a mapping whose names begin with `prefix`, under the rest of their names."""

    def __init__(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        self._tensors, self._prefix = tensors, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[self._prefix + name]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._prefix + name in self._tensors

    def __iter__(self) -> Iterator[str]:
        skip = len(self._prefix)
        return (name[skip:] for name in self._tensors if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @classmethod
    def add(cls, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The inverse: the same tensors under longer names."""
        return {prefix + name: tensor for name, tensor in tensors.items()}


def check(tensors: Mapping[str, Tensor], schema: Schema) -> None:
    """Raise BadUpdate unless names, shapes and dtypes are the schema's and all values finite."""
    if missing := sorted(schema.keys() - tensors.keys()):
        raise BadUpdate(f"tensor {missing[0]} is missing ({len(missing)} of {len(schema)} are)")
    if unknown := sorted(tensors.keys() - schema.keys()):
        raise BadUpdate(f"tensor {unknown[0]} is not expected")
    for name, spec in schema.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != spec.shape or tensor.dtype != spec.dtype:
            raise BadUpdate(
                f"tensor {name} must be {spec.dtype} {list(spec.shape)}, "
                f"got {tensor.dtype} {list(tensor.shape)}"
            )
        # The norm is 20 times faster than isfinite, and finite only if every value is (or overflows).
        suspect = tensor.is_floating_point() and not tensor.norm().isfinite()
        if suspect and not tensor.isfinite().all():
            raise BadUpdate(f"tensor {name} holds NaN or infinite values")
