"""What a file is, before anything reads it: there, whole, and what its name says; text as UTF-8."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from common.errors import DataError

# What is often found under the name of a table or an image, by its first bytes, and what to do.
_FOREIGN = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file itself; run: git lfs pull"),
    (b"/annex/objects/", "is a pointer of git-annex, not the file itself; run: git annex get"),
    (b"\x1f\x8b", "is gzip'ed; unpack it: gunzip"),
    (b"BZh", "is packed by bzip2; unpack it: bunzip2"),
    (b"\xfd7zXZ\0", "is packed by xz; unpack it: unxz"),
    (b"\x28\xb5\x2f\xfd", "is packed by zstd; unpack it: unzstd"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7-Zip archive; unpack it"),
    (b"PK\x03\x04", "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV in UTF-8"),
    (b"PK\x05\x06", "is an empty zip archive"),
    (b"\xd0\xcf\x11\xe0", "is a spreadsheet of old Excel; save it as CSV in UTF-8"),
    (b"SQLite format 3", "is a database of SQLite; export the table as CSV"),
)
_PARQUET = b"PAR1"
_OF_TEXT = (
    (_PARQUET, "is a Parquet file; give it the ending .parquet"),
    (b"ARROW1", "is an Arrow file; save it as Parquet"),
    (b"\x89HDF", "is an HDF5 file; save it as Parquet"),
    (b"%PDF", "is a PDF; save the table as CSV"),
    (b"\xff\xfe", "is in UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "is in UTF-16; save it as UTF-8"),
)


def require_content(path: Path, *, text: bool = False) -> None:
    """Raises DataError when there is no such file, nothing in it, or plainly something else in it.

    `text`: it should hold lines of text, so another format is named too.
    """
    with opened(path):
        if not path.exists():
            raise DataError(f"{path}: no such data file")
        if path.is_dir():
            raise DataError(f"{path} is a folder; name a file in it")
        if not path.is_file():
            raise DataError(f"{path} is no regular file")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty")
        with path.open("rb") as file:
            begin = file.read(64)
    if told := foreign(begin, text=text):
        raise DataError(f"{path} {told}")


def foreign(begin: bytes, *, text: bool = False) -> str | None:
    """What the first bytes give away, and what to do; None when they could be what the name says."""
    for magic, told in (*_FOREIGN, *_OF_TEXT) if text else _FOREIGN:
        if begin.startswith(magic):
            return told
    if begin.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, perhaps of an error or a login; download the file again"
    return None


def require_parquet(path: Path) -> None:
    """As `require_content`; and that the file begins and ends as Parquet does."""
    require_content(path)
    with opened(path), path.open("rb") as file:
        begin = file.read(4)
        file.seek(max(0, path.stat().st_size - 4))
        end = file.read()
    if begin == b"PARE":
        raise DataError(f"{path} cannot be read: it is encrypted")
    if begin != _PARQUET:
        raise DataError(f"{path} cannot be read: it is no Parquet file")
    if end != _PARQUET:
        raise DataError(f"{path} cannot be read: its end is missing; download or write it again")


def require_utf8_name(path: Path) -> None:
    """Raises DataError for a name that no log could hold, and no label be."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"the name {str(path)!a} is not UTF-8; rename it") from error


@contextmanager
def opened(path: Path) -> Iterator[None]:
    """What the operating system refuses becomes a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A file of UTF-8, with or without a byte order mark, its line ends left as they are.

    Raises DataError when it is not what it should be, naming the line that is not UTF-8.
    """
    require_content(path, text=True)
    try:
        with opened(path), path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error


def _not_utf8(path: Path) -> DataError:
    # The error's own position counts from the begin of some block.
    content = path.read_bytes()
    try:
        content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start + len(content) - len(error.object)
        line = len(re.findall(rb"\r\n|\r|\n", content[:at])) + 1
        found = f"line {line} is not UTF-8 (byte 0x{content[at]:02x})"
        return DataError(
            f"{path}: {found}; save the file as UTF-8, such as by: iconv -f WINDOWS-1252 -t UTF-8"
        )
    return DataError(f"{path} was changed while it was read")
