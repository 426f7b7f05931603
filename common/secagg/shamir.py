"""Shamir's secret sharing of 32-byte secrets over a prime field (Shamir 1979).

Python's integers are not constant-time; whoever computes here knows the secret anyway.
"""

import secrets
from collections.abc import Iterable, Mapping

# The least prime above 2^256, so that every 32 bytes are an element.
PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, threshold: int, n: int) -> tuple[bytes, ...]:
    """Shares for the places 1 to n, 33 bytes each; any `threshold` give the secret, fewer tell nothing.

    Raises ValueError.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= n:
        raise ValueError(f"{threshold} of {n} shares of a secret of {len(secret)} bytes")
    coefficients = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    return tuple(_evaluate(coefficients, x).to_bytes(SHARE_BYTES, "big") for x in range(1, n + 1))


def _evaluate(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        value = (value * x + coefficient) % PRIME
    return value


def weights(places: Iterable[int]) -> dict[int, int]:
    """Lagrange's weights at 0 for shares of these places, which serve for all secrets. Raises ValueError."""
    listed = list(places)
    if len(set(listed)) != len(listed) or not all(0 < place < PRIME for place in listed):
        raise ValueError(f"shares must be of different places from 1 on, got {listed}")
    found = {}
    for place in listed:
        above = below = 1
        for other in listed:
            if other != place:
                above = above * other % PRIME
                below = below * (other - place) % PRIME
        found[place] = above * pow(below, -1, PRIME) % PRIME
    return found


def combine(shares: Mapping[int, bytes], weights: Mapping[int, int]) -> bytes:
    """The secret, from shares by place and the weights of just these places.

    Raises ValueError when they are not shares of 32 bytes; other wrong shares give another secret.
    """
    if shares.keys() != weights.keys():
        raise ValueError(f"weights are of places {sorted(weights)}, shares of {sorted(shares)}")
    total = 0
    for place, share in shares.items():
        value = int.from_bytes(share, "big")
        if len(share) != SHARE_BYTES or value >= PRIME:
            raise ValueError(f"share {place} is no element of the field")
        total += value * weights[place]
    try:
        return (total % PRIME).to_bytes(SECRET_BYTES, "big")
    except OverflowError:
        raise ValueError("the shares are of no secret of 32 bytes") from None
