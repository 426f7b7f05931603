"""Named tensors ↔ safetensors files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import BadUpdate
from common.schema import TensorSpec
from common.tensor_header import MAX_HEADER_BYTES, PREFIX_BYTES, read_header


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

    @classmethod
    def foreign(cls, path: Path) -> Self:
        """A file that came from somebody else: its header is judged before the library sees it.

        Raises BadUpdate.
        """
        header_of(path)
        return cls(path)

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


def header_of(path: Path) -> dict[str, TensorSpec]:
    """What a file from somebody else says it holds. Raises BadUpdate when it cannot be true."""
    try:
        with path.open("rb") as file:
            return read_header(file.read(PREFIX_BYTES + MAX_HEADER_BYTES), path.stat().st_size)
    except OSError as error:
        raise BadUpdate(f"{path.name} cannot be read: {error.strerror or error}") from error


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
