"""Waiting for processes: as long as they get on, however busy the machine is."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PATIENCE = 120.0
"""Seconds without progress after which a test gives up; a start from cold on a busy core takes 30."""


def until(
    what: str,
    progress: Callable[[], object],
    told: Callable[[], str] = lambda: "",
    patience: float = PATIENCE,
    pause: float = 0.02,
) -> Iterator[None]:
    """Yield again and again, for the caller to look whether `what` has come.

    An AssertionError, with what `told` says, once `progress` has given the same for `patience` seconds.
    """
    last, since = progress(), time.monotonic()
    while time.monotonic() - since < patience:
        yield
        time.sleep(pause)
        if (now := progress()) != last:
            last, since = now, time.monotonic()
    raise AssertionError(f"no progress for {patience} s, waiting for: {what}\n{told()}")


def within(seconds: float, what: str) -> Iterator[None]:
    """Yield again and again, for the caller to look whether `what` has come; here the time is the claim.

    An AssertionError when it is over.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {what}")


def sizes(files: Iterable[Path]) -> tuple[int, ...]:
    """Bytes in each file, 0 for one that is not there: they grow as long as something is written."""
    return tuple(map(_size, files))


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0
