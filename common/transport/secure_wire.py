"""Protobuf ↔ records, for secure aggregation. What the cryptography makes of it is judged elsewhere."""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

from fedpft.v1 import federation_pb2, secure_pb2, types_pb2
from google.protobuf.message import Message

from common.errors import BadMessage
from common.secagg.news import Ended, Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import MOST_WORKERS, Endorsement, Kind, Opening, PublicKeys, ShareOffer
from common.secure_task import MOST_COUNTED, SecureSpec, SecureTask
from common.transport.texts import one_line, worker_name

_DIGEST_BYTES = 32
_MOST_SEALED, _MOST_SIGNATURE, _MOST_CERTIFICATE = 512, 1024, 16 * 1024


# --- what runs and tasks say ---


def spec_to_pb(spec: SecureSpec | None) -> types_pb2.SecureSpec | None:
    if spec is None:
        return None
    return types_pb2.SecureSpec(
        minimum=spec.minimum,
        bits=spec.bits,
        by_examples=spec.by_examples,
        most_examples=spec.most_examples,
        signed=spec.signed,
    )


def spec_from_pb(m: types_pb2.SecureSpec) -> SecureSpec:
    if m.bits not in (32, 64):
        raise BadMessage(f"secure sums of {m.bits} bits are not known here; upgrade the worker")
    if m.by_examples and not 1 <= m.most_examples <= MOST_COUNTED:
        raise BadMessage(
            f"secure sums weighed by examples count 1 to {MOST_COUNTED} of a worker, got {m.most_examples}"
        )
    return SecureSpec(m.minimum, m.bits, m.by_examples, m.most_examples, m.signed)


def task_to_pb(task: SecureTask | None) -> secure_pb2.SecureTask | None:
    if task is None:
        return None
    return secure_pb2.SecureTask(
        drawn=task.drawn,
        electorate=task.electorate,
        colluding=task.colluding,
        threshold=task.threshold,
        minimum=task.minimum,
        clip=task.clip,
        context=task.context,
    )


def task_from_pb(m: secure_pb2.SecureTask) -> SecureTask:
    if not (math.isfinite(m.clip) and m.clip > 0):
        raise BadMessage(f"an update's norm must be bounded by a positive number, got {m.clip}")
    names = _names(m.drawn), _names(m.electorate, most=1_000_000)
    return SecureTask(*names, m.colluding, m.threshold, m.minimum, m.clip, _sized(m.context))


# --- what workers say ---


def said_to_pb(said: Said) -> tuple[str, Message]:
    """The call, and its request."""
    about: dict[str, Any] = {
        "session": said.session,
        "round": said.round,
        "attempt": said.attempt,
        "context": said.context,
    }
    match said.content:
        case PublicKeys() as keys:
            return "OfferKeys", secure_pb2.OfferKeysRequest(**about, keys=keys_to_pb(keys))
        case ShareOffer() as offer:
            shares = [secure_pb2.SealedShare(recipient=w, sealed=s) for w, s in sorted(offer.sealed.items())]
            holders = sorted({holder for holder, _ in offer.digests})
            digests = [
                _digests_to_pb(holder, (offer.digests[holder, Kind.SELF], offer.digests[holder, Kind.MASK]))
                for holder in holders
            ]
            return "OfferShares", secure_pb2.OfferSharesRequest(**about, shares=shares, digests=digests)
        case Endorsement() as endorsement:
            request = secure_pb2.EndorseSurvivorsRequest(**about, signature=endorsement.signature)
            return "EndorseSurvivors", request
        case openings:
            opened = [
                secure_pb2.OpenedShare(about=o.about, mask_key=o.kind is Kind.MASK, share=o.share)
                for o in openings
            ]
            return "OpenShares", secure_pb2.OpenSharesRequest(**about, opened=opened)


def said_from_pb(m: Any, worker: str) -> Said:
    """Of any of the four requests, from a worker of this name. Raises BadMessage."""
    content: PublicKeys | ShareOffer | Endorsement | tuple[Opening, ...]
    match m:
        case secure_pb2.OfferKeysRequest():
            content = keys_from_pb(m.keys)
            if content.worker != worker:
                raise BadMessage(f"these are keys of another worker than {worker}")
        case secure_pb2.OfferSharesRequest():
            sealed = {worker_name(s.recipient): _bounded(s.sealed, _MOST_SEALED) for s in m.shares}
            digests = {
                (worker_name(d.holder), kind): digest
                for d in m.digests
                for kind, digest in zip((Kind.SELF, Kind.MASK), _digests_from_pb(d), strict=True)
            }
            if max(len(m.shares), len(m.digests)) > MOST_WORKERS:
                raise BadMessage(f"a try has {MOST_WORKERS} workers at most")
            if len(sealed) < len(m.shares) or len(digests) < len(Kind) * len(m.digests):
                raise BadMessage("two shares are for the same worker")
            content = ShareOffer(worker, MappingProxyType(sealed), MappingProxyType(digests))
        case secure_pb2.EndorseSurvivorsRequest():
            content = Endorsement(worker, _bounded(m.signature, _MOST_SIGNATURE))
        case _:
            if len(m.opened) > MOST_WORKERS:
                raise BadMessage(f"a try has {MOST_WORKERS} workers at most")
            content = tuple(
                Opening(
                    worker_name(o.about),
                    Kind.MASK if o.mask_key else Kind.SELF,
                    _bounded(o.share, _MOST_SEALED),
                )
                for o in m.opened
            )
    return Said(m.session, m.round, m.attempt, _sized(m.context), content)


def keys_to_pb(keys: PublicKeys) -> secure_pb2.SecureKeys:
    return secure_pb2.SecureKeys(
        worker=keys.worker,
        channel=keys.channel,
        mask=keys.mask,
        commitment=keys.commitment,
        certificate=keys.certificate,
        signature=keys.signature,
    )


def keys_from_pb(m: secure_pb2.SecureKeys) -> PublicKeys:
    return PublicKeys(
        worker_name(m.worker),
        _sized(m.channel),
        _sized(m.mask),
        _sized(m.commitment),
        _bounded(m.certificate, _MOST_CERTIFICATE),
        _bounded(m.signature, _MOST_SIGNATURE),
    )


# --- news ---


def news_to_pb(news: SecureNews) -> federation_pb2.WatchTasksResponse:
    about: dict[str, Any] = {"round": news.round, "attempt": news.attempt, "context": news.context}
    match news.content:
        case Roster(keys):
            about["roster"] = secure_pb2.Roster(keys=[keys_to_pb(k) for k in keys])
        case Sharers(sealed, digests):
            received = [
                secure_pb2.ReceivedShare(
                    sender=sender, sealed=sealed[sender], digests=_digests_to_pb("", digests[sender])
                )
                for sender in sorted(sealed)
            ]
            about["sharers"] = secure_pb2.Sharers(shares=received)
        case Survivors(workers):
            about["survivors"] = secure_pb2.Survivors(workers=workers)
        case Endorsements(endorsements):
            told = [secure_pb2.Endorsement(worker=e.worker, signature=e.signature) for e in endorsements]
            about["endorsements"] = secure_pb2.Endorsements(endorsements=told)
        case Ended(reason):
            about["ended"] = secure_pb2.Ended(reason=reason)
    return federation_pb2.WatchTasksResponse(secure=secure_pb2.SecureNews(**about))


def news_from_pb(m: secure_pb2.SecureNews) -> SecureNews:
    """Raises BadMessage."""
    content: Roster | Sharers | Survivors | Endorsements | Ended
    match m.WhichOneof("news"):
        case "roster":
            content = Roster(tuple(keys_from_pb(k) for k in m.roster.keys))
        case "sharers":
            shares = m.sharers.shares
            sealed = {worker_name(s.sender): _bounded(s.sealed, _MOST_SEALED) for s in shares}
            digests = {s.sender: _digests_from_pb(s.digests) for s in shares}
            content = Sharers(MappingProxyType(sealed), MappingProxyType(digests))
        case "survivors":
            content = Survivors(_names(m.survivors.workers))
        case "endorsements":
            content = Endorsements(
                tuple(
                    Endorsement(worker_name(e.worker), _bounded(e.signature, _MOST_SIGNATURE))
                    for e in m.endorsements.endorsements
                )
            )
        case "ended":
            content = Ended(one_line(m.ended.reason))
        case _:
            raise BadMessage("news of secure aggregation of a kind not known here; upgrade the worker")
    return SecureNews(m.round, m.attempt, _sized(m.context), content)


# --- parts ---


def _digests_to_pb(holder: str, digests: tuple[bytes, bytes]) -> secure_pb2.ShareDigests:
    return secure_pb2.ShareDigests(holder=holder, self_seed=digests[0], mask_key=digests[1])


def _digests_from_pb(m: secure_pb2.ShareDigests) -> tuple[bytes, bytes]:
    return _sized(m.self_seed), _sized(m.mask_key)


def _names(names: Sequence[str], most: int = MOST_WORKERS) -> tuple[str, ...]:
    if len(names) > most:
        raise BadMessage(f"a try has {most} workers at most, got {len(names)}")
    checked = tuple(worker_name(name) for name in names)
    if list(checked) != sorted(set(checked)):
        raise BadMessage("names of workers must be sorted, each once")
    return checked


def _sized(content: bytes) -> bytes:
    if len(content) != _DIGEST_BYTES:
        raise BadMessage(f"a key or digest must have {_DIGEST_BYTES} bytes, got {len(content)}")
    return content


def _bounded(content: bytes, most: int) -> bytes:
    if len(content) > most:
        raise BadMessage(f"a part of secure aggregation has {len(content)} bytes, {most} are allowed")
    return content
