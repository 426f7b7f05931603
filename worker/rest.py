"""When this worker does not train: in quiet hours, and once its hours of the day are spent."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path

from common.errors import CannotTrain, StoreError
from common.storage.files import write_atomically
from worker.policy import Policy
from worker.quiet import DAYS, Window, quiet_until

HOURS_FILE = "hours.json"
# What is trained between two looks at the file is lost where the process is killed.
_WRITTEN_EVERY_SECONDS = 30.0


class TrainingHours:
    """How long was trained today, in the worker's folder. Blocking; raises StoreError."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / HOURS_FILE

    def today(self, day: date) -> float:
        """Seconds."""
        try:
            found = json.loads(self._path.read_bytes())
            return float(found["seconds"]) if found["day"] == day.isoformat() else 0.0
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{self._path} cannot be read, by which limits.hours_a_day goes: {error}; delete it to count "
                "today anew"
            ) from error

    def add(self, day: date, seconds: float) -> None:
        """That much was trained just now."""
        told = {"day": day.isoformat(), "seconds": self.today(day) + seconds}
        write_atomically(self._path, json.dumps(told).encode(), "hours")


class Rest:
    """What a policy says of hours; nothing, where it says nothing."""

    def __init__(
        self,
        windows: Sequence[Window] = (),
        hours_a_day: float | None = None,
        folder: Path = Path(),
        now: Callable[[], datetime] = datetime.now,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._windows, self._most = windows, hours_a_day
        self._hours, self._now, self._clock = TrainingHours(folder), now, clock
        self._since = 0.0

    @classmethod
    def of(cls, policy: Policy, folder: Path) -> "Rest":
        """What this policy says, with the hours of this worker's folder."""
        return cls(policy.hours.windows, policy.limits.hours_a_day, folder)

    def why(self) -> str:
        """Why nothing is trained now, and until when; empty where it may be. Raises StoreError."""
        now = self._now()
        if until := quiet_until(self._windows, now):
            return f"quiet hours until {DAYS[until.weekday()]} {until:%H:%M}"
        if self._most is not None and self._hours.today(now.date()) >= 3600 * self._most:
            return f"the {self._most:g} hours of training that a day has are spent; it goes on at midnight"
        return ""

    def require(self) -> None:
        """Raises CannotTrain where nothing is to be trained now, StoreError."""
        if why := self.why():
            raise CannotTrain(why)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Around what counts. Raises StoreError."""
        self._since = self._clock()
        try:
            yield
        finally:
            self._count(0.0)

    def look(self) -> None:
        """From within. Raises CannotTrain once it is to end, StoreError."""
        if self._windows and quiet_until(self._windows, self._now()):
            self.require()
        if self._count(_WRITTEN_EVERY_SECONDS):
            self.require()

    def _count(self, least: float) -> bool:
        """Write down what was trained since the last time, if that is as much; returns whether it did."""
        if self._most is None or (spent := self._clock() - self._since) < least:
            return False
        self._hours.add(self._now().date(), spent)
        self._since = self._clock()
        return True
