"""Secure aggregation in the database: what workers brought, who was decided on, what their sums came to."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from common.records import ArtifactRef
from common.secagg.records import Endorsement, Kind, Opening, PublicKeys, ShareOffer
from common.secure_task import SecureTask
from coordinator.storage.artifacts import Artifacts
from coordinator.storage.database import Database, as_kept
from coordinator.storage.releases import Release, Releases

Content = PublicKeys | ShareOffer | Endorsement | tuple[Opening, ...]

KEYS, SHARES, ENDORSEMENTS, OPENINGS = "keys", "shares", "endorsements", "openings"
ROSTER, SHARERS, SURVIVORS, ENDORSERS, OPENERS = "roster", "sharers", "survivors", "endorsers", "openers"
# What opens something; the rest is evidence of who endorsed what.
_SECRET = (KEYS, SHARES, OPENINGS)


@dataclass(frozen=True)
class StoredSum:
    """What a round's updates came to, masked or with noise: the mean as a file like an update's, of how many
    examples, the mean loss in nats, and how many of the updates were larger than the clip."""

    sha256: str
    workers: int
    examples: int
    loss: float
    clipped: int


class SecureTries:
    """Safe to use from several threads. Raises StoreError."""

    def __init__(self, database: Database, artifacts: Artifacts) -> None:
        self._database, self._artifacts = database, artifacts
        self.releases = Releases(database)

    # --- tries ---

    def open(self, round_number: int, attempt: int, task: SecureTask) -> None:
        """Record what the workers of a try are told."""
        told = {
            "drawn": task.drawn,
            "electorate": task.electorate,
            "colluding": task.colluding,
            "threshold": task.threshold,
            "minimum": task.minimum,
            "clip": task.clip,
            "context": task.context.hex(),
        }
        row = round_number, attempt, json.dumps(told), time.time()
        self._database.write("secure-try", "INSERT INTO secure_tries VALUES (?, ?, ?, ?)", *row)

    def tries(self, round_number: int) -> dict[int, SecureTask]:
        """What workers were told in the tries at a round so far."""
        if not self._database.has("secure_tries"):
            return {}
        query = "SELECT try, task FROM secure_tries WHERE round = ? ORDER BY try"
        return {number: _task(json.loads(told)) for number, told in self._database.rows(query, round_number)}

    # --- what workers bring ---

    def say(self, round_number: int, attempt: int, step: str, worker: str, content: Content) -> None:
        """Record what a worker brought in a step; afterwards it may be acknowledged."""
        row = round_number, attempt, step, worker, json.dumps(_plain(content))
        self._database.write(f"secure-{step}", "INSERT INTO secure_said VALUES (?, ?, ?, ?, ?)", *row)

    def keys(self, round_number: int, attempt: int) -> dict[str, PublicKeys]:
        """By worker, sorted by name, as the following."""
        return {w: _keys(w, c) for w, c in self._said(round_number, attempt, KEYS)}

    def shares(self, round_number: int, attempt: int) -> dict[str, ShareOffer]:
        """Shares that workers sealed for each other."""
        return {w: _offer(w, c) for w, c in self._said(round_number, attempt, SHARES)}

    def endorsements(self, round_number: int, attempt: int) -> dict[str, Endorsement]:
        """Signatures under who survived."""
        found = self._said(round_number, attempt, ENDORSEMENTS)
        return {w: Endorsement(w, bytes.fromhex(c["signature"])) for w, c in found}

    def openings(self, round_number: int, attempt: int) -> dict[str, tuple[Opening, ...]]:
        """Shares in the clear."""
        return {w: _openings(c) for w, c in self._said(round_number, attempt, OPENINGS)}

    def _said(self, round_number: int, attempt: int, step: str) -> list[tuple[str, dict[str, Any]]]:
        query = (
            "SELECT worker, content FROM secure_said WHERE round = ? AND try = ? AND step = ? ORDER BY worker"
        )
        rows = self._database.rows(query, round_number, attempt, step)
        return [(worker, json.loads(content)) for worker, content in rows]

    # --- what is decided ---

    def decide(self, round_number: int, attempt: int, which: str, workers: Iterable[str]) -> None:
        """Record a set of workers, before anybody hears of it."""
        row = round_number, attempt, which, json.dumps(sorted(workers))
        self._database.write(f"secure-{which}", "INSERT INTO secure_sets VALUES (?, ?, ?, ?)", *row)

    def decided(self, round_number: int, attempt: int) -> dict[str, tuple[str, ...]]:
        """All sets of a try that are decided, by what they are."""
        query = "SELECT which, workers FROM secure_sets WHERE round = ? AND try = ?"
        rows = self._database.rows(query, round_number, attempt)
        return {which: tuple(json.loads(workers)) for which, workers in rows}

    # --- sums ---

    def commit_sum(
        self, round_number: int, file: ArtifactRef, total: StoredSum, release: Release | None = None
    ) -> None:
        """Record what came of a round's updates where their sum alone counts, and what it told of workers
        that are promised privacy."""
        row = round_number, file.sha256, total.workers, total.examples, as_kept(total.loss), total.clipped
        with self._database.transaction("secure-sum") as db:
            db.execute("INSERT INTO secure_sums VALUES (?, ?, ?, ?, ?, ?)", row)
            if release is not None:
                self.releases.enter(db, release)

    def sum_of(self, round_number: int) -> StoredSum | None:
        """None while there is none."""
        return self.sums().get(round_number)

    def sums(self) -> dict[int, StoredSum]:
        """All of them, by round."""
        if not self._database.has("secure_sums"):
            return {}
        query = "SELECT round, sha256, workers, examples, loss, clipped FROM secure_sums ORDER BY round"
        return {
            number: StoredSum(sha256, workers, examples, float(loss), clipped)
            for number, sha256, workers, examples, loss, clipped in self._database.rows(query)
        }

    def forget_secrets(self, round_number: int) -> None:
        """Once the round's adapter is there: keys, shares and openings go; who endorsed what stays."""
        query = "SELECT count(*) FROM secure_said WHERE round = ? AND step IN (?, ?, ?)"
        if self._database.rows(query, round_number, *_SECRET)[0][0]:
            statement = "DELETE FROM secure_said WHERE round = ? AND step IN (?, ?, ?)"
            self._database.write("secure-forgotten", statement, round_number, *_SECRET)
        self._database.settle()


def _task(told: dict[str, Any]) -> SecureTask:
    named = {name: tuple(told[name]) for name in ("drawn", "electorate")}
    return SecureTask(**told | named | {"context": bytes.fromhex(told["context"])})


def _plain(content: Content) -> object:
    match content:
        case PublicKeys():
            names = "channel", "mask", "commitment", "certificate", "signature"
            return {name: getattr(content, name).hex() for name in names}
        case ShareOffer():
            return {
                "sealed": {worker: sealed.hex() for worker, sealed in sorted(content.sealed.items())},
                "digests": [[w, kind, digest.hex()] for (w, kind), digest in sorted(content.digests.items())],
            }
        case Endorsement():
            return {"signature": content.signature.hex()}
        case openings:
            return {"opened": [[o.about, o.kind, o.share.hex()] for o in openings]}


def _keys(worker: str, content: dict[str, Any]) -> PublicKeys:
    return PublicKeys(worker, **{name: bytes.fromhex(value) for name, value in content.items()})


def _offer(worker: str, content: dict[str, Any]) -> ShareOffer:
    return ShareOffer(
        worker,
        {name: bytes.fromhex(value) for name, value in content["sealed"].items()},
        {(name, Kind(kind)): bytes.fromhex(value) for name, kind, value in content["digests"]},
    )


def _openings(content: dict[str, Any]) -> tuple[Opening, ...]:
    return tuple(Opening(about, Kind(kind), bytes.fromhex(share)) for about, kind, share in content["opened"])
