"""A coordinator that lies, with workers in league; and what it knows, by linear algebra over symbols.

Workers are real: the functions of `member` and `history`, with real keys. Only the vectors are symbols: a
worker sends its unknown x and a symbol for each mask. The coordinator knows the symbols whose seeds it can
compute.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from common.errors import CertificateError, SecureRefused
from common.secagg import context, history, keys, member, shamir, statements
from common.secagg.history import History
from common.secagg.keeping import Dealt, Held
from common.secagg.keys import Secrets
from common.secagg.records import (
    Endorsement,
    Kind,
    Opening,
    PublicKeys,
    SecureRound,
    ShareOffer,
    Signer,
    place,
)
from tests.common.secagg.parties import Signatures

T = TypeVar("T")

# Symbols: ("x", worker, task) or ("mask", seed). Rows: symbol -> coefficient.
Symbol = tuple[str, str, str]
Row = dict[Symbol, int]
_FIELD = 2**61 - 1


@dataclass
class Honest:
    """A worker that follows the rules: every deed is in its history before it is done."""

    name: str
    signatures: Signatures
    history: History | None = None
    round: SecureRound | None = None
    secrets: Secrets | None = None
    keys: PublicKeys | None = None
    roster: tuple[PublicKeys, ...] = ()
    dealt: Dealt | None = None
    held: Held | None = None

    def ask(self, told: SecureRound) -> PublicKeys:
        """Take part in an attempt, with new secrets."""
        begun = history.begin(self.history, told)
        if begun != self.history:
            self.secrets, self.keys, self.dealt, self.held, self.roster = (
                Secrets.generate(),
                None,
                None,
                None,
                (),
            )
        self.history, self.round = begun, told
        if self.keys is None:
            assert self.secrets is not None
            signed = self.signatures.signer(self.name), self.signatures.certificate(self.name)
            self.keys = member.offer_keys(self.secrets, told, self.name, *signed)
        return self.keys

    def deal(self, roster: Sequence[PublicKeys]) -> ShareOffer:
        """Deal shares to a roster."""
        if self.round is None or self.secrets is None or self.keys is None or self.history is None:
            raise SecureRefused("no keys yet")
        member.check_roster(self.round, self.name, self.keys, roster, self.signatures.verify)
        self.history = history.dealing(self.history, roster)
        self.roster = tuple(roster)
        self.dealt = self.dealt or member.deal(self.secrets, self.round, self.name, roster)
        return self.dealt.offer

    def send(self, sealed: Mapping[str, bytes], digests: Mapping[str, tuple[bytes, bytes]]) -> Row:
        """Receive shares, and send the masked vector."""
        if self.round is None or self.secrets is None or self.dealt is None or self.history is None:
            raise SecureRefused("no shares dealt yet")
        self.held = member.receive(
            self.secrets, self.round, self.name, self.roster, sealed, digests, self.dealt
        )
        self.history = history.masking(self.history, self.held.sharers)
        row: Row = {unknown(self.name, self.round): 1}
        for mask in member.masks_of(
            self.secrets, self.round, self.name, self.roster, tuple(self.held.sharers)
        ):
            row[symbol(mask.seed)] = mask.sign
        return row

    def endorse(self, sharers: Collection[str], survivors: Collection[str]) -> Endorsement:
        """Sign two lists."""
        if self.round is None or self.history is None:
            raise SecureRefused("no round yet")
        self.history = history.endorsing(self.history, sharers, survivors)
        sign = self.signatures.signer(self.name)
        return member.endorse(self.round, self.name, self.roster, sharers, survivors, 3, sign)

    def open(
        self, sharers: Collection[str], survivors: Collection[str], endorsements: Sequence[Endorsement]
    ) -> tuple[Opening, ...]:
        """Open shares."""
        if self.round is None or self.held is None or self.history is None:
            raise SecureRefused("no shares held yet")
        opened = member.open_shares(
            self.round,
            self.name,
            self.roster,
            self.held,
            sharers,
            survivors,
            endorsements,
            self.signatures.verify,
            3,
        )
        self.history = history.opening(self.history, sharers, survivors)
        return opened

    def restart(self) -> None:
        """Go on from what is on disk."""
        kept = (self.history, self.secrets, self.keys, self.dealt, self.held)
        kinds = (History, Secrets, PublicKeys, Dealt, Held)
        self.history, self.secrets, self.keys, self.dealt, self.held = (  # type: ignore[assignment]
            None if record is None else kind.from_bytes(record.to_bytes())  # type: ignore[attr-defined]
            for record, kind in zip(kept, kinds, strict=True)
        )


def unknown(worker: str, told: SecureRound) -> Symbol:
    """A worker's vector: its answer to one question."""
    return "x", worker, told.task_digest.hex()


def symbol(seed: bytes) -> Symbol:
    """A mask's stream."""
    return "mask", seed.hex(), ""


@dataclass
class Coordinator:
    """What a lying coordinator has seen: all that any worker sent, and all secrets of those in league."""

    signatures: Signatures
    honest: dict[str, Honest]
    league: tuple[str, ...]
    rounds: dict[str, list[SecureRound]] = field(default_factory=dict)
    keys: dict[tuple[str, SecureRound], PublicKeys] = field(default_factory=dict)
    secrets: dict[tuple[str, SecureRound], Secrets] = field(default_factory=dict)
    offers: dict[tuple[str, SecureRound], ShareOffer] = field(default_factory=dict)
    rosters: dict[tuple[str, SecureRound], tuple[PublicKeys, ...]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    endorsements: list[Endorsement] = field(default_factory=list)
    # Secrets of keys that it shows for others' names.
    forged: list[Secrets] = field(default_factory=list)
    # Of a worker's secret `kind` in a context: shares by place.
    shares: dict[tuple[str, bytes, Kind], dict[int, bytes]] = field(default_factory=dict)

    @classmethod
    def of(cls, honest: Iterable[str], league: Iterable[str] = ()) -> "Coordinator":
        names, others = tuple(honest), tuple(league)
        signatures = Signatures([*names, *others])
        return cls(signatures, {name: Honest(name, signatures) for name in names}, others)

    def ask(self, worker: str, told: SecureRound) -> bool:
        """Have a worker take part; those in league do whatever round it is."""
        if worker in self.league:
            if (worker, told) not in self.secrets:
                made = Secrets.generate()
                self.secrets[worker, told] = made
                self.keys[worker, told] = member.offer_keys(made, told, worker, *self._papers(worker))
            return True
        offered = self._asked(lambda: self.honest[worker].ask(told))
        if offered is None:
            return False
        self.rounds.setdefault(worker, []).append(told)
        self.keys[worker, told] = offered
        return True

    def roster(self, told: SecureRound, names: Collection[str]) -> tuple[PublicKeys, ...]:
        """Of the keys shown for a round; of who showed none, those of another round."""
        found = []
        for name in sorted(names):
            if keys := latest(self.keys, name, told):
                found.append(keys)
        return tuple(found)

    def deal(self, worker: str, told: SecureRound, roster: tuple[PublicKeys, ...]) -> bool:
        """Have a worker deal shares to a roster; who is in league keeps what it gets."""
        if worker in self.league:
            self.rosters[worker, told] = roster
            if (worker, told) not in self.offers:
                self.offers[worker, told] = member.deal(
                    self.secrets[worker, told], told, worker, roster
                ).offer
            return True
        offer = self._asked(lambda: self.honest[worker].deal(roster))
        if offer is None:
            return False
        # Whatever round the coordinator meant, the worker is in its own.
        told = self.at(worker, told)
        self.offers[worker, told], self.rosters[worker, told] = offer, roster
        owner = next(keys for keys in roster if keys.worker == worker)
        ctx = context.digest(told)
        for entry in roster:
            secrets = self._private(entry)
            if secrets is None:
                continue
            about = statements.sealed_about(ctx, place(told, worker), place(told, entry.worker))
            key = statements.channel_key(secrets, told, entry, owner, ctx)
            plain = keys.unseal(key, offer.sealed[entry.worker], about)
            for kind, share in zip(Kind, (plain[:33], plain[33:]), strict=True):
                self._learn(worker, told, kind, place(told, entry.worker), share)
        return True

    def send(self, worker: str, told: SecureRound, sharers: Collection[str]) -> bool:
        """Have a worker mask its vector for these sharers."""
        if worker in self.league:
            return True
        offers = {by: latest(self.offers, by, told) for by in sharers if by != worker}
        if any(offer is None or worker not in offer.sealed for offer in offers.values()):
            return False
        there = {by: offer for by, offer in offers.items() if offer is not None}
        digests = {
            by: (offer.digests[worker, Kind.SELF], offer.digests[worker, Kind.MASK])
            for by, offer in there.items()
        }
        sealed = {by: offer.sealed[worker] for by, offer in there.items()}
        row = self._asked(lambda: self.honest[worker].send(sealed, digests))
        if row is not None and row not in self.rows:
            self.rows.append(row)
        return row is not None

    def endorse(
        self, worker: str, told: SecureRound, sharers: Collection[str], survivors: Collection[str]
    ) -> bool:
        """Have a worker sign; who is in league signs whatever it is given."""
        if worker in self.league:
            roster = latest(self.rosters, worker, told)
            if roster is None:
                return False
            made = statements.survivors_statement(context.digest(told), roster, sharers, survivors)
            self.endorsements.append(Endorsement(worker, self.signatures.signer(worker)(made)))
            return True
        given = self._asked(lambda: self.honest[worker].endorse(sharers, survivors))
        if given is not None:
            self.endorsements.append(given)
        return given is not None

    def open(
        self, worker: str, told: SecureRound, sharers: Collection[str], survivors: Collection[str]
    ) -> bool:
        """Have a worker open shares, with the best endorsements that there are of this round and lists."""
        if worker in self.league:
            return True
        roster = self.honest[worker].roster
        made = statements.survivors_statement(context.digest(told), roster, sharers, survivors)
        fitting = {e.worker: e for e in self.endorsements if self._fits(e, made)}
        # Rather forged ones than too few.
        for name in sorted(survivors):
            if len(fitting) < told.threshold:
                fitting.setdefault(name, Endorsement(name, b"forged"))
        given = [e for name, e in sorted(fitting.items()) if name in survivors]
        opened = self._asked(lambda: self.honest[worker].open(sharers, survivors, given))
        told = self.at(worker, told)
        for opening in opened or ():
            self._learn(opening.about, told, opening.kind, place(told, worker), opening.share)
        return opened is not None

    def impersonate_all(self, victim: str, told: SecureRound) -> None:
        """Show one worker keys of its own for all the others, and play them."""
        own = self.keys[victim, told]
        made = {name: Secrets.generate() for name in told.drawn if name != victim}
        self.forged += made.values()
        shown = {name: member.offer_keys(of, told, name, None, b"") for name, of in made.items()}
        entries = [replace(k, certificate=name.encode(), signature=b"forged") for name, k in shown.items()]
        roster = tuple(sorted([own, *entries], key=lambda keys: keys.worker))
        if self.deal(victim, told, roster):
            for name, of in made.items():
                self.offers[name, told] = member.deal(of, told, name, roster).offer
            self.send(victim, told, told.drawn)

    def at(self, worker: str, told: SecureRound) -> SecureRound:
        """The round that a worker takes part in; of one in league, whatever is said."""
        if worker in self.league:
            return told
        return self.honest[worker].round or told

    def known(self) -> list[Row]:
        """All combinations of honest vectors that it knows, as rows of a reduced basis."""
        seeds = self._seeds()
        rows = [{at: value for at, value in row.items() if at not in seeds} for row in self.rows]
        return [row for row in reduced(rows) if all(at[0] == "x" for at in row)]

    def leaks(self) -> list[str]:
        """What it knows beyond one sum of enough workers, all told the same; nothing, if the rules hold.

        Sums of different workers are disjoint: of one worker's vector it knows one sum at most.
        """
        found, seen = [], set[Symbol]()
        for row in self.known():
            told = " + ".join(f"{value}·{at[1]}" for at, value in sorted(row.items()))
            members = {at[1] for at in row}
            common = set.intersection(*(set(self.rounds[name]) for name in members))
            same = [r for r in common if all(at == unknown(at[1], r) for at in row)]
            if set(row.values()) != {1} or seen & row.keys():
                found.append(f"more than sums of different workers: {told}")
            elif not same:
                found.append(f"a sum over workers that were told different things: {told}")
            elif all(len(members) < r.minimum - len(self.league) for r in same):
                found.append(f"a sum of {len(members)} workers: {told}")
            seen |= row.keys()
        return found

    def _seeds(self) -> set[Symbol]:
        """Masks that it can compute: by those in league, and by whatever secrets it has enough shares of."""
        found = set()
        for (worker, told), secrets in self.secrets.items():
            found |= self._pairs(worker, told, secrets.mask, self.rosters.get((worker, told), ()))
        for (worker, told), own in self.keys.items():
            ctx = context.digest(told)
            for kind in Kind:
                shares = self.shares.get((worker, ctx, kind), {})
                if len(shares) < told.threshold:
                    continue
                some = dict(list(shares.items())[: told.threshold])
                secret = shamir.combine(some, shamir.weights(some))
                if kind is Kind.SELF and keys.commitment(secret) == own.commitment:
                    found.add(symbol(statements.self_mask(secret, ctx).seed))
                elif kind is Kind.MASK and keys.public(secret) == own.mask:
                    found |= self._pairs(worker, told, secret, self.rosters[worker, told])
        return found

    def _pairs(
        self, worker: str, told: SecureRound, private: bytes, roster: tuple[PublicKeys, ...]
    ) -> set[Symbol]:
        own = self.keys[worker, told]
        # Another's keys may have been shown to others only.
        others = {*roster, *self.keys.values()} - {own}
        ctx = context.digest(told)
        return {
            symbol(statements.pair_mask(private, told, own, keys, ctx).seed)
            for keys in others
            if keys.worker != worker and keys.worker in told.drawn
        }

    def _private(self, entry: PublicKeys) -> Secrets | None:
        for secrets in (*self.secrets.values(), *self.forged):
            if keys.public(secrets.channel) == entry.channel:
                return secrets
        return None

    def _learn(self, worker: str, told: SecureRound, kind: Kind, at: int, share: bytes) -> None:
        self.shares.setdefault((worker, context.digest(told), kind), {})[at] = share

    def _papers(self, worker: str) -> tuple[Signer, bytes]:
        return self.signatures.signer(worker), self.signatures.certificate(worker)

    def _asked(self, what: Callable[[], T]) -> T | None:
        """What an honest worker answers; None where it refuses."""
        try:
            return what()
        except SecureRefused:
            return None

    def _fits(self, given: Endorsement, statement: bytes) -> bool:
        try:
            certificate = self.signatures.certificate(given.worker)
            self.signatures.verify(given.worker, certificate, statement, given.signature)
        except CertificateError:
            return False
        return True


def latest(kept: Mapping[tuple[str, SecureRound], T], worker: str, told: SecureRound) -> T | None:
    """A worker's entry for a round, or else the last that it has for any."""
    others = [entry for (by, _), entry in kept.items() if by == worker]
    return kept.get((worker, told)) or (others[-1] if others else None)


def reduced(rows: Sequence[Row]) -> list[Row]:
    """The reduced row echelon form modulo a prime, masks before vectors; rows of zeros left out."""
    basis: dict[Symbol, Row] = {}
    for row in rows:
        rest = {at: value % _FIELD for at, value in row.items()}
        for pivot, other in basis.items():
            rest = _less(rest, other, rest.get(pivot, 0))
        if not rest:
            continue
        pivot = min(rest)
        inverse = pow(rest[pivot], -1, _FIELD)
        rest = {at: value * inverse % _FIELD for at, value in rest.items()}
        basis = {at: _less(other, rest, other.get(pivot, 0)) for at, other in basis.items()}
        basis[pivot] = rest
    return list(basis.values())


def _less(row: Row, other: Row, times: int) -> Row:
    """row - times · other, without zeros."""
    if not times:
        return row
    found = {at: (row.get(at, 0) - times * other.get(at, 0)) % _FIELD for at in row.keys() | other.keys()}
    return {at: value for at, value in found.items() if value}
