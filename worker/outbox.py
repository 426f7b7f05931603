"""The last finished update, on disk until the next: a restarted worker delivers it without training again."""

import hashlib
import json
import secrets
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path

from common.errors import BadDigest, StoreError
from common.privacy.noise import KEY_BYTES
from common.records import RunSpec, TrainTask, UpdateHeader
from common.storage.files import sha256_of, write_atomically
from common.transport.chunks import verify

UPDATE_FILE, ABOUT_FILE = "update.safetensors", "update.json"


class Outbox:
    """A folder for one update and what it answers to. Blocking."""

    def __init__(self, folder: Path) -> None:
        self._update, self._about = folder / UPDATE_FILE, folder / ABOUT_FILE
        # What a process that died was writing.
        for part in folder.glob(f".{UPDATE_FILE}.*.part"):
            part.unlink(missing_ok=True)

    def keep(self, question: str, header: UpdateHeader, content: bytes) -> tuple[UpdateHeader, Path]:
        """Keep an update durably, in place of the last; returns its header with size and digest.

        With it goes a key that nobody else can know, for noise: what is made of the update is made with the
        same noise, however often. Raises StoreError when the disk does not take it.
        """
        write_atomically(self._update, content, "update")
        header = replace(header, size=len(content), sha256=sha256_of(self._update))
        # Last: what is described here is there. Until it is written, it describes another file.
        kept = {"header": asdict(header) | {"context": ""}, "noise": secrets.token_hex(KEY_BYTES)}
        about = {"question": question} | kept
        write_atomically(self._about, json.dumps(about).encode(), "update-header")
        return header, self._update

    def noise_key(self) -> bytes:
        """Of the update that is kept; goes with it. Raises StoreError."""
        try:
            return bytes.fromhex(json.loads(self._about.read_bytes())["noise"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{self._about} holds no key for noise: {error}") from error

    def drop(self) -> None:
        """Keep nothing. Raises StoreError."""
        try:
            # The description first: without it the rest is nothing.
            self._about.unlink(missing_ok=True)
            self._update.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot delete {self._update}: {error.strerror or error}") from error

    def find(self, question: str) -> tuple[UpdateHeader, Path] | None:
        """The update that answers this question, if it is the last one and whole."""
        try:
            about = json.loads(self._about.read_bytes())
            if about["question"] != question:
                return None
            header = UpdateHeader(**about["header"] | {"context": b""})
            if not (isfinite(header.loss) and isfinite(header.seconds)):
                # An earlier version kept it; no coordinator takes it.
                return None
            verify(self._update, header.sha256)
        except (OSError, ValueError, KeyError, TypeError, BadDigest):
            return None
        return header, self._update


def question_of(run: RunSpec, worker: str, data: str, task: TrainTask) -> str:
    """Digest of all that an update depends on: another try at the same round asks the same.

    `data` is the digest of the private data.
    """
    timeless = replace(task, seconds_left=0.0, attempt=0, traceparent="", secure=None)
    told = {"run": asdict(run), "worker": worker, "data": data, "task": asdict(timeless)}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
