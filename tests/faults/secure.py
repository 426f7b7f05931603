"""A federation that sums masked updates, and what must hold at its end: the bits, and no secret left."""

import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from common.records import Phase
from common.trust.identity import Role
from tests.faults.federation import MORE_WORKERS, Federation
from tests.security.guarded import COORDINATOR, Certificates

THREE = MORE_WORKERS[:3]
# Where public keys are noted, which may be found: by round and try.
KEYS = "keys-by-try"

# As the others', without what masks have nothing to do with. Of three workers of which one may collude all
# must take every step, so that who comes first does not change which points are passed.
SECURE: dict[str, Any] = {
    "privacy.secure": True,
    "privacy.insecure_keys": True,
    "privacy.colluding": 1,
    "validation.every": 0,
    "alignment.steps": 0,
    "correction.steps": 0,
    "gradient_gap.batches": 0,
    "adapter.rank": 128,
    "rounds.workers": 3,
    "rounds.minimum": 3,
}


@dataclass
class SecureFederation(Federation):
    """Its processes note, beside the run, every secret and every plain update that they make."""

    workers: tuple[str, ...] = THREE
    extra: dict[str, list[str]] = field(default_factory=dict)
    """Further arguments, by process."""

    def __post_init__(self) -> None:
        self.settings = SECURE | self.settings
        super().__post_init__()
        self.noted.mkdir(exist_ok=True)
        for name in ("coordinator", *self.workers):
            self.habits.setdefault(name, partial(note_secrets, self.noted))

    @property
    def noted(self) -> Path:
        """Where they note them."""
        return self.folder.parent / f"{self.folder.name}-noted"

    def arguments(self, name: str) -> list[str]:
        return [*super().arguments(name), *self.extra.get(name, [])]

    def tries(self) -> int:
        """How many times the first round was tried."""
        with self.store() as store:
            return store.last_try(1)

    def summed(self) -> "Summed":
        """How the run ended. Nothing that was acknowledged may be missing, and no secret be left."""
        with self.store() as store:
            assert store.outcome() == Phase.FINISHED, self.logs()
            latest = store.latest_adapter()
            assert latest is not None
            rounds = range(1, latest[0] + 1)
            survivors = {n: frozenset(store.survivors(n) or ()) for n in rounds}
            kept = {(u.worker, n, u.sha256) for n in rounds for u in store.updates(n)}
            last = {n: store.last_try(n) for n in rounds}
            if set(last.values()) == {1}:
                assert self.receipts() <= kept, f"acknowledged and lost: {self.receipts() - kept}"
            for n in rounds:
                opened = [t for t in store.secure.tries(n) if "openers" in store.secure.decided(n, t)]
                assert opened == [last[n]], f"round {n} was opened in tries {opened}"
                decided = store.secure.decided(n, last[n])
                assert set(decided["openers"]) <= set(decided["survivors"]) <= set(decided["sharers"])
                assert set(decided["sharers"]) <= set(decided["roster"])
            files = {path.name for path in (self.run / "artifacts").glob("*/*")}
            assert files == {artifact.sha256 for artifact in store.artifacts.held()}
            left = {name for name in self.gone if store.artifacts.spooled(name)}
            assert left or not store.artifacts.spooled(), "the spool is not empty"
            sums = [store.secure.sum_of(n) for n in rounds]
            return Summed(
                latest[1].sha256,
                tuple((total.sha256, total.examples, total.loss) for total in sums if total is not None),
                tuple(survivors[n] for n in rounds),
                tuple((e.round, e.model, e.accuracy, e.loss) for e in store.evaluations()),
                tuple(last.values()),
            )

    def keys_by_try(self) -> dict[str, set[str]]:
        """All public keys and commitments that workers brought, by round and try."""
        found: dict[str, set[str]] = {}
        for line in _lines(self.noted / KEYS):
            at, _, key = line.partition(":")
            found.setdefault(at, set()).add(key)
        return found

    def left(self, *, without: tuple[str, ...] = ()) -> list[str]:
        """What is still to be found of secrets, of opened shares and of plain updates, and in which file.

        Not looked for in the folders of workers `without`, which were never told that the run is over.
        """
        searched = {"run": self.run} | {n: self.folder / n for n in self.workers if n not in without}
        notes = [path for path in self.noted.iterdir() if path.name != KEYS]
        wanted = [(path.name, line.split(":")) for path in notes for line in _lines(path)]
        assert {what for _, (what, _) in wanted} >= {"secret", "delta", "opened"}, "nothing was noted"
        found = []
        for folder in searched.values():
            for path in (p for p in folder.rglob("*") if p.is_file()):
                content = path.read_bytes()
                for by, (what, told) in wanted:
                    if bytes.fromhex(told) in content or told.encode() in content:
                        found.append(f"{what} of {by} in {path}")
        return found


@dataclass(frozen=True)
class Summed:
    """All that a run of sums decides. Masks differ from run to run, and what they hide must not."""

    adapter: str
    sums: tuple[tuple[str, int, float], ...]
    survivors: tuple[frozenset[str], ...]
    scores: tuple[tuple[int, str, float, float], ...]
    tries: tuple[int, ...]


def secured(
    certificates: Certificates, workers: Iterable[str]
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Settings, and the workers' further arguments, of a run with certificates, by which keys are signed."""
    files = certificates.server_files(certificates.issue(COORDINATOR.role, COORDINATOR.name))
    settings = {
        "privacy.insecure_keys": False,
        "tls.certificate": str(files.certificate),
        "tls.key": str(files.key),
        "tls.ca": str(files.authority),
        "tls.revoked": str(files.revoked),
    }
    folders = {name: str(certificates.issue(Role.WORKER, name)) for name in workers}
    return settings, {name: ["--tls", folder, "--require-secure"] for name, folder in folders.items()}


def note_secrets(folder: Path) -> None:
    """In a service's process: write down what must not be found later."""
    from common.secagg.keys import Secrets
    from common.secagg.records import Opening, PublicKeys
    from common.storage.tensors import TensorFile
    from coordinator.storage.secure import SecureTries
    from worker.outbox import Outbox

    generate, keep, say = Secrets.generate, Outbox.keep, SecureTries.say

    def note(what: str, by: str, content: bytes) -> None:
        with (folder / by).open("a") as file:
            file.write(f"{what}:{content.hex()}\n")

    def generated() -> Secrets:
        made = generate()
        for secret in (made.channel, made.mask, made.self_seed):
            note("secret", "workers", secret)
        return made

    def kept(outbox: Outbox, *arguments: Any) -> Any:
        header, path = keep(outbox, *arguments)
        for name, tensor in TensorFile(path).items():
            if name.startswith("delta.") and tensor.numel() >= 64 and bool(tensor.any()):
                note("delta", "workers", tensor.flatten()[-64:].numpy().tobytes())
        return header, path

    def said(tries: SecureTries, number: int, attempt: int, step: str, worker: str, content: Any) -> None:
        say(tries, number, attempt, step, worker, content)
        if isinstance(content, PublicKeys):
            with (folder / KEYS).open("a") as file:
                for key in (content.channel, content.mask, content.commitment):
                    file.write(f"{number}.{attempt}:{key.hex()}\n")
        for part in content if isinstance(content, tuple) else ():
            assert isinstance(part, Opening)
            note("opened", "coordinator", part.share)

    Secrets.generate = generated  # type: ignore[method-assign]
    Outbox.keep = kept  # type: ignore[assignment]
    SecureTries.say = said  # type: ignore[assignment]


def waiting_at(folder: Path, until: Path, *calls: str) -> None:
    """In a worker's process: it stands still before any of these calls, until the file is there.

    Secrets are noted as ever.
    """
    note_secrets(folder)
    import asyncio

    from worker.client import CoordinatorClient

    call = CoordinatorClient._call

    async def held(client: Any, called: str, *arguments: Any) -> Any:
        while called in calls and not until.exists():
            await asyncio.sleep(0.02)
        return await call(client, called, *arguments)

    CoordinatorClient._call = held  # type: ignore[method-assign]


def _lines(path: Path) -> list[str]:
    return path.read_text().split()


def frozen(federation: Federation, number: int = 1) -> dict[str, list[str]]:
    """What the coordinator has decided on in a round's last try, as its database says from outside."""
    path = federation.run / "run.sqlite"
    if not path.exists():
        return {}
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
        query = "SELECT which, workers FROM secure_sets WHERE round = ? ORDER BY try"
        try:
            found = db.execute(query, (number,)).fetchall()
        except sqlite3.OperationalError:
            return {}
    return {which: json.loads(workers) for which, workers in found}
