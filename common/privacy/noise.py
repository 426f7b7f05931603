"""Random numbers that nobody else can compute: from the operating system, never from a run's seed.

A coordinator knows every seed that it has handed out. It could compute noise that was drawn from one, and
subtract it.
"""

import secrets
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

KEY_BYTES = 32
# Of a number between 0 and 1: so many that the one nearest to 1 is not rounded to it.
_BITS = 52
# Numbers that one normal draw is made of.
_DRAWS = 4
# Drawn at a time: 8 MiB of the stream.
_AT_ONCE = 1 << 20


class SecretDraws:
    """A stream of AES-256 in counter mode, under a key from the operating system's entropy.

    A key is handed over by tests alone: nothing that a user can set reaches it.
    """

    def __init__(self, key: bytes | None = None) -> None:
        mode = modes.CTR(bytes(16))
        self._stream = Cipher(algorithms.AES(key or secrets.token_bytes(KEY_BYTES)), mode).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """[count] words of 64 bits, each as likely as any other."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64, copy=False)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """[count] numbers between 0 and 1, neither of them among these."""
        return ((self.words(count) >> (64 - _BITS)).astype(np.float64) + 0.5) * 2.0**-_BITS

    def normals(self, shape: Sequence[int]) -> NDArray[np.float64]:
        """Standard normal numbers, each half the sum of four.

        A single one's last bits tell which numbers can come out at all, and with that what it was added to
        (Mironov 2012); of a sum of four they do not (Holohan and Braghin 2021, as Opacus draws them).
        """
        # It takes half a second.
        from scipy.special import ndtri

        count = int(np.prod(shape, dtype=np.int64))
        drawn = np.empty(count)
        for start in range(0, count, _AT_ONCE // _DRAWS):
            part = drawn[start : start + _AT_ONCE // _DRAWS]
            part[:] = ndtri(self.uniforms(_DRAWS * len(part))).reshape(_DRAWS, -1).sum(axis=0) / _DRAWS**0.5
        return drawn.reshape(tuple(shape))

    def chosen(self, count: int, rate: float) -> list[int]:
        """Which of so many are in a batch: each by itself, with probability `rate` (Poisson sampling)."""
        chosen: list[int] = np.flatnonzero(self.uniforms(count) < rate).tolist()
        return chosen
