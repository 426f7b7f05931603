"""Which runs a server holds: a record beside each run's own files, whole or not there.

A run's folder is DIR/ID, with its configuration as submitted (`run.toml`) and its record (`entry.json`),
which is what makes it a run. Both are durable when a submission is answered.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from common.errors import StoreError, UnknownRun
from common.hosted_runs import RunEntry, RunFacts, RunState, Submission
from common.storage.files import write_atomically

ENTRY_FILE = "entry.json"
CONFIG_FILE = "run.toml"
LOG_FILE = "log.jsonl"
# Names the run that computes, so that it is known whose work a process did not survive.
COMPUTING_FILE = "computing"


@dataclass(frozen=True)
class KeptRun:
    """A run's record. `number` counts submissions: age. `settings` were given on top of its configuration."""

    entry: RunEntry
    number: int
    request: str
    settings: tuple[str, ...]
    deaths: int = 0
    """How often in a row the process died while this run computed."""
    step: int = 0
    """The run's newest event by then: with a newer one that is a step forward, the count begins anew."""

    @property
    def waits(self) -> tuple[int, int]:
        """Sorts waiting runs: those that begin first come first."""
        return (-self.entry.priority, self.number)


class Catalogue:
    """All runs of a folder. Lives on the event loop. Raises StoreError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._runs: dict[str, KeptRun] = {}
        self._requests: dict[str, str] = {}
        for path in sorted(directory.glob("*/")):
            if (kept := _read(path)) is not None:
                self._remember(kept)

    def __iter__(self) -> Iterator[KeptRun]:
        """Oldest first."""
        return iter(sorted(self._runs.values(), key=lambda kept: kept.number))

    def get(self, run: str) -> KeptRun:
        """The run of this id. Raises UnknownRun."""
        if run not in self._runs:
            raise UnknownRun(
                f"this coordinator does not hold run {run[:64]!r}; `fedpft runs` lists those it does"
            )
        return self._runs[run]

    def folder(self, run: str) -> Path:
        """Where everything of it lies."""
        return self.directory / run

    def configuration(self, run: str) -> str:
        """As it was submitted. Raises StoreError."""
        try:
            return (self.folder(run) / CONFIG_FILE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.folder(run) / CONFIG_FILE} cannot be read: {error}") from None

    def of_request(self, request: str) -> KeptRun | None:
        """What was submitted under this request id."""
        return self._runs[self._requests[request]] if request in self._requests else None

    def new_id(self) -> str:
        """For a run to come."""
        return uuid4().hex[:12]

    def add(self, run: str, submission: Submission, submitter: str) -> KeptRun:
        """A new run, durable when this returns."""
        number = max((kept.number for kept in self._runs.values()), default=0) + 1
        entry = RunEntry(run, submission.label, submission.priority, submitter, time.time())
        kept = KeptRun(entry, number, submission.request, submission.settings)
        write_atomically(self.folder(run) / CONFIG_FILE, submission.configuration.encode())
        self._write(kept)
        return kept

    def change(self, run: str, **changes: Any) -> KeptRun:
        """Another state, reason or time, durable when this returns; what is the same is not written."""
        kept = self.get(run)
        return self._changed(replace(kept, entry=replace(kept.entry, **changes)))

    def requeue(self, run: str) -> KeptRun:
        """An admin wants the run to go on: what it came to is forgotten."""
        kept = self.get(run)
        entry = replace(kept.entry, state=RunState.QUEUED, reason="", ended=0.0)
        return self._changed(replace(kept, entry=entry, deaths=0))

    def count_death(self, run: str, step: int) -> KeptRun:
        """The process died while this run computed; its newest step forward by now was `step`."""
        kept = self.get(run)
        again = kept.deaths + 1 if kept.deaths and kept.step == step else 1
        return self._changed(replace(kept, deaths=again, step=step))

    def _changed(self, kept: KeptRun) -> KeptRun:
        if kept != self._runs[kept.entry.run]:
            self._write(kept)
        return kept

    def _write(self, kept: KeptRun) -> None:
        content = json.dumps(asdict(kept), indent=1).encode()
        write_atomically(self.folder(kept.entry.run) / ENTRY_FILE, content)
        self._remember(kept)

    def _remember(self, kept: KeptRun) -> None:
        self._runs[kept.entry.run] = kept
        self._requests[kept.request] = kept.entry.run


def _read(folder: Path) -> KeptRun | None:
    """The record in a folder; None for a folder of something else. Raises StoreError."""
    path = folder / ENTRY_FILE
    try:
        found = json.loads(path.read_bytes())
        entry = found.pop("entry")
        entry |= {"state": RunState(entry["state"]), "facts": RunFacts(**entry["facts"])}
        kept = KeptRun(RunEntry(**entry), **found | {"settings": tuple(found["settings"])})
    except FileNotFoundError:
        _forget_unfinished(folder)
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path} is no record of a run: {error}; move {folder} away to start without it"
        ) from None
    if kept.entry.run != folder.name:
        raise StoreError(f"{path} is of run {kept.entry.run}; a run's folder has to have its id as name")
    return kept


def _forget_unfinished(folder: Path) -> None:
    """A submission that was never answered left its configuration alone."""
    names = {path.name for path in folder.iterdir()}
    ours = (CONFIG_FILE, f".{CONFIG_FILE}.", f".{ENTRY_FILE}.")
    if len(folder.name) == 12 and all(name.startswith(ours) for name in names):
        shutil.rmtree(folder, ignore_errors=True)


def bytes_in(folder: Path) -> int:
    """What all files below a folder take. Files may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += Path(place, name).stat().st_size
    return total
