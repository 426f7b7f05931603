"""Chunks in messages: as protobuf encodes them, whoever encodes and decodes."""

import pytest
from fedpft.v1.federation_pb2 import DownloadArtifactResponse, SubmitUpdateRequest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from common.records import Chunk
from common.transport.chunk_messages import (
    decode_download,
    decode_submission,
    encode_download,
    encode_submission,
    encoded_bytes,
    submission,
)
from common.transport.wire import chunk_to_pb

chunks = st.builds(Chunk, st.integers(0, 2**64 - 1), st.binary(max_size=300))


@given(chunks)
def test_what_is_encoded_is_what_protobuf_encodes(chunk: Chunk) -> None:
    message = chunk_to_pb(chunk)
    assert encode_download(chunk) == DownloadArtifactResponse(chunk=message).SerializeToString()
    assert submission(chunk) == SubmitUpdateRequest(chunk=message).SerializeToString()
    assert encoded_bytes(chunk) == len(submission(chunk))


@given(chunks)
def test_what_is_decoded_is_what_protobuf_decodes(chunk: Chunk) -> None:
    for decode, encoded in (
        (decode_download, encode_download(chunk)),
        (decode_submission, submission(chunk)),
    ):
        found = decode(encoded)
        if chunk.data:
            assert isinstance(found, Chunk)
            assert (found.offset, bytes(found.data)) == (chunk.offset, chunk.data)
        else:
            assert not isinstance(found, Chunk)
            assert found.chunk == chunk_to_pb(chunk)


@given(st.binary(max_size=40))
def test_other_bytes_mean_what_they_mean_to_protobuf(content: bytes) -> None:
    try:
        expected = SubmitUpdateRequest.FromString(content)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode_submission(content)
        return
    found = decode_submission(content)
    if isinstance(found, Chunk):
        found = SubmitUpdateRequest(chunk=chunk_to_pb(found))
    assert found == expected


@pytest.mark.parametrize(
    "content",
    [
        # Data before offset; data twice, of which the last counts; an offset of more than 64 bits.
        b"\x12\x06\x12\x02ab\x08\x05",
        b"\x12\x06\x12\x01a\x12\x01b",
        b"\x12\x0f\x08" + b"\xff" * 9 + b"\x7f\x12\x02ab",
    ],
)
def test_unusual_forms_are_left_to_protobuf(content: bytes) -> None:
    found = decode_submission(content)
    assert not isinstance(found, Chunk)
    assert found == SubmitUpdateRequest.FromString(content)


def test_a_header_goes_through_as_it_is() -> None:
    message = SubmitUpdateRequest()
    message.header.round = 3
    assert decode_submission(encode_submission(message)) == message
