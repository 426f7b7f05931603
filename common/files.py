"""Files that are either complete under their final name or not there."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from common.errors import StoreError

_READ = 1 << 20


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temporary: Path, final: Path) -> None:
    """Give a completely written file its final name, durably: fsync, rename, fsync the folder."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary.replace(final)
    sync_folder(final.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` so that `path` never holds a part of it.

    Raises StoreError when the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        publish(temporary, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        # Where the folder is no folder, even a file that is missing cannot be removed.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 as lower-case hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()
