"""What workers sign, hash and bind to a ciphertext, as bytes that both sides compute alike."""

from collections.abc import Iterable, Sequence

from common.secagg.encoding import hashed, names, number, pack
from common.secagg.keys import Secrets, Side, derived, shared
from common.secagg.records import Kind, Mask, PublicKeys, SecureRound, key_parts, place

_KEYS = b"FedPFT keys v1\0"
_SURVIVORS = b"FedPFT survivors v1\0"


def keys_statement(context: bytes, keys: PublicKeys) -> bytes:
    """What a worker signs when it offers its keys. The certificate is not in it: it tells by whose key."""
    return _KEYS + pack(context, keys.worker.encode(), keys.channel, keys.mask, keys.commitment)


def survivors_statement(
    context: bytes, roster: Sequence[PublicKeys], sharers: Iterable[str], survivors: Iterable[str]
) -> bytes:
    """What a worker signs when it endorses who dealt shares (U1) and whose vectors count (U2)."""
    lists = roster_digest(roster), names_digest(sharers), names_digest(survivors)
    return _SURVIVORS + pack(context, *lists)


def roster_digest(roster: Sequence[PublicKeys]) -> bytes:
    """32 bytes that differ as soon as one key of one worker does."""
    entries = (
        pack(keys.worker.encode(), *key_parts(keys)) for keys in sorted(roster, key=lambda k: k.worker)
    )
    return hashed("roster", *entries)


def names_digest(workers: Iterable[str]) -> bytes:
    """32 bytes that stand for a set of workers."""
    return hashed("workers", names(tuple(sorted(workers))))


def share_digest(context: bytes, sharer: int, holder: int, kind: Kind, share: bytes) -> bytes:
    """H(share), of one round, sharer, holder and kind; a share is 257 random bits, so it tells nothing."""
    return hashed("share", context, number(sharer), number(holder), kind.encode(), share)


def sealed_about(context: bytes, sharer: int, holder: int) -> bytes:
    """What a sealed pair of shares is bound to."""
    return pack(b"share", context, number(sharer), number(holder))


def channel_key(secrets: Secrets, round: SecureRound, own: PublicKeys, peer: PublicKeys, ctx: bytes) -> bytes:
    """The AES-256 key under which two workers seal shares. Raises ValueError for an unusable key."""
    mine, theirs = (
        Side(place(round, own.worker), own.channel),
        Side(place(round, peer.worker), peer.channel),
    )
    return shared("share", secrets.channel, mine, theirs, ctx)


def pair_mask(private: bytes, round: SecureRound, own: PublicKeys, peer: PublicKeys, ctx: bytes) -> Mask:
    """The mask that `own` puts on for its pair with `peer`: one adds it, the other takes it off.

    `private` is s of `own`. Raises ValueError for an unusable key.
    """
    mine, theirs = Side(place(round, own.worker), own.mask), Side(place(round, peer.worker), peer.mask)
    return Mask(shared("pair", private, mine, theirs, ctx), 1 if theirs.place > mine.place else -1)


def self_mask(self_seed: bytes, context: bytes) -> Mask:
    """The mask that a worker puts on alone."""
    return Mask(derived(self_seed, context, "self"), 1)
