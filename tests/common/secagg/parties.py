"""A secure round's parties in one process: real keys, shares, masks; a coordinator that plays fair."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from common.errors import CertificateError
from common.secagg import collector, context, masks, member
from common.secagg.keeping import Dealt, Held
from common.secagg.keys import Secrets
from common.secagg.masks import Ring
from common.secagg.records import (
    Endorsement,
    Kind,
    Mask,
    Opening,
    PublicKeys,
    SecureRound,
    Signer,
    VectorSpec,
    Verifier,
)

VECTORS = (VectorSpec("delta", (5,), 32),)


def workers(n: int) -> tuple[str, ...]:
    """n names, in order."""
    return tuple(f"w{i:03}" for i in range(n))


def a_round(n: int, colluding: int | None = None, **changes: Any) -> SecureRound:
    """A round of n workers with the usual threshold, which is its minimum, too."""
    c = context.default_colluding(n) if colluding is None else colluding
    limit = context.threshold(n, c)
    bits = max((spec.bits for spec in changes.get("vectors", VECTORS)), default=32)
    usual: dict[str, Any] = {
        "run_id": "run",
        "run_digest": b"r" * 32,
        "task_digest": b"t" * 32,
        "round": 1,
        "attempt": 1,
        "drawn": workers(n),
        "electorate": workers(n),
        "colluding": c,
        "threshold": limit,
        "minimum": max(limit, 3),
        "clip": 8.0,
        "step": context.ring_step(8.0, bits, n),
        "by_examples": False,
        "most_examples": 65536,
        "vectors": VECTORS,
    }
    return SecureRound(**(usual | changes))


class Signatures:
    """Certificates and signatures of a small kind: the name with an Ed25519 key, known to all."""

    def __init__(self, names: Iterable[str]) -> None:
        self._keys = {name: Ed25519PrivateKey.generate() for name in names}

    def signer(self, name: str) -> Signer:
        return self._keys[name].sign

    def certificate(self, name: str) -> bytes:
        return name.encode()

    def verify(self, worker: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        if certificate != worker.encode():
            raise CertificateError(f"{worker} shows another's certificate")
        try:
            self._keys[worker].public_key().verify(signature, message)
        except InvalidSignature:
            raise CertificateError(f"{worker}'s signature does not fit") from None


@dataclass
class Party:
    """One worker, as far as it has come."""

    name: str
    secrets: Secrets
    keys: PublicKeys
    dealt: Dealt | None = None
    held: Held | None = None


@dataclass
class Parties:
    """All of them, and what the coordinator has frozen: lists of names."""

    round: SecureRound
    signatures: Signatures | None
    all: dict[str, Party] = field(default_factory=dict)
    roster: tuple[PublicKeys, ...] = ()
    sharers: tuple[str, ...] = ()
    survivors: tuple[str, ...] = ()

    @property
    def verify(self) -> Verifier | None:
        return self.signatures.verify if self.signatures else None

    @property
    def digests(self) -> dict[str, collector.Digests]:
        return {name: self.dealt(name).offer.digests for name in self.sharers}

    def signer(self, name: str) -> Signer | None:
        return self.signatures.signer(name) if self.signatures else None

    def dealt(self, name: str) -> Dealt:
        dealt = self.all[name].dealt
        assert dealt is not None
        return dealt

    def held(self, name: str) -> Held:
        held = self.all[name].held
        assert held is not None
        return held

    def offer_keys(self, gone: Collection[str] = ()) -> None:
        """Phase "keys"; those that are gone leave before it."""
        for name in self.round.drawn:
            if name not in gone:
                secrets = Secrets.generate()
                certificate = self.signatures.certificate(name) if self.signatures else b""
                keys = member.offer_keys(secrets, self.round, name, self.signer(name), certificate)
                collector.check_keys(
                    self.round, keys, self.verify, [party.keys for party in self.all.values()]
                )
                self.all[name] = Party(name, secrets, keys)
        self.roster = tuple(party.keys for party in self.all.values())

    def deal(self, gone: Collection[str] = ()) -> None:
        """Phase "shares"."""
        there = [keys.worker for keys in self.roster if keys.worker not in gone]
        for name in there:
            party = self.all[name]
            member.check_roster(self.round, name, party.keys, self.roster, self.verify)
            party.dealt = member.deal(party.secrets, self.round, name, self.roster)
            collector.check_offer(self.round, self.roster, party.dealt.offer)
        self.sharers = tuple(there)

    def sent_to(self, name: str) -> tuple[dict[str, bytes], dict[str, tuple[bytes, bytes]]]:
        """Ciphertexts and digests for one of U1, by sender."""
        offers = {by: self.dealt(by).offer for by in self.sharers if by != name}
        digests = {
            by: (offer.digests[name, Kind.SELF], offer.digests[name, Kind.MASK])
            for by, offer in offers.items()
        }
        return {by: offer.sealed[name] for by, offer in offers.items()}, digests

    def receive(self) -> None:
        """All of U1 take what was dealt to them."""
        for name in self.sharers:
            party = self.all[name]
            sealed, digests = self.sent_to(name)
            party.held = member.receive(
                party.secrets, self.round, name, self.roster, sealed, digests, self.dealt(name)
            )

    def masks_of(self, name: str) -> tuple[Mask, ...]:
        return member.masks_of(self.all[name].secrets, self.round, name, self.roster, self.sharers)

    def survive(self, gone: Collection[str] = ()) -> None:
        """Freeze U2."""
        self.survivors = tuple(name for name in self.sharers if name not in gone)

    def endorse(self, gone: Collection[str] = (), floor: int = 3) -> tuple[Endorsement, ...]:
        """Phase "endorse"."""
        made = []
        for name in self.survivors:
            if name not in gone:
                lists = self.roster, self.sharers, self.survivors
                given = member.endorse(self.round, name, *lists, floor, self.signer(name))
                collector.check_endorsement(self.round, *lists, given, self.verify)
                made.append(given)
        return tuple(made)

    def open(
        self, endorsements: Sequence[Endorsement], gone: Collection[str] = ()
    ) -> dict[str, tuple[Opening, ...]]:
        """Phase "open"."""
        opened = {}
        for name in self.survivors:
            if name not in gone:
                opened[name] = member.open_shares(
                    self.round,
                    name,
                    self.roster,
                    self.held(name),
                    self.sharers,
                    self.survivors,
                    endorsements,
                    self.verify,
                )
                collector.check_openings(
                    self.round, name, opened[name], self.digests, self.sharers, self.survivors
                )
        return opened

    def recover(self, openings: Mapping[str, Sequence[Opening]]) -> tuple[Mask, ...]:
        return collector.recover(
            self.round, self.roster, self.digests, self.sharers, self.survivors, openings
        )


def masked(values: Ring, worn: Iterable[Mask], vector: str, told: SecureRound) -> Ring:
    """A copy with all masks on."""
    array = values.copy()
    for mask in worn:
        masks.add(array, mask, vector, context.digest(told))
    return array


def until_opened(n: int = 5, signed: bool = True, late: Collection[str] = (), **changes: Any) -> Parties:
    """A round whose survivors may endorse: those `late` dealt shares and went."""
    told = a_round(n, **changes)
    parties = Parties(told, Signatures(told.drawn) if signed else None)
    parties.offer_keys()
    parties.deal()
    parties.receive()
    parties.survive(late)
    return parties


def ring_sum(arrays: Iterable[Ring]) -> Ring:
    """Element by element, in the ring."""
    found = list(arrays)
    total = np.zeros_like(found[0])
    for array in found:
        total += array
    return total


def flipped(data: bytes, at: int = 0) -> bytes:
    """One bit changed."""
    return bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])


def with_entry(roster: Sequence[PublicKeys], worker: str, **changes: Any) -> tuple[PublicKeys, ...]:
    """A roster with one worker's entry changed."""
    return tuple(replace(keys, **changes) if keys.worker == worker else keys for keys in roster)
