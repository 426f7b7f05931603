"""What a secure round is, and what its parties tell each other: plain frozen records."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from common.errors import SecureRefused
from common.secagg.encoding import framed, unframed

# Of a key, a digest, a seed. Bytes.
KEY_BYTES = 32

# Every worker deals a share to every other: beyond these, messages and work would need a sparser graph
# (Bell et al. 2020).
MOST_WORKERS = 128
# With two, the sum tells each worker the other's update.
LEAST_WORKERS = 3

# (message) -> signature, by the key of the worker's certificate.
Signer = Callable[[bytes], bytes]
# (worker, certificate as DER, message, signature); raises CertificateError that names the worker.
Verifier = Callable[[str, bytes, bytes, bytes], None]


class Kind(StrEnum):
    """Which of a worker's two secrets a share is of. Of one worker only one may ever be opened."""

    SELF = "self"
    """The seed b of the mask that the worker puts on alone: opened when its vector counts."""
    MASK = "mask"
    """The private key s of the masks that it shares: opened when it dropped out after dealing shares."""


@dataclass(frozen=True)
class VectorSpec:
    """A vector to be summed: elements of the ring Z_2^bits, bits 32 or 64."""

    name: str
    shape: tuple[int, ...]
    bits: int

    def __post_init__(self) -> None:
        _require(bool(self.name), "a vector's name must not be empty")
        _require(all(size >= 0 for size in self.shape), f"{self.name}: sizes must be >= 0, got {self.shape}")
        _require(self.bits in (32, 64), f"{self.name}: bits must be 32 or 64, got {self.bits}")


@dataclass(frozen=True)
class SecureRound:
    """All that the workers of an attempt at a round must have been told alike. Raises SecureRefused.

    `drawn` are its n workers; `electorate` those of all attempts at the round so far, these included.
    Up to `colluding` of them may be in league with the coordinator. `threshold` shares open a secret.
    The sum is of `minimum` workers at least, or there is none.
    """

    run_id: str
    run_digest: bytes
    task_digest: bytes
    round: int
    attempt: int
    drawn: tuple[str, ...]
    electorate: tuple[str, ...]
    colluding: int
    threshold: int
    minimum: int
    clip: float
    step: float
    by_examples: bool
    most_examples: int
    vectors: tuple[VectorSpec, ...]

    def __post_init__(self) -> None:
        _require(bool(self.run_id), "run_id must not be empty")
        for name, digest in (("run_digest", self.run_digest), ("task_digest", self.task_digest)):
            _require(len(digest) == KEY_BYTES, f"{name} must have {KEY_BYTES} bytes, got {len(digest)}")
        for name, value, least in (
            ("round", self.round, 0),
            ("attempt", self.attempt, 0),
            ("most_examples", self.most_examples, 1),
        ):
            _require(least <= value < 2**63, f"{name} must be from {least} to 2^63 - 1, got {value}")
        _check_workers(self)
        _check_numbers(self)


@dataclass(frozen=True)
class PublicKeys:
    """What a worker tells of its secrets: X25519 public keys of channel (c) and masks (s), and H("b"‖b).

    `certificate` is DER, `signature` over all of it and the round's context; both empty without TLS.
    """

    worker: str
    channel: bytes
    mask: bytes
    commitment: bytes
    certificate: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As a file's content."""
        return framed(_KEYS, self.worker.encode(), *key_parts(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "PublicKeys":
        """What `to_bytes` gave. Raises SecureRefused."""
        worker, *parts = unframed(_KEYS, data, 6)
        return cls(worker.decode(), *parts)


_KEYS = "public keys"


def key_parts(keys: PublicKeys) -> tuple[bytes, ...]:
    """All but the name, in the order of the fields."""
    return keys.channel, keys.mask, keys.commitment, keys.certificate, keys.signature


@dataclass(frozen=True)
class ShareOffer:
    """A worker's shares of its two secrets.

    `sealed` has a ciphertext for each other worker of the roster; `digests` those of all shares, by holder
    and kind, its own included.
    """

    worker: str
    sealed: Mapping[str, bytes]
    digests: Mapping[tuple[str, Kind], bytes]


@dataclass(frozen=True)
class Endorsement:
    """A worker's signature under the lists of who dealt shares and whose vectors count."""

    worker: str
    signature: bytes


@dataclass(frozen=True)
class Opening:
    """A share that its holder gives away: of the secret `kind` of the worker `about`."""

    about: str
    kind: Kind
    share: bytes = field(repr=False)


@dataclass(frozen=True)
class Mask:
    """A stream of ring elements for every vector, by `seed` (32 bytes); added (1) or taken off (-1)."""

    seed: bytes = field(repr=False)
    sign: int


def place(round: SecureRound, worker: str) -> int:
    """The worker's number among those drawn, from 1 on. Raises SecureRefused."""
    if worker not in round.drawn:
        raise SecureRefused(f"worker {worker!r} was not drawn for round {round.round}")
    return round.drawn.index(worker) + 1


def _check_workers(told: SecureRound) -> None:
    n = len(told.drawn)
    _require(
        LEAST_WORKERS <= n <= MOST_WORKERS,
        f"{LEAST_WORKERS} to {MOST_WORKERS} workers must be drawn, got {n}",
    )
    for what, listed in (("drawn", told.drawn), ("electorate", told.electorate)):
        _require(
            all(listed) and list(listed) == sorted(set(listed)),
            f"{what} must be names in order, each once",
        )
    missing = sorted(set(told.drawn) - set(told.electorate))
    _require(not missing, f"the electorate must hold all that are drawn; {', '.join(missing)} is not in it")
    _require(
        0 <= told.colluding < n, f"colluding must be from 0 to {n - 1} of {n} workers, got {told.colluding}"
    )
    # An honest worker opens one of another's two secrets, one in league both, and the one attacked its own.
    _require(
        told.threshold <= n and 2 * told.threshold > n + told.colluding,
        f"threshold must be <= {n} and above half of {n} workers plus {told.colluding} colluding, "
        f"got {told.threshold}",
    )
    least = max(told.threshold, LEAST_WORKERS)
    _require(least <= told.minimum <= n, f"minimum must be from {least} to {n}, got {told.minimum}")


def _check_numbers(told: SecureRound) -> None:
    for name, value in (("clip", told.clip), ("step", told.step)):
        _require(math.isfinite(value) and value > 0, f"{name} must be a finite number > 0, got {value}")
    _require(bool(told.vectors), "there must be a vector to sum")
    named = [spec.name for spec in told.vectors]
    _require(len(set(named)) == len(named), "no two vectors may have the same name")
    most = told.clip / told.step
    _require(
        most >= 1 and most * len(told.drawn) <= 2**63,
        f"clip / step must be >= 1 and, times {len(told.drawn)} workers, fit 64 bits, got {most:g}",
    )


def _require(holds: bool, rule: str) -> None:
    if not holds:
        raise SecureRefused(f"secure round: {rule}")
