"""A worker's side of a secure round: what it offers, and what it refuses (Bonawitz et al. 2017).

Functions over records; `history.py` says what a worker may do once only. Whatever does not fit raises
SecureRefused: a worker that went on regardless could open somebody's vector.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

from common.errors import BadShare, SecureRefused
from common.secagg import shamir
from common.secagg.checks import (
    check_distinct,
    check_endorsed,
    check_public,
    check_roster_names,
    check_sharers,
    check_survivors,
)
from common.secagg.context import digest
from common.secagg.keeping import Dealt, Held, Shares
from common.secagg.keys import Secrets, commitment, public, seal, unseal
from common.secagg.records import (
    Endorsement,
    Kind,
    Mask,
    Opening,
    PublicKeys,
    SecureRound,
    ShareOffer,
    Signer,
    Verifier,
    place,
)
from common.secagg.shamir import SHARE_BYTES
from common.secagg.statements import (
    channel_key,
    keys_statement,
    pair_mask,
    sealed_about,
    self_mask,
    share_digest,
    survivors_statement,
)


def offer_keys(
    secrets: Secrets, round: SecureRound, name: str, sign: Signer | None, certificate: bytes
) -> PublicKeys:
    """The public side of the secrets, signed. Keep it: each signature is another. Raises SecureRefused."""
    place(round, name)
    told = PublicKeys(
        name,
        public(secrets.channel),
        public(secrets.mask),
        commitment(secrets.self_seed),
        certificate,
        signature=b"",
    )
    if sign is None:
        return told
    signature = sign(keys_statement(digest(round), told))
    return PublicKeys(name, told.channel, told.mask, told.commitment, certificate, signature)


def check_roster(
    round: SecureRound, name: str, own: PublicKeys, roster: Sequence[PublicKeys], verify: Verifier | None
) -> None:
    """Whether to deal shares to these workers: drawn, enough, signed for this round, own keys unchanged.

    Raises SecureRefused that names and blames the worker whose entry does not fit.
    """
    with _refusing():
        check_roster_names(round, roster)
        if _entry(roster, name) != own:
            raise SecureRefused(f"the roster shows other keys for {name} than this worker offered")
        check_distinct(roster)
        context = digest(round)
        for keys in roster:
            if keys.worker != name:
                check_public(round, context, keys, verify)


def deal(secrets: Secrets, round: SecureRound, name: str, roster: Sequence[PublicKeys]) -> Dealt:
    """Shares of both secrets for each worker of a roster that was checked; one's own are kept.

    To be on disk before it is offered: shares dealt twice are of two polynomials, and fit together never.
    Raises SecureRefused.
    """
    context, own = digest(round), _entry(roster, name)
    mine = place(round, name)
    split = [
        shamir.split(secret, round.threshold, len(round.drawn))
        for secret in (secrets.self_seed, secrets.mask)
    ]
    sealed, digests = {}, {}
    kept: Shares = (b"", b"")
    for keys in roster:
        holder = place(round, keys.worker)
        shares = split[0][holder - 1], split[1][holder - 1]
        for kind, share in zip(Kind, shares, strict=True):
            digests[keys.worker, kind] = share_digest(context, mine, holder, kind, share)
        if keys.worker == name:
            kept = shares
        else:
            with _refusing(keys.worker):
                key = channel_key(secrets, round, own, keys, context)
            sealed[keys.worker] = seal(key, b"".join(shares), sealed_about(context, mine, holder))
    return Dealt(ShareOffer(name, sealed, digests), kept)


def receive(
    secrets: Secrets,
    round: SecureRound,
    name: str,
    roster: Sequence[PublicKeys],
    sealed: Mapping[str, bytes],
    digests: Mapping[str, tuple[bytes, bytes]],
    dealt: Dealt,
) -> Held:
    """The shares that this worker holds, its own among them: of those who dealt, U1.

    `sealed` and `digests` (of the seed's share and the key's, in this order) are by sender, this worker
    left out. Raises SecureRefused that names and blames the sender of what does not fit.
    """
    context, own = digest(round), _entry(roster, name)
    mine = place(round, name)
    with _refusing():
        if name in sealed or sealed.keys() != digests.keys():
            raise SecureRefused("ciphertexts and digests must be of the same workers, this one left out")
        check_sharers(round, roster, [*sealed, name])
    held = {name: dealt.own}
    for keys in roster:
        if keys.worker in sealed:
            sender = place(round, keys.worker)
            with _refusing(keys.worker, f"the shares that {keys.worker} dealt to {name}: "):
                key = channel_key(secrets, round, own, keys, context)
                plain = unseal(key, sealed[keys.worker], sealed_about(context, sender, mine))
                shares = plain[:SHARE_BYTES], plain[SHARE_BYTES:]
                told = [
                    share_digest(context, sender, mine, kind, share)
                    for kind, share in zip(Kind, shares, strict=True)
                ]
                if len(plain) != 2 * SHARE_BYTES or told != list(digests[keys.worker]):
                    raise ValueError("they do not fit their digests")
            held[keys.worker] = shares
    return Held(held)


def masks_of(
    secrets: Secrets, round: SecureRound, name: str, roster: Sequence[PublicKeys], sharers: Collection[str]
) -> tuple[Mask, ...]:
    """What this worker adds to its vectors: its own mask, and one for each other worker that dealt shares.

    One vector per secrets, ever: the difference of two is plain. Raises SecureRefused.
    """
    context, own = digest(round), _entry(roster, name)
    with _refusing():
        check_sharers(round, roster, sharers)
        _require_among(name, sharers, "who dealt shares")
    masks = [self_mask(secrets.self_seed, context)]
    for keys in roster:
        if keys.worker != name and keys.worker in sharers:
            with _refusing(keys.worker):
                masks.append(pair_mask(secrets.mask, round, own, keys, context))
    return tuple(masks)


def endorse(
    round: SecureRound,
    name: str,
    roster: Sequence[PublicKeys],
    sharers: Collection[str],
    survivors: Collection[str],
    floor: int,
    sign: Signer | None,
) -> Endorsement:
    """This worker's signature under who dealt shares and whose vectors count; `floor` workers at least.

    Raises SecureRefused.
    """
    with _refusing():
        _check_lists(round, name, roster, sharers, survivors, floor)
    statement = survivors_statement(digest(round), roster, sharers, survivors)
    return Endorsement(name, sign(statement) if sign else b"")


def open_shares(
    round: SecureRound,
    name: str,
    roster: Sequence[PublicKeys],
    held: Held,
    sharers: Collection[str],
    survivors: Collection[str],
    endorsements: Sequence[Endorsement],
    verify: Verifier | None,
    floor: int = 0,
) -> tuple[Opening, ...]:
    """The shares that make a sum of the survivors' vectors: of each sharer one of the two, never both.

    The seed's where the vector counts, the key's where its owner dropped out. Only under lists that
    `threshold` survivors endorsed: no other lists can be. Raises SecureRefused.
    """
    with _refusing():
        _check_lists(round, name, roster, sharers, survivors, floor)
        if held.shares.keys() != set(sharers):
            raise SecureRefused("who dealt shares is told otherwise now than when they were received")
        if len({given.worker for given in endorsements}) != len(endorsements):
            raise SecureRefused("a worker endorses twice")
        if len(endorsements) < round.threshold:
            raise SecureRefused(f"{round.threshold} endorsements are needed, got {len(endorsements)}")
        statement = survivors_statement(digest(round), roster, sharers, survivors)
        for given in endorsements:
            check_endorsed(roster, statement, survivors, given, verify)
    return tuple(
        Opening(about, Kind.SELF, held.shares[about][0])
        if about in survivors
        else Opening(about, Kind.MASK, held.shares[about][1])
        for about in sorted(sharers)
    )


def _check_lists(
    round: SecureRound,
    name: str,
    roster: Sequence[PublicKeys],
    sharers: Collection[str],
    survivors: Collection[str],
    floor: int,
) -> None:
    check_sharers(round, roster, sharers)
    check_survivors(round, sharers, survivors, floor)
    _require_among(name, survivors, "whose updates count")


def _require_among(name: str, listed: Collection[str], what: str) -> None:
    if name not in listed:
        raise SecureRefused(f"{what}: this worker, {name}, is not among them")


def _entry(roster: Sequence[PublicKeys], name: str) -> PublicKeys:
    for keys in roster:
        if keys.worker == name:
            return keys
    raise SecureRefused(f"the roster does not hold this worker, {name}")


@contextmanager
def _refusing(blamed: str | None = None, where: str = "") -> Iterator[None]:
    """What does not fit is a refusal here: of the worker that BadShare names, or of `blamed`."""
    try:
        yield
    except BadShare as error:
        raise SecureRefused(f"{where}{error}", error.blamed) from error
    except ValueError as error:
        told = where or f"{blamed}'s key: " if blamed else where
        raise SecureRefused(f"{told}{error}", blamed) from error
