"""The runs that this worker took part in or declined, on its own disk, for the owner of the data."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from common.errors import StoreError
from common.storage.files import write_atomically

HISTORY_FILE = "runs.jsonl"
# The oldest beyond these are forgotten.
KEPT = 1000
UNDER_WAY = "under way"


@dataclass(frozen=True)
class PastRun:
    """A run: when (seconds since 1970), which, of whom; for how many rounds this worker delivered an update,
    bytes of messages, epsilon of its own where it promised differential privacy; how it ended here."""

    run: str
    coordinator: str
    began: float = field(default_factory=time.time)
    label: str = ""
    ended: float = 0.0
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    epsilon: float | None = None
    outcome: str = UNDER_WAY


class History:
    """The file in a worker's folder. Blocking; raises StoreError when it cannot be read or written."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HISTORY_FILE

    def all(self) -> Sequence[PastRun]:
        """Oldest first."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self._path} cannot be read: {error}") from error
        return [self._entry(number, line) for number, line in enumerate(lines, 1)]

    def _entry(self, number: int, line: str) -> PastRun:
        try:
            return PastRun(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"{self._path}, line {number} is not what was written: {error}; move the file away"
            ) from None

    def put(self, entry: PastRun) -> None:
        """Note a run, in place of what was noted of it when it began."""
        entries = [e for e in self.all() if (e.run, e.began) != (entry.run, entry.began)]
        lines = [json.dumps(asdict(e), sort_keys=True) for e in (*entries, entry)[-KEPT:]]
        write_atomically(self._path, ("\n".join(lines) + "\n").encode(), "history")

    def declined(self, entry: PastRun) -> None:
        """Note a run that was declined; again for the same reason is no news."""
        same = [e for e in self.all() if (e.run, e.outcome) == (entry.run, entry.outcome)]
        if not same:
            self.put(entry)
