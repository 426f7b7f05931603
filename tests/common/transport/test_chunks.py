"""Transfers in chunks: resumed where they broke off, refused when they are not what was announced."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BadDigest, BrokenTransfer
from common.records import Chunk
from common.transport.chunks import MAX_CHUNK_BYTES, ChunkWriter, read_chunks, verify

CONTENT = bytes(range(256)) * 4


@dataclass(frozen=True)
class Transfer:
    """A file to send, and where it is received."""

    source: Path
    partial: Path
    final: Path

    def writer(self, size: int = len(CONTENT), content: bytes = CONTENT) -> ChunkWriter:
        return ChunkWriter(self.partial, self.final, size, hashlib.sha256(content).hexdigest(), "file")


@pytest.fixture
def transfer(tmp_path: Path) -> Transfer:
    source = tmp_path / "source"
    source.write_bytes(CONTENT)
    return Transfer(source, tmp_path / "in" / "file.part", tmp_path / "in" / "file")


def test_a_file_arrives_as_it_was_sent(transfer: Transfer) -> None:
    with transfer.writer() as writer:
        for chunk in read_chunks(transfer.source, chunk_bytes=100):
            writer.write(chunk)
        writer.commit()
        assert transfer.final.read_bytes() == CONTENT
    assert not transfer.partial.exists()


def test_nothing_stands_under_the_final_name_before_commit(transfer: Transfer) -> None:
    with transfer.writer() as writer:
        for chunk in read_chunks(transfer.source):
            writer.write(chunk)
        assert not transfer.final.exists()
    assert not transfer.final.exists()
    assert transfer.partial.read_bytes() == CONTENT


def test_an_empty_file_needs_no_chunk(transfer: Transfer) -> None:
    with transfer.writer(0, b"") as writer:
        writer.commit()
    assert transfer.final.read_bytes() == b""


@pytest.mark.parametrize("already", [1, 100, len(CONTENT) - 1, len(CONTENT)])
def test_a_broken_transfer_goes_on_where_it_broke_off(transfer: Transfer, already: int) -> None:
    with transfer.writer() as writer:
        writer.write(Chunk(0, CONTENT[:already]))
    with transfer.writer() as writer:
        assert writer.offset == already
        for chunk in read_chunks(transfer.source, writer.offset, chunk_bytes=77):
            writer.write(chunk)
        writer.commit()
    assert transfer.final.read_bytes() == CONTENT


def test_missing_bytes_keep_the_partial_file(transfer: Transfer) -> None:
    with transfer.writer() as writer:
        writer.write(Chunk(0, CONTENT[:500]))
        with pytest.raises(BrokenTransfer, match=f"got 500 of {len(CONTENT)} bytes"):
            writer.commit()
    assert transfer.partial.read_bytes() == CONTENT[:500]
    assert not transfer.final.exists()


def test_a_wrong_digest_drops_the_partial_file(transfer: Transfer) -> None:
    with transfer.writer(content=b"something else") as writer:
        writer.write(Chunk(0, CONTENT))
        with pytest.raises(BadDigest):
            writer.commit()
    assert not transfer.partial.exists()
    assert not transfer.final.exists()


def test_a_partial_file_too_long_to_be_of_this_transfer_is_dropped(transfer: Transfer) -> None:
    transfer.partial.parent.mkdir()
    transfer.partial.write_bytes(CONTENT + b"more")
    with transfer.writer() as writer:
        assert writer.offset == 0


@pytest.mark.parametrize(
    ("chunk", "problem"),
    [
        (Chunk(9, b"x"), "expected a chunk at offset 10, got 9"),
        (Chunk(11, b"x"), "expected a chunk at offset 10, got 11"),
        (Chunk(10, b""), "must hold 1 to"),
        (Chunk(10, bytes(MAX_CHUNK_BYTES + 1)), "must hold 1 to"),
        (Chunk(10, bytes(11)), "more than the announced 20 bytes"),
    ],
)
def test_a_bad_chunk_is_refused_and_changes_nothing(transfer: Transfer, chunk: Chunk, problem: str) -> None:
    with transfer.writer(20, CONTENT[:20]) as writer:
        writer.write(Chunk(0, CONTENT[:10]))
        with pytest.raises(BrokenTransfer, match=problem):
            writer.write(chunk)
        writer.write(Chunk(10, CONTENT[10:20]))
        writer.commit()
    assert transfer.final.read_bytes() == CONTENT[:20]


def test_reading_beyond_the_end_is_refused(transfer: Transfer) -> None:
    assert list(read_chunks(transfer.source, len(CONTENT))) == []
    with pytest.raises(BrokenTransfer, match="beyond the end"):
        next(read_chunks(transfer.source, len(CONTENT) + 1))


@given(content=st.binary(max_size=300), chunk_bytes=st.integers(1, 400), data=st.data())
def test_chunks_join_to_the_files_content_from_any_offset(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "chunked"
    path.write_bytes(content)
    offset = data.draw(st.integers(0, len(content)))
    joined = b""
    for chunk in read_chunks(path, offset, chunk_bytes):
        assert chunk.offset == offset + len(joined)
        assert 0 < len(chunk.data) <= chunk_bytes
        joined += chunk.data
    assert joined == content[offset:]


def test_verify_tells_a_changed_file(transfer: Transfer) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    verify(transfer.source, digest)
    transfer.source.write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(BadDigest, match="source does not match"):
        verify(transfer.source, digest)
