"""Files as chunks with offsets, and back, verified by SHA-256 at the end."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import BadDigest, BrokenTransfer
from common.files import publish, sha256_of
from common.records import Chunk

# 256 KiB to 1 MiB reach the transport's best throughput; smaller halves it, larger brings nothing.
CHUNK_BYTES = 512 * 1024
MAX_CHUNK_BYTES = 1024 * 1024


def read_chunks(path: Path, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Chunk]:
    """The file's content from byte `offset` on.

    Raises BrokenTransfer when `offset` lies beyond the file's end.
    """
    size = path.stat().st_size
    if offset > size:
        raise BrokenTransfer(f"offset {offset} lies beyond the end of the artifact ({size} bytes)")
    with path.open("rb") as file:
        file.seek(offset)
        while data := file.read(chunk_bytes):
            yield Chunk(offset, data)
            offset += len(data)


class ChunkWriter:
    """Receives a file of known size and digest into `partial`, and publishes it as `final`.

    What `partial` already holds counts: `offset` is where the sender must go on. Without `commit`
    the partial file stays, for a later attempt.
    """

    def __init__(self, partial: Path, final: Path, size: int, sha256: str) -> None:
        partial.parent.mkdir(parents=True, exist_ok=True)
        self._partial, self._final = partial, final
        self._size, self._sha256 = size, sha256
        if partial.exists() and partial.stat().st_size > size:
            partial.unlink()
        self._file = partial.open("a+b")
        self._file.seek(0)
        self._digest = hashlib.file_digest(self._file, "sha256")
        self.offset = self._file.tell()

    def write(self, chunk: Chunk) -> None:
        """Append a chunk.

        Raises BrokenTransfer when it does not start where the last one ended, is empty or too
        large, or goes beyond the announced size.
        """
        if chunk.offset != self.offset:
            raise BrokenTransfer(f"expected a chunk at offset {self.offset}, got {chunk.offset}")
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise BrokenTransfer(f"a chunk must hold 1 to {MAX_CHUNK_BYTES} bytes, got {len(chunk.data)}")
        if self.offset + len(chunk.data) > self._size:
            raise BrokenTransfer(f"more than the announced {self._size} bytes arrived")
        self._file.write(chunk.data)
        self._digest.update(chunk.data)
        self.offset += len(chunk.data)

    def commit(self) -> None:
        """Check size and digest and give the file its final name, durably.

        Raises BrokenTransfer when bytes are missing (the partial file stays), BadDigest when the
        content is not what was announced (the partial file goes).
        """
        self._file.flush()
        if self.offset != self._size:
            raise BrokenTransfer(f"got {self.offset} of {self._size} bytes")
        if self._digest.hexdigest() != self._sha256:
            self._partial.unlink()
            raise BadDigest(f"content does not match its digest {self._sha256[:12]}…; sent again?")
        publish(self._partial, self._final)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def verify(path: Path, sha256: str) -> None:
    """Raise BadDigest unless the file's content has this digest."""
    if sha256_of(path) != sha256:
        raise BadDigest(f"{path.name} does not match its digest {sha256[:12]}…; delete it to fetch anew")
