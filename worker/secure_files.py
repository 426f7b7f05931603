"""What a worker keeps of secure aggregation on its own disk: a try's secrets, and what it has done with them.

Nothing here ever leaves. Blocking; raises StoreError when the disk does not take it.
"""

import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

from common.errors import SecureRefused, StoreError
from common.records import UpdateHeader
from common.secagg.encoding import pack, unpack
from common.secagg.history import History
from common.secagg.keeping import Dealt, Held
from common.secagg.keys import Secrets
from common.secagg.records import Endorsement, PublicKeys, SecureRound, VectorSpec
from common.storage.files import sha256_of, sync_folder, write_atomically

T = TypeVar("T")

_HISTORY = "history"
_ROUND, _SECRETS, _KEYS, _ROSTER = "round", "secrets", "keys", "roster"
_DEALT, _HELD, _ENDORSEMENT = "dealt", "held", "endorsement"
_MASKED, _ABOUT = "masked.safetensors", "masked.json"


class SecureFiles:
    """A folder for one try's secrets, and for the history of all tries."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._try = folder, folder / "try"
        try:
            self._try.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
            self._try.chmod(0o700)
        except OSError as error:
            raise StoreError(f"cannot use {folder}: {error.strerror or error}") from error

    # --- across tries ---

    def history(self) -> History | None:
        """What this worker has done in the last try that it took part in."""
        return self._read(self._folder / _HISTORY, History.from_bytes)

    def remember(self, history: History) -> None:
        """Before the deed."""
        write_atomically(self._folder / _HISTORY, history.to_bytes(), "secure-history")

    def forget_history(self) -> None:
        """At the owner's word only: after it a sum could be opened twice."""
        self.clear()
        (self._folder / _HISTORY).unlink(missing_ok=True)

    # --- one try ---

    def clear(self) -> None:
        """The secrets of the last try go, for good; they first: without them the rest opens nothing."""
        try:
            (self._try / _SECRETS).unlink(missing_ok=True)
            sync_folder(self._try)
            shutil.rmtree(self._try)
            self._try.mkdir(mode=0o700)
            sync_folder(self._folder)
        except OSError as error:
            raise StoreError(f"cannot delete {self._try}: {error.strerror or error}") from error

    def keep_keys(self, within: SecureRound, secrets: Secrets, keys: PublicKeys) -> None:
        """Before they are offered; the try's secrets last, for with them it is there."""
        self._write(_ROUND, _round_bytes(within))
        self._write(_KEYS, keys.to_bytes())
        self._write(_SECRETS, secrets.to_bytes())

    def round(self) -> SecureRound | None:
        """The try that these secrets are of."""
        return self._read(self._try / _ROUND, _round_from)

    def secrets(self) -> Secrets | None:
        return self._read(self._try / _SECRETS, Secrets.from_bytes)

    def keys(self) -> PublicKeys | None:
        return self._read(self._try / _KEYS, PublicKeys.from_bytes)

    def keep_roster(self, roster: Iterable[PublicKeys], dealt: Dealt) -> None:
        """Before shares are offered."""
        self._write(_ROSTER, pack(*(keys.to_bytes() for keys in roster)))
        self._write(_DEALT, dealt.to_bytes())

    def roster(self) -> list[PublicKeys]:
        return self._read(self._try / _ROSTER, lambda d: [PublicKeys.from_bytes(p) for p in unpack(d)]) or []

    def dealt(self) -> Dealt | None:
        return self._read(self._try / _DEALT, Dealt.from_bytes)

    def keep_held(self, held: Held) -> None:
        self._write(_HELD, held.to_bytes())

    def held(self) -> Held | None:
        return self._read(self._try / _HELD, Held.from_bytes)

    def keep_endorsement(self, endorsement: Endorsement) -> None:
        """Before it is given: each signature is another."""
        self._write(_ENDORSEMENT, pack(endorsement.worker.encode(), endorsement.signature))

    def endorsement(self) -> Endorsement | None:
        def parse(data: bytes) -> Endorsement:
            worker, signature = unpack(data)
            return Endorsement(worker.decode(), signature)

        return self._read(self._try / _ENDORSEMENT, parse)

    # --- the masked update ---

    def keep_masked(self, header: UpdateHeader, write: Callable[[Path], None]) -> tuple[UpdateHeader, Path]:
        """The update as it goes out, before its first byte does; once in a try, whatever happens."""
        path = self._try / _MASKED
        write(path)
        header = replace(header, size=path.stat().st_size, sha256=sha256_of(path))
        about = asdict(header) | {"context": header.context.hex()}
        self._write(_ABOUT, json.dumps(about).encode())
        return header, path

    def masked(self) -> tuple[UpdateHeader, Path] | None:
        """None before there is one. Raises SecureRefused when it is damaged: it is never made anew."""
        path = self._try / _MASKED
        told = self._read(self._try / _ABOUT, lambda data: dict(json.loads(data)))
        if told is None:
            return None
        header = UpdateHeader(**told | {"context": bytes.fromhex(told["context"])})
        try:
            whole = sha256_of(path) == header.sha256
        except OSError:
            whole = False
        if not whole:
            raise SecureRefused(
                f"the masked update in {path.parent} is damaged; masked anew it would show what it hides, "
                f"so this worker sits out try {header.attempt} at round {header.round}"
            )
        return header, path

    # --- parts ---

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self._try / name, content, f"secure-{name}")
        with suppress(OSError):
            (self._try / name).chmod(0o600)

    def _read(self, path: Path, parse: Callable[[bytes], T]) -> T | None:
        try:
            return parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise SecureRefused(f"{path} is damaged: this worker sits out the try") from error


def _round_bytes(within: SecureRound) -> bytes:
    told = asdict(within)
    for name in ("run_digest", "task_digest"):
        told[name] = told[name].hex()
    return json.dumps(told).encode()


def _round_from(data: bytes) -> SecureRound:
    told = json.loads(data)
    for name in ("run_digest", "task_digest"):
        told[name] = bytes.fromhex(told[name])
    for name in ("drawn", "electorate"):
        told[name] = tuple(told[name])
    told["vectors"] = tuple(VectorSpec(v["name"], tuple(v["shape"]), v["bits"]) for v in told["vectors"])
    return SecureRound(**told)
