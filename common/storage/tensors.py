"""Named tensors ↔ safetensors files."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from common.errors import BadUpdate
from common.storage.files import write_atomically
from common.storage.hashing import Hasher
from common.storage.schema import Schema, TensorSpec, schema_of
from common.storage.tensor_header import (
    MAX_HEADER_BYTES,
    PREFIX_BYTES,
    in_file_order,
    read_header,
    write_header,
)


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file; the same tensors give the same bytes whatever their order."""
    return save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


class TensorFileWriter:
    """Writes a safetensors file tensor by tensor, the same bytes as `to_bytes`, without holding them all.

    `tensors` must come in the order of `in_file_order(schema)`. Raises ValueError when one is not what the
    schema says, OSError when the disk does not take it.
    """

    def __init__(self, file: BinaryIO, schema: Schema) -> None:
        self._file, self._schema = file, schema
        self._left = iter(in_file_order(schema))
        self._digest = Hasher()
        self.size = 0
        self._put(write_header(schema))

    def write(self, name: str, tensor: Tensor) -> None:
        """The next tensor."""
        expected, spec = next(self._left, None), TensorSpec(tuple(tensor.shape), tensor.dtype)
        if name != expected or spec != self._schema[name]:
            raise ValueError(f"expected tensor {expected}, got {name} as {spec}")
        values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._put(values.numpy().data)

    def _put(self, content: bytes | memoryview) -> None:
        self._digest.update(content)
        self._file.write(content)
        self.size += len(content)

    def finish(self) -> str:
        """The file's SHA-256, once all is there. Raises ValueError when a tensor is missing."""
        self._digest.close()
        if (name := next(self._left, None)) is not None:
            raise ValueError(f"tensor {name} is missing")
        return self._digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file with the bytes of `to_bytes`, never a part of it, and never all in memory at once.

    Raises StoreError when the disk does not take it.
    """

    def write(file: BinaryIO) -> None:
        writer = TensorFileWriter(file, schema)
        for name in in_file_order(schema):
            writer.write(name, tensors[name])
        writer.finish()

    schema = schema_of(tensors)
    write_atomically(path, write)


# After so many bytes a file is mapped anew: the pages read so far go with the tensors that lie in them.
# So many of all files that are read side by side; and the least of one.
MAPPED_BYTES, LEAST_MAPPED_BYTES = 32 << 20, 1 << 20


class TensorFile(Mapping[str, Tensor]):
    """A safetensors file as a mapping whose tensors are read, memory-mapped, when asked for.

    Who goes through a large file, tensor by tensor, holds a small part of it in memory at a time: `beside`
    is how many files are read side by side. Raises BadUpdate when the file is not safetensors.
    """

    def __init__(self, path: Path, beside: int = 1) -> None:
        self._path = path
        self._touched, self._most = 0, max(LEAST_MAPPED_BYTES, MAPPED_BYTES // beside)
        self._file: safe_open | None = self._open()
        self._names = list(self._file.keys())

    def _open(self) -> safe_open:
        try:
            return safe_open(self._path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise BadUpdate(f"{self._path.name} is not a valid safetensors file: {error}") from error

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
        if self._file is None:
            self._file = self._open()
        tensor: Tensor = self._file.get_tensor(name)
        self._touched += tensor.nbytes
        if self._touched > self._most:
            self._file, self._touched = None, 0
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

    def schema(self) -> dict[str, TensorSpec]:
        """Shapes and dtypes, by the header alone."""
        return header_of(self._path)


def header_of(path: Path) -> dict[str, TensorSpec]:
    """What a file from somebody else says it holds. Raises BadUpdate when it cannot be true."""
    try:
        with path.open("rb") as file:
            return read_header(file.read(PREFIX_BYTES + MAX_HEADER_BYTES), path.stat().st_size)
    except OSError as error:
        raise BadUpdate(f"{path.name} cannot be read: {error.strerror or error}") from error
