"""Messages that carry a chunk, without the copies of its content that protobuf would make.

They look on the wire as protobuf encodes them. On the way in, a message of any other form than the plain
one is left to protobuf.
"""

from fedpft.v1.federation_pb2 import DownloadArtifactResponse, SubmitUpdateRequest

from common.records import Chunk

# Keys of protobuf fields: number << 3 | wire type; 0 a number, 2 bytes or a message.
_OFFSET, _DATA = b"\x08", b"\x12"
_DOWNLOAD = bytes([DownloadArtifactResponse.CHUNK_FIELD_NUMBER << 3 | 2])
_SUBMISSION = bytes([SubmitUpdateRequest.CHUNK_FIELD_NUMBER << 3 | 2])
# A number of 64 bits takes so many bytes at most.
_VARINT_BYTES = 10


def encode_download(chunk: Chunk) -> bytes:
    """A DownloadArtifactResponse."""
    return _encode(_DOWNLOAD, chunk)


def encode_submission(message: SubmitUpdateRequest | bytes) -> bytes:
    """A SubmitUpdateRequest; with a chunk it comes encoded, by `submission`."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def submission(chunk: Chunk) -> bytes:
    """A SubmitUpdateRequest that carries a chunk."""
    return _encode(_SUBMISSION, chunk)


def encoded_bytes(chunk: Chunk) -> int:
    """Size of a message that carries a chunk, either way; protobuf would encode it to see."""
    sizes = [len(chunk.data)]
    if chunk.data:
        sizes.append(1 + len(_varint(len(chunk.data))))
    if chunk.offset:
        sizes.append(1 + len(_varint(chunk.offset)))
    return 1 + len(_varint(sum(sizes))) + sum(sizes)


def decode_download(content: bytes) -> Chunk | DownloadArtifactResponse:
    """A DownloadArtifactResponse; its chunk's data is a view of `content`."""
    return _decode(_DOWNLOAD, content) or DownloadArtifactResponse.FromString(content)


def decode_submission(content: bytes) -> Chunk | SubmitUpdateRequest:
    """A SubmitUpdateRequest; its chunk's data is a view of `content`."""
    return _decode(_SUBMISSION, content) or SubmitUpdateRequest.FromString(content)


def _encode(key: bytes, chunk: Chunk) -> bytes:
    head = _OFFSET + _varint(chunk.offset) if chunk.offset else b""
    head += _DATA + _varint(len(chunk.data)) if chunk.data else b""
    return b"".join((key, _varint(len(head) + len(chunk.data)), head, chunk.data))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def _decode(key: bytes, content: bytes) -> Chunk | None:
    """The chunk of a message that holds it alone, its offset, if any, before its data; None for others."""
    if not content.startswith(key):
        return None
    size, at = _read_varint(content, 1)
    if at + size != len(content):
        return None
    offset = 0
    if content.startswith(_OFFSET, at):
        offset, at = _read_varint(content, at + 1)
    if not content.startswith(_DATA, at) or offset >= 1 << 64:
        return None
    size, at = _read_varint(content, at + 1)
    return Chunk(offset, memoryview(content)[at:]) if size and at + size == len(content) else None


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    """The number that begins at a place, and where it ends; beyond the content when it has no end."""
    number = 0
    for i, byte in enumerate(content[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return number, at + i + 1
    return 0, len(content) + 1
