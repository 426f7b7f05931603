"""What this worker's data have paid in privacy, on its own disk, for the owner of the data.

One line of JSON per training, on disk before the training begins, or, where noise hides the whole worker,
before the update is made ready to leave: whatever dies when, nothing has left that is not written down. A
training by example that came to nothing is paid for, too. Each line holds the digest of the line
before it, so that a line that was changed or taken out shows.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import StoreError
from common.privacy.accounting import PrivateSteps
from common.runtime.fault_points import Point, reach
from common.storage.files import disk_problem, sync_folder

LEDGER_FILE = "privacy.jsonl"
_SUBJECT = "ledger"


@dataclass(frozen=True)
class Charge:
    """A training that was about to begin: in which run and round, on which data, by digest; its steps, their
    rate and noise, the clip; and epsilon at `delta` up to and with it, of its run, and of all runs on the
    same data."""

    run: str
    data: str
    unit: str
    round: int
    steps: int
    rate: float
    noise: float
    clip: float
    delta: float
    epsilon_of_run: float
    epsilon: float
    draw: str = ""
    """Digest of the key of the noise, where a worker is hidden as a whole: the same update with the same
    noise is paid for once."""
    time: float = field(default_factory=time.time)
    before: str = ""
    """Digest of the line before; empty for the first."""

    @property
    def paid(self) -> PrivateSteps:
        """What the accountant goes by."""
        return PrivateSteps(self.steps, self.rate, self.noise)


class Ledger:
    """The ledger in a worker's folder. Raises StoreError when it cannot be read or written, or is not what
    was written: then nothing is trained."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / LEDGER_FILE
        self.charges, self._before, self._size = _read(self._path)

    def on(self, data: str) -> list[Charge]:
        """What was paid of these data, oldest first."""
        return [charge for charge in self.charges if charge.data == data]

    def write(self, charge: Charge) -> None:
        """Have it on disk, or raise StoreError."""
        line = json.dumps(asdict(charge) | {"before": self._before}, sort_keys=True).encode()
        new = not self._path.exists()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                # A line that broke off stands for a training that did not begin.
                os.ftruncate(file, self._size)
                written = os.write(file, line + b"\n")
                if written <= len(line):
                    raise StoreError(f"cannot write {self._path}: only a part of a line was taken")
                reach(
                    Point.FILE_WRITTEN, _SUBJECT, lambda: os.truncate(self._path, self._size + written // 2)
                )
                os.fsync(file)
            finally:
                os.close(file)
            if new:
                sync_folder(self._path.parent)
            reach(Point.FILE_SYNCED, _SUBJECT)
        except OSError as error:
            raise StoreError(
                f"cannot write {self._path}: {disk_problem(error, self._path.parent)}"
            ) from error
        self._before = hashlib.sha256(line).hexdigest()
        self._size += written
        self.charges.append(charge)


def _read(path: Path) -> tuple[list[Charge], str, int]:
    """The charges, the last line's digest, and how many bytes are whole lines."""
    charges: list[Charge] = []
    before, size = "", 0
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return charges, before, size
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error
    for number, raw in enumerate(content.splitlines(keepends=True), 1):
        if not raw.endswith(b"\n"):
            break
        try:
            charge = Charge(**json.loads(raw))
            _require_numbers(charge)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{path}, line {number} is not what was written: {error}") from None
        if charge.before != before:
            raise StoreError(f"{path}, line {number}: a line before it was changed or taken out")
        charges.append(charge)
        before = hashlib.sha256(raw[:-1]).hexdigest()
        size += len(raw)
    return charges, before, size


def _require_numbers(charge: Charge) -> None:
    if not (charge.steps >= 1 and 0 < charge.rate <= 1 and charge.noise > 0 and 0 < charge.delta < 1):
        raise ValueError("its numbers cannot be")


def audit_ledger(folder: Path) -> Sequence[Charge]:
    """All that was paid, oldest first; none where nothing was trained under privacy. Raises StoreError."""
    return Ledger(folder).charges
