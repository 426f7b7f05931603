"""Files as chunks with offsets, and back, verified by SHA-256 at the end."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import BadDigest, BrokenTransfer, StoreError
from common.records import Chunk
from common.runtime.fault_points import Point, reach
from common.storage.files import disk_problem, publish, sha256_of
from common.storage.hashing import Hasher

# 256 KiB to 1 MiB reach the transport's best throughput, the largest with the least work between chunks;
# smaller halves it, larger brings nothing.
CHUNK_BYTES = 1024 * 1024
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
    the partial file stays, for a later attempt. `subject` names the file's kind to fault points.

    Raises StoreError, from here on, when the disk does not take it.
    """

    def __init__(self, partial: Path, final: Path, size: int, sha256: str, subject: str) -> None:
        self._partial, self._final, self._subject = partial, final, subject
        self._size, self._sha256 = size, sha256
        try:
            partial.parent.mkdir(parents=True, exist_ok=True)
            if partial.exists() and partial.stat().st_size > size:
                partial.unlink()
            # Unbuffered: what a killed process has received is there for the next.
            self._file = partial.open("a+b", buffering=0)
            self._read()
        except OSError as error:
            raise self._problem(error) from error

    def _read(self) -> None:
        self._file.seek(0)
        self._digest = Hasher(hashlib.file_digest(self._file, "sha256"))
        self.offset = self._file.tell()

    def go_back(self, offset: int) -> None:
        """Drop what lies beyond `offset`: the sender begins there, though it need not have.

        Raises BrokenTransfer when not so much is there.
        """
        if offset > self.offset:
            raise BrokenTransfer(f"bytes are missing: {self.offset} are here, the next is number {offset}")
        if offset < self.offset:
            self._file.truncate(offset)
            self._read()

    def write(self, chunk: Chunk) -> None:
        """Append a chunk.

        Raises BrokenTransfer when it does not start where the last one ended, is empty or too
        large, goes beyond the announced size, or another transfer took over.
        """
        if self._file.closed:
            raise BrokenTransfer("another transfer of the same file took over")
        if chunk.offset != self.offset:
            raise BrokenTransfer(f"expected a chunk at offset {self.offset}, got {chunk.offset}")
        if not 0 < len(chunk.data) <= MAX_CHUNK_BYTES:
            raise BrokenTransfer(f"a chunk must hold 1 to {MAX_CHUNK_BYTES} bytes, got {len(chunk.data)}")
        if self.offset + len(chunk.data) > self._size:
            raise BrokenTransfer(f"more than the announced {self._size} bytes arrived")
        try:
            rest = memoryview(chunk.data)
            while rest:
                rest = rest[self._file.write(rest) :]
            reach(Point.CHUNK_RECEIVED, self._subject, self._lose)
        except OSError as error:
            # A part of the chunk must not pass for a whole one.
            with suppress(OSError):
                self._file.truncate(self.offset)
            raise self._problem(error) from error
        self._digest.update(chunk.data)
        self.offset += len(chunk.data)

    def _lose(self) -> None:
        """As a file may look whose length reached the disk and whose content did not."""
        size = self._partial.stat().st_size
        with self._partial.open("r+b") as file:
            file.seek(size // 2)
            file.write(bytes(size - size // 2))

    def commit(self) -> None:
        """Check size and digest and give the file its final name, durably.

        Raises BrokenTransfer when bytes are missing (the partial file stays), BadDigest when the
        content is not what was announced (the partial file goes).
        """
        if self.offset != self._size:
            raise BrokenTransfer(f"got {self.offset} of {self._size} bytes")
        if self._digest.hexdigest() != self._sha256:
            self._partial.unlink(missing_ok=True)
            raise BadDigest(f"content does not match its digest {self._sha256[:12]}…; sent again?")
        try:
            publish(self._partial, self._final, self._subject)
        except OSError as error:
            raise self._problem(error) from error

    def _problem(self, error: OSError) -> StoreError:
        return StoreError(f"cannot write {self._partial}: {disk_problem(error, self._partial.parent)}")

    def close(self) -> None:
        """Take no more chunks."""
        self._file.close()
        self._digest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def verify(path: Path, sha256: str) -> None:
    """Raise BadDigest unless the file's content has this digest."""
    if sha256_of(path) != sha256:
        raise BadDigest(f"{path.name} does not match its digest {sha256[:12]}…; delete it to fetch anew")
