"""Files that are either complete under their final name or not there."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from common.errors import StoreError
from common.runtime.fault_points import Point, reach, undoing_rename

_READ = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path, subject: str | None = None) -> None:
    """Give a completely written file its final name, durably: fsync, rename, fsync the folder.

    `subject` names the file's kind to fault points. After a failed fsync the temporary file is gone: the
    kernel may have dropped what it could not write, and would call a second fsync a success.
    """
    subject = subject or final.name
    try:
        with temporary.open("rb") as file:
            reach(Point.FILE_WRITTEN, subject, lambda: os.truncate(temporary, temporary.stat().st_size // 2))
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    reach(Point.FILE_SYNCED, subject)
    if not final.parent.is_dir():
        final.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(final.parent.parent)
    undo = undoing_rename(temporary, final)
    temporary.replace(final)
    reach(Point.FILE_RENAMED, subject, undo)
    sync_folder(final.parent)
    reach(Point.FOLDER_SYNCED, subject)


def write_atomically(
    path: Path, content: bytes | Callable[[BinaryIO], object], subject: str | None = None
) -> None:
    """Write `content`, or have it written to a file, so that `path` never holds a part of it.

    Raises StoreError when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
        publish(temporary, path, subject)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {disk_problem(error, path.parent)}") from error
    finally:
        # Where the folder is no folder, even a file that is missing cannot be removed.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def disk_problem(error: OSError, folder: Path) -> str:
    """What is wrong with the disk and what to do about it, for an error's message."""
    told = error.strerror or str(error)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return f"{told}; free space on the file system of {folder}, then start again"
        case errno.EROFS | errno.EACCES | errno.EPERM:
            return f"{told}; make {folder} writable for this user, then start again"
        case errno.EIO:
            return f"{told}; check the disk under {folder} before starting again"
    return told


@contextmanager
def locked(folder: Path, owner: str, instead: str = "choose another folder") -> Iterator[None]:
    """Hold `folder` against other processes; the lock goes when the process does, however it dies.

    Raises StoreError, naming the other process, when it is held, and saying what can be done `instead`.
    """
    path = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise StoreError(f"cannot lock {folder}: {disk_problem(error, folder)}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(100).strip() or "another process"
            raise StoreError(f"{folder} is in use by {holder}; stop that, or {instead}") from None
        except OSError as error:
            raise StoreError(f"cannot lock {folder}: {disk_problem(error, folder)}") from error
        # Who holds it is for people; a full disk must not stop a process that could free it.
        with suppress(OSError):
            file.truncate(0)
            file.write(f"{owner}, process {os.getpid()}")
            file.flush()
        yield


def holder(folder: Path) -> str | None:
    """Who holds `folder` by `locked`, such as "a coordinator, process 12"; None when nobody does."""
    try:
        with (folder / "lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except BlockingIOError:
        with suppress(OSError):
            return (folder / "lock").read_text(encoding="utf-8", errors="replace").strip() or "a process"
        return "a process"
    except OSError:
        return None


def digest_of(paths: Iterable[Path]) -> str:
    """SHA-256 over the contents of files, and below folders their names: a moved folder has the same.

    Raises OSError.
    """
    digest = hashlib.sha256()
    for path in paths:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(path).as_posix() if path.is_dir() else ""
            digest.update(f"{name}\0{sha256_of(file)}\n".encode())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The file's SHA-256 as lower-case hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()
