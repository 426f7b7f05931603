"""What this worker has sent, byte by byte: a log on its own disk, for the owner of the data.

One line of JSON per message, written before the message goes out. Each line holds the digest of the line
before it, so that a line that was changed or taken out shows. A full file is put aside, and the chain goes on
in the next, whose first line says how much was sent before. Of many, the oldest are deleted; that line stays.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from common.errors import StoreError
from common.storage.files import disk_problem

SENT_FILE = "sent.jsonl"
# Some 60,000 messages each: three days of waiting, or 30 GB of updates.
FILE_BYTES = 16 << 20
# That were put aside: with the present one 272 MB at most.
KEPT_FILES = 16

# In the first line of a file that follows another.
_EARLIER = "earlier"
_ASIDE = re.compile(r"sent\.\d{6,}\.jsonl")


@dataclass(frozen=True)
class Sent:
    """A message: which call, what kind of content, bytes on the connection before TLS, SHA-256 of the
    message; of an update's header also the digest of the update's file, else empty."""

    time: float
    call: str
    kind: str
    bytes: int
    sha256: str
    update: str
    before: str
    """Digest of the line before; empty for the first."""


class SentLog:
    """Appends to the log in a worker's folder. Raises StoreError when it cannot be written: then nothing
    is sent either."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, folder / SENT_FILE
        self._messages = self._bytes = self._size = 0
        self._before = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._opened()
            self._resume()
        except OSError as error:
            raise self._problem(error) from error

    def _opened(self) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)

    def _resume(self) -> None:
        """Go on after the last line. One that broke off stands for a message that was not sent."""
        with self._path.open("rb") as file:
            for raw in file:
                if not raw.endswith(b"\n"):
                    break
                self._size += len(raw)
                self._before = hashlib.sha256(raw[:-1]).hexdigest()
                self._add(raw)
        os.ftruncate(self._file, self._size)
        if not self._size and (earlier := _put_aside(self._folder)):
            # Its process died between two files.
            self._count(earlier[-1])
            self._begin()

    def _count(self, path: Path) -> None:
        with path.open("rb") as file:
            for raw in file:
                self._before = hashlib.sha256(raw.removesuffix(b"\n")).hexdigest()
                self._add(raw)

    def _add(self, raw: bytes) -> None:
        """What is not what was written is for the audit to find."""
        try:
            told = json.loads(raw)
            if _EARLIER in told:
                self._messages, self._bytes = told[_EARLIER]["messages"], told[_EARLIER]["bytes"]
            else:
                self._messages, self._bytes = self._messages + 1, self._bytes + told["bytes"]
        except (ValueError, TypeError, KeyError):
            pass

    def _begin(self) -> None:
        """The first line of a file that follows another."""
        earlier = {"messages": self._messages, "bytes": self._bytes}
        self._write({_EARLIER: earlier, "time": time.time(), "before": self._before})

    def _rotate(self) -> None:
        """Put the full file aside, and delete the oldest of too many."""
        aside = _put_aside(self._folder)
        number = int(aside[-1].name.split(".")[1]) + 1 if aside else 1
        try:
            self._path.rename(self._folder / f"sent.{number:06}.jsonl")
            os.close(self._file)
            self._file, self._size = self._opened(), 0
            self._begin()
            for path in aside[: len(aside) + 1 - KEPT_FILES]:
                path.unlink()
        except OSError as error:
            raise self._problem(error) from error

    def record(self, call: str, kind: str, message: bytes, size: int, update: str = "") -> None:
        """Note a message of `size` bytes, framing included, that is about to go out."""
        if self._size >= FILE_BYTES:
            self._rotate()
        digest = hashlib.sha256(message).hexdigest()
        self._write(asdict(Sent(time.time(), call, kind, size, digest, update, self._before)))
        self._messages, self._bytes = self._messages + 1, self._bytes + size

    def _write(self, told: dict[str, Any]) -> None:
        line = json.dumps(told).encode()
        try:
            written = os.write(self._file, line + b"\n")
        except OSError as error:
            raise self._problem(error) from error
        if written <= len(line):
            raise StoreError(f"cannot write {self._path}: only a part of a line was taken")
        self._size += written
        self._before = hashlib.sha256(line).hexdigest()

    def _problem(self, error: OSError) -> StoreError:
        return StoreError(f"cannot write {self._path}: {disk_problem(error, self._path.parent)}")

    def close(self) -> None:
        """Take no more."""
        os.close(self._file)


@dataclass(frozen=True)
class Total:
    """Messages of one call and kind."""

    call: str
    kind: str
    messages: int
    bytes: int


@dataclass(frozen=True)
class DataOwnerAudit:
    """All that a worker sent; `updates` are the digests of the updates' files, oldest first."""

    totals: tuple[Total, ...]
    updates: tuple[str, ...]
    first: float
    last: float
    earlier_messages: int = 0
    earlier_bytes: int = 0
    """Sent before, in files that are deleted."""

    @property
    def bytes(self) -> int:
        """In all."""
        return sum(total.bytes for total in self.totals)


def _put_aside(folder: Path) -> list[Path]:
    """Full files, oldest first."""
    return sorted(path for path in folder.iterdir() if _ASIDE.fullmatch(path.name))


@dataclass
class _Reading:
    """How far the chain has been followed."""

    before: str | None = None
    """Of the line that comes next; None at the very beginning, where an earlier file may be gone."""
    messages: int = 0
    bytes: int = 0
    earlier: tuple[int, int] = (0, 0)


def read_sent(folder: Path) -> Iterator[Sent]:
    """The log's lines, checked. Raises StoreError at the first that is not what was written."""
    return _lines(folder, _Reading())


def _lines(folder: Path, reading: _Reading) -> Iterator[Sent]:
    path = folder
    try:
        for path in (*_put_aside(folder), folder / SENT_FILE):
            with path.open("rb") as file:
                for number, raw in enumerate(file, 1):
                    line = raw.removesuffix(b"\n")
                    sent = _checked(line, f"{path}, line {number}", number == 1, reading)
                    reading.before = hashlib.sha256(line).hexdigest()
                    if sent is not None:
                        reading.messages, reading.bytes = reading.messages + 1, reading.bytes + sent.bytes
                        yield sent
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from error


def _checked(line: bytes, where: str, first: bool, reading: _Reading) -> Sent | None:
    """A message, or None for a line that says what was sent before its file. Raises StoreError."""
    try:
        told = json.loads(line)
        if earlier := told.get(_EARLIER):
            if not first:
                raise ValueError("it belongs at the beginning of a file")
            sums = int(earlier["messages"]), int(earlier["bytes"])
            sent, before = None, str(told["before"])
        else:
            sent = Sent(**told)
            before = sent.before
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{where} is not what was written: {error}") from None
    if reading.before is None:
        if sent is None:
            reading.messages, reading.bytes = reading.earlier = sums
        elif before:
            raise StoreError(f"{where}: a line before it was changed or taken out")
    elif before != reading.before or (sent is None and sums != (reading.messages, reading.bytes)):
        raise StoreError(f"{where}: a line before it was changed or taken out")
    return sent


def audit_worker(folder: Path) -> DataOwnerAudit:
    """Add up what a worker's log says. Raises StoreError."""
    sums: dict[tuple[str, str], list[int]] = {}
    updates: dict[str, None] = {}
    first = last = 0.0
    reading = _Reading()
    for sent in _lines(folder, reading):
        count = sums.setdefault((sent.call, sent.kind), [0, 0])
        count[0] += 1
        count[1] += sent.bytes
        if sent.update:
            updates[sent.update] = None
        first, last = first or sent.time, sent.time
    totals = tuple(Total(*key, *sums[key]) for key in sorted(sums))
    return DataOwnerAudit(totals, tuple(updates), first, last, *reading.earlier)
