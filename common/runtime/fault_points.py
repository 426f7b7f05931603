"""Named points of the program at which a test can make it die or fail; inert in production.

The environment variable FEDPFT_FAULT arms one: POINT/SUBJECT#N=ACTION, for instance
`file-synced/adapter#2=kill`: the second time that an adapter's file is synced. FEDPFT_FAULT_TRACE names
a file to which every point is written as it is reached. Without them a point costs one comparison.
"""

import errno
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

VARIABLE = "FEDPFT_FAULT"
TRACE_VARIABLE = "FEDPFT_FAULT_TRACE"


class Point(StrEnum):
    """Where. The subject beside it says of what: a file, a transaction, a call, a step."""

    FILE_WRITTEN = "file-written"
    """Its content is handed to the operating system, not yet synced."""
    FILE_SYNCED = "file-synced"
    """Content durable, under the temporary name."""
    FILE_RENAMED = "file-renamed"
    """Under its final name, the folder not yet synced."""
    FOLDER_SYNCED = "folder-synced"
    """Durable under its final name."""
    FILE_REMOVED = "file-removed"
    """Deleted, because nothing needs it any more."""
    TRANSACTION_MADE = "transaction-made"
    """Its statements are executed, not committed."""
    TRANSACTION_COMMITTED = "transaction-committed"
    CALL_RECEIVED = "call-received"
    """A handler begins."""
    REPLY_READY = "reply-ready"
    """A handler has done its work; the answer is not sent."""
    CALL_ENDED = "call-ended"
    """The answer is sent."""
    CALL_MADE = "call-made"
    """A caller is about to call."""
    REPLY_RECEIVED = "reply-received"
    """A caller has the answer."""
    CHUNK_SENT = "chunk-sent"
    """A piece of a file is about to go out."""
    CHUNK_RECEIVED = "chunk-received"
    """A piece of a file has come, and is handed to the operating system."""
    STEP = "step"
    """Between two steps of a loop."""


class Action(StrEnum):
    """What happens there."""

    KILL = "kill"
    """The process dies by SIGKILL."""
    POWER = "power"
    """The same, and what was not synced is lost, as when the machine goes down."""
    ENOSPC = "enospc"
    """The operating system says that the disk is full."""
    EIO = "eio"
    """The operating system reports an error of the device."""
    EROFS = "erofs"
    """The operating system says that the file system is read-only."""


@dataclass
class _Armed:
    name: str = ""
    occurrence: int = 0
    action: Action = Action.KILL
    trace: Path | None = None


_armed: _Armed | None = None


def arm(environment: Mapping[str, str]) -> None:
    """Read the environment. Raises ValueError for a fault that is not of the form above."""
    global _armed
    fault, trace = environment.get(VARIABLE), environment.get(TRACE_VARIABLE)
    if not (fault or trace):
        _armed = None
        return
    _armed = _Armed(trace=Path(trace) if trace else None)
    if fault:
        where, _, action = fault.partition("=")
        name, _, occurrence = where.partition("#")
        Point(name.partition("/")[0])
        _armed.name, _armed.occurrence = name, int(occurrence or 1)
        _armed.action = Action(action or "kill")


def armed() -> bool:
    """Whether points do anything in this process."""
    return _armed is not None


def reach(point: Point, subject: str, lose: Callable[[], object] | None = None) -> None:
    """Say that the program is here; `lose` does to the disk what a power loss at this moment would.

    Raises OSError when the armed action is one of the operating system's errors.
    """
    if _armed is None:
        return
    name = f"{point}/{subject}"
    if _armed.trace is not None:
        # One write below the pipe's atomic size: threads and processes do not mix their lines.
        with _armed.trace.open("ab", buffering=0) as file:
            file.write(f"{name}\n".encode())
    if name != _armed.name:
        return
    _armed.occurrence -= 1
    if _armed.occurrence == 0:
        _act(_armed.action, name, lose)


def undoing_rename(temporary: Path, final: Path) -> Callable[[], object] | None:
    """What a power loss after the rename that is about to come would do; None unless one is armed."""
    if _armed is None or _armed.action is not Action.POWER:
        return None
    before = final.read_bytes() if final.exists() else None

    def undo() -> None:
        final.rename(temporary)
        if before is not None:
            final.write_bytes(before)

    return undo


def _act(action: Action, name: str, lose: Callable[[], object] | None) -> None:
    match action:
        case Action.POWER:
            if lose is not None:
                lose()
            _die()
        case Action.KILL:
            _die()
        case _:
            number = getattr(errno, action.upper())
            raise OSError(number, os.strerror(number), name)


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")
