"""What both sides of a secure round check alike: public keys, signatures, and who is in which list."""

from collections.abc import Collection, Sequence

from common.errors import BadShare, CertificateError
from common.secagg.keys import require_usable
from common.secagg.records import KEY_BYTES, Endorsement, PublicKeys, SecureRound, Verifier
from common.secagg.statements import keys_statement


def check_public(round: SecureRound, context: bytes, keys: PublicKeys, verify: Verifier | None) -> None:
    """One worker's keys: drawn, of the right form, usable, signed for this round. Raises BadShare.

    `context` is the round's digest, which takes a millisecond where there are hundreds of vectors.
    """
    worker = keys.worker
    if worker not in round.drawn:
        raise BadShare(f"worker {worker!r} was not drawn for round {round.round}", worker)
    for what, value in (
        ("channel key", keys.channel),
        ("mask key", keys.mask),
        ("commitment", keys.commitment),
    ):
        if len(value) != KEY_BYTES:
            raise BadShare(f"{worker}'s {what} must have {KEY_BYTES} bytes, got {len(value)}", worker)
    for what, value in (("channel key", keys.channel), ("mask key", keys.mask)):
        try:
            require_usable(value)
        except ValueError:
            raise BadShare(f"{worker}'s {what} is no X25519 key that could keep a secret", worker) from None
    _check_signature(keys, keys_statement(context, keys), keys.signature, verify)


def check_distinct(roster: Sequence[PublicKeys]) -> None:
    """No key twice: who shows another's key, or one for both uses, opens what should stay closed.

    Raises BadShare.
    """
    holders: dict[bytes, str] = {}
    for keys in roster:
        for key in (keys.channel, keys.mask):
            if (other := holders.get(key)) is not None:
                raise BadShare(
                    f"{keys.worker} shows a key a second time; {other} showed it before", keys.worker
                )
            holders[key] = keys.worker


def check_roster_names(round: SecureRound, roster: Sequence[PublicKeys]) -> None:
    """The roster's names: drawn, each once, at least the threshold. Raises BadShare."""
    _check_names("the roster", [keys.worker for keys in roster], round.drawn, round.threshold)


def check_sharers(round: SecureRound, roster: Sequence[PublicKeys], sharers: Collection[str]) -> None:
    """U1: of the roster, each once, at least the threshold. Raises BadShare."""
    _check_names("who dealt shares", sharers, {keys.worker for keys in roster}, round.threshold)


def check_survivors(
    round: SecureRound, sharers: Collection[str], survivors: Collection[str], floor: int = 0
) -> None:
    """U2: of U1, each once, as many as the round and `floor` ask for. Raises BadShare."""
    least = max(round.threshold, round.minimum, floor)
    _check_names("whose updates count", survivors, sharers, least)


def check_endorsed(
    roster: Sequence[PublicKeys],
    statement: bytes,
    survivors: Collection[str],
    endorsement: Endorsement,
    verify: Verifier | None,
) -> None:
    """One endorsement, of the lists in `statement`, by one whose vector counts. Raises BadShare."""
    by = endorsement.worker
    if by not in survivors:
        raise BadShare(f"{by} endorses a sum that it is not part of", by)
    keys = next(keys for keys in roster if keys.worker == by)
    _check_signature(keys, statement, endorsement.signature, verify)


def _check_names(what: str, listed: Collection[str], among: Collection[str], least: int) -> None:
    if len(set(listed)) != len(listed):
        raise BadShare(f"{what}: a worker is listed twice")
    if strangers := sorted(set(listed) - set(among)):
        raise BadShare(f"{what}: {', '.join(strangers)} cannot be among them")
    if len(listed) < least:
        raise BadShare(f"{what}: {least} workers are needed, got {len(listed)}")


def _check_signature(keys: PublicKeys, statement: bytes, signature: bytes, verify: Verifier | None) -> None:
    worker = keys.worker
    if verify is None:
        if signature or keys.certificate:
            raise BadShare(f"{worker} signs, but without TLS there is nothing to check it by", worker)
        return
    if not signature or not keys.certificate:
        raise BadShare(f"{worker} shows no certificate and signature; a round under TLS needs both", worker)
    try:
        verify(worker, keys.certificate, statement, signature)
    except CertificateError as error:
        raise BadShare(str(error), worker) from error
