"""Masks: AES-256-CTR streams, added to arrays of ring elements in place."""

from typing import Any, TypeAlias

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from common.secagg.keys import derived
from common.secagg.records import Mask

# Elements of Z_2^32 or Z_2^64: numpy's unsigned types wrap around.
Ring: TypeAlias = NDArray[np.unsignedinteger[Any]]

# Fits the processor's cache: larger buffers are slower.
_BUFFER_BYTES = 64 * 1024
_BLOCK_BYTES = 16
_ZEROS = bytes(_BUFFER_BYTES)


def add(array: Ring, mask: Mask, vector: str, context: bytes) -> None:
    """Add the mask's stream for `vector` to the whole of it, in place. Raises ValueError."""
    add_window(array, mask, vector, context, 0)


def add_window(array: Ring, mask: Mask, vector: str, context: bytes, start: int) -> None:
    """Add the mask's stream to the elements of `vector` from number `start` on that `array` holds, in place.

    `array` is contiguous, of uint32 or uint64 as the vector is; its windows in any order come to the same
    as the whole. Raises ValueError.
    """
    # Of anything else, such as numpy's scalars, `reshape` makes a copy: the mask would be lost.
    usable = isinstance(array, np.ndarray) and array.dtype in (np.uint32, np.uint64)
    if not usable or not array.flags.c_contiguous:
        raise ValueError(f"masks go on contiguous arrays of uint32 or uint64, got {type(array)}")
    if mask.sign not in (1, -1) or start < 0:
        raise ValueError(f"sign must be 1 or -1 and start >= 0, got {mask.sign} and {start}")
    change = np.add if mask.sign == 1 else np.subtract
    size = array.dtype.itemsize
    flat = array.reshape(-1)
    block, skip = divmod(start * size, _BLOCK_BYTES)
    stream = _stream(derived(mask.seed, context, "vector", vector.encode()), block)
    stream.update(bytes(skip))
    room = bytearray(_BUFFER_BYTES + _BLOCK_BYTES - 1)
    words = np.frombuffer(room, f"<u{size}", _BUFFER_BYTES // size)
    for at in range(0, flat.size, words.size):
        piece = flat[at : at + words.size]
        stream.update_into(memoryview(_ZEROS)[: piece.nbytes], room)
        change(piece, words[: piece.size], out=piece)


def _stream(key: bytes, block: int) -> CipherContext:
    """From this block of the key's stream on. Keys serve for one vector, so the counter begins at 0."""
    return Cipher(AES256(key), CTR(block.to_bytes(_BLOCK_BYTES, "big"))).encryptor()
