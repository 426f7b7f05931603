"""What a worker keeps of a secure round on its own disk, so that it goes on where it died."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from common.secagg.encoding import framed, pack, unframed, unpack
from common.secagg.records import Kind, ShareOffer

# Of one sharer: the share of its seed b, and that of its key s.
Shares: TypeAlias = tuple[bytes, bytes]

_DEALT, _HELD = "shares dealt", "shares held"


@dataclass(frozen=True)
class Dealt:
    """What a worker dealt: its offer to the others, and its shares of its own secrets."""

    offer: ShareOffer
    own: Shares = field(repr=False)

    def to_bytes(self) -> bytes:
        """As a file's content, for the worker's own disk."""
        offer = self.offer
        sealed = pack(*(part for to, text in offer.sealed.items() for part in (to.encode(), text)))
        told = ((holder.encode(), kind.encode(), made) for (holder, kind), made in offer.digests.items())
        digests = pack(*(part for entry in told for part in entry))
        return framed(_DEALT, offer.worker.encode(), sealed, digests, *self.own)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Dealt":
        """What `to_bytes` gave. Raises SecureRefused."""
        worker, *packed, seed, key = unframed(_DEALT, data, 5)
        sealed, digests = (unpack(part) for part in packed)
        offer = ShareOffer(
            worker.decode(),
            {to.decode(): text for to, text in zip(sealed[::2], sealed[1::2], strict=True)},
            {
                (holder.decode(), Kind(kind.decode())): made
                for holder, kind, made in zip(digests[::3], digests[1::3], digests[2::3], strict=True)
            },
        )
        return cls(offer, (seed, key))


@dataclass(frozen=True)
class Held:
    """The shares that a worker holds, by who dealt them, its own among them: of all sharers, U1."""

    shares: Mapping[str, Shares] = field(repr=False)

    @property
    def sharers(self) -> Collection[str]:
        """U1."""
        return self.shares.keys()

    def to_bytes(self) -> bytes:
        """As a file's content, for the worker's own disk."""
        return framed(_HELD, pack(*(p for by, pair in self.shares.items() for p in (by.encode(), *pair))))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Held":
        """What `to_bytes` gave. Raises SecureRefused."""
        parts = unpack(unframed(_HELD, data, 1)[0])
        return cls(
            {
                by.decode(): (seed, key)
                for by, seed, key in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
            }
        )
