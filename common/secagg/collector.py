"""The coordinator's side of a secure round: what it takes, and the masks that the sum has too many.

What does not fit raises BadShare, which blames the worker whose doing it is.
"""

from collections.abc import Collection, Mapping, Sequence

from common.errors import BadShare
from common.secagg import shamir
from common.secagg.checks import (
    check_distinct,
    check_endorsed,
    check_public,
    check_sharers,
    check_survivors,
)
from common.secagg.context import digest
from common.secagg.keys import SEALED_MORE_BYTES, commitment, public
from common.secagg.records import (
    KEY_BYTES,
    Endorsement,
    Kind,
    Mask,
    Opening,
    PublicKeys,
    SecureRound,
    ShareOffer,
    Verifier,
    place,
)
from common.secagg.shamir import SHARE_BYTES
from common.secagg.statements import pair_mask, self_mask, share_digest, survivors_statement

_SEALED_BYTES = 2 * SHARE_BYTES + SEALED_MORE_BYTES

# Of one sharer: the digest of each share, by its holder and kind.
Digests = Mapping[tuple[str, Kind], bytes]


def check_keys(
    round: SecureRound, keys: PublicKeys, verify: Verifier | None, others: Sequence[PublicKeys] = ()
) -> None:
    """A worker's keys, beside those of `others`: the roster is of what passes here. Raises BadShare."""
    check_public(round, digest(round), keys, verify)
    check_distinct([*(known for known in others if known.worker != keys.worker), keys])


def check_offer(round: SecureRound, roster: Sequence[PublicKeys], offer: ShareOffer) -> None:
    """A worker's shares: for each of the roster, of the right form; more is seen by holders only.

    Raises BadShare.
    """
    by, members = offer.worker, {keys.worker for keys in roster}
    if by not in members:
        raise BadShare(f"{by} deals shares, but is not in the roster of round {round.round}", by)
    if offer.sealed.keys() != members - {by}:
        raise BadShare(f"{by} must deal shares to each other worker of the roster, and nobody else", by)
    if offer.digests.keys() != {(holder, kind) for holder in members for kind in Kind}:
        raise BadShare(f"{by} must tell two digests for each worker of the roster", by)
    if any(len(text) != _SEALED_BYTES for text in offer.sealed.values()):
        raise BadShare(f"{by}: sealed shares must have {_SEALED_BYTES} bytes", by)
    if any(len(told) != KEY_BYTES for told in offer.digests.values()):
        raise BadShare(f"{by}: digests must have {KEY_BYTES} bytes", by)


def check_endorsement(
    round: SecureRound,
    roster: Sequence[PublicKeys],
    sharers: Collection[str],
    survivors: Collection[str],
    endorsement: Endorsement,
    verify: Verifier | None,
) -> None:
    """A survivor's signature under these lists. Raises BadShare."""
    statement = survivors_statement(digest(round), roster, sharers, survivors)
    check_endorsed(roster, statement, survivors, endorsement, verify)


def check_opening(
    round: SecureRound,
    opener: str,
    opening: Opening,
    digests: Mapping[str, Digests],
    sharers: Collection[str],
    survivors: Collection[str],
) -> None:
    """One share that `opener` gives away, against what its sharer told of it; `digests` are by sharer.

    Raises BadShare that blames the opener.
    """
    about, kind = opening.about, opening.kind
    if opener not in survivors or about not in sharers:
        raise BadShare(f"{opener} opens a share of {about}: not asked for", opener)
    if kind is not wanted(about, survivors):
        raise BadShare(f"{opener} opens the {kind} share of {about}: the other is asked for", opener)
    _check_dealt(round, digest(round), opener, opening, digests)


def check_openings(
    round: SecureRound,
    opener: str,
    openings: Sequence[Opening],
    digests: Mapping[str, Digests],
    sharers: Collection[str],
    survivors: Collection[str],
) -> None:
    """All that a survivor opens: one share of each sharer. Raises BadShare that blames it."""
    if opener not in survivors:
        raise BadShare(f"{opener} opens shares of a sum that it is not part of", opener)
    # Of a hundred workers there are ten thousand shares: the context is computed once.
    context = digest(round)
    asked = sorted((about, wanted(about, survivors)) for about in sharers)
    if sorted((opening.about, opening.kind) for opening in openings) != asked:
        raise BadShare(f"{opener} must open one share of each who dealt any, of the secret asked for", opener)
    for opening in openings:
        _check_dealt(round, context, opener, opening, digests)


def _check_dealt(
    round: SecureRound, context: bytes, opener: str, opening: Opening, digests: Mapping[str, Digests]
) -> None:
    about, kind = opening.about, opening.kind
    told = share_digest(context, place(round, about), place(round, opener), kind, opening.share)
    if told != digests[about][opener, kind]:
        raise BadShare(f"the share of {about} that {opener} opens is not the one it was dealt", opener)


def wanted(about: str, survivors: Collection[str]) -> Kind:
    """Which secret of a sharer is opened: its seed if its vector counts, else its key."""
    return Kind.SELF if about in survivors else Kind.MASK


def recover(
    round: SecureRound,
    roster: Sequence[PublicKeys],
    digests: Mapping[str, Digests],
    sharers: Collection[str],
    survivors: Collection[str],
    openings: Mapping[str, Sequence[Opening]],
) -> tuple[Mask, ...]:
    """The masks that turn the ring sum of the survivors' vectors into the plain sum, when all are added.

    `openings` are by opener; of more than the threshold the first in order are used: any give the same.
    Raises BadShare: for too few, for a share that is not the one dealt (blames the opener), for shares
    that do not make the secret that was committed to (blames the sharer).
    """
    check_sharers(round, roster, sharers)
    check_survivors(round, sharers, survivors)
    if len(openings) < round.threshold:
        raise BadShare(f"{round.threshold} workers must open their shares, got {len(openings)}")
    openers = sorted(openings)[: round.threshold]
    for opener in openers:
        check_openings(round, opener, openings[opener], digests, sharers, survivors)
    weights = shamir.weights(place(round, opener) for opener in openers)
    entries = {keys.worker: keys for keys in roster}
    shares: dict[str, dict[int, bytes]] = {about: {} for about in sharers}
    for opener in openers:
        for opening in openings[opener]:
            shares[opening.about][place(round, opener)] = opening.share
    context = digest(round)
    masks: list[Mask] = []
    for about in sorted(sharers):
        secret = _secret(entries[about], wanted(about, survivors), shares[about], weights)
        if about in survivors:
            own = self_mask(secret, context)
            masks.append(Mask(own.seed, -own.sign))
        else:
            # What the one that dropped out would have added cancels what its partners did.
            others = (entries[other] for other in sorted(survivors))
            masks += [pair_mask(secret, round, entries[about], other, context) for other in others]
    return tuple(masks)


def _secret(keys: PublicKeys, kind: Kind, shares: Mapping[int, bytes], weights: Mapping[int, int]) -> bytes:
    try:
        secret = shamir.combine(shares, weights)
    except ValueError:
        secret = b""
    fits = len(secret) == KEY_BYTES and (
        commitment(secret) == keys.commitment if kind is Kind.SELF else public(secret) == keys.mask
    )
    if not fits:
        raise BadShare(
            f"the shares that {keys.worker} dealt are not of the {kind} secret it told of", keys.worker
        )
    return secret
