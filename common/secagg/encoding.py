"""Bytes that mean one thing only: what is hashed, signed, bound to a ciphertext, or kept on disk."""

import hashlib

from common.errors import SecureRefused

_LENGTH_BYTES = 4


def pack(*parts: bytes) -> bytes:
    """Every part behind its length, so that no two lists of parts are the same bytes."""
    return b"".join(len(part).to_bytes(_LENGTH_BYTES, "big") + part for part in parts)


def unpack(data: bytes) -> tuple[bytes, ...]:
    """The parts that `pack` was given. Raises ValueError."""
    parts, at = [], 0
    while at < len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "big")
        if start > len(data) or at > len(data):
            raise ValueError(f"{len(data)} bytes end within a part")
        parts.append(data[start:at])
    return tuple(parts)


def number(value: int) -> bytes:
    """A number from 0 to 2^64 - 1, in 8 bytes."""
    return value.to_bytes(8, "big")


def to_number(data: bytes) -> int:
    """The number that `number` was given. Raises ValueError."""
    if len(data) != 8:
        raise ValueError(f"a number has 8 bytes, got {len(data)}")
    return int.from_bytes(data, "big")


def names(listed: tuple[str, ...]) -> bytes:
    """Names, in their order."""
    return pack(*(name.encode() for name in listed))


def to_names(data: bytes) -> tuple[str, ...]:
    """The names that `names` was given. Raises ValueError."""
    return tuple(part.decode() for part in unpack(data))


def hashed(label: str, *parts: bytes) -> bytes:
    """SHA-256 of the parts, for one purpose, named by `label`: 32 bytes."""
    return hashlib.sha256(pack(label.encode(), *parts)).digest()


def framed(label: str, *parts: bytes) -> bytes:
    """The parts as a file's content, which tells whether it is whole."""
    return pack(*parts, hashed(label, *parts))


def unframed(label: str, data: bytes, count: int) -> tuple[bytes, ...]:
    """The `count` parts that `framed` was given.

    Raises SecureRefused, for a damaged or other content: without it the worker cannot go on in the round.
    """
    try:
        *parts, digest = unpack(data)
    except ValueError:
        parts, digest = [], b""
    if len(parts) != count or digest != hashed(label, *parts):
        raise SecureRefused(
            f"what this worker kept of the round ({label}) is damaged; it sits this attempt out"
        )
    return tuple(parts)
