"""Folders → the images of classes, or the files of one table; whatever is left out is counted and named."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from common.data.content import opened, require_utf8_name
from common.data.rows import counted
from common.data.tables import TABLE_ENDINGS
from common.errors import DataError
from common.listing import first_few

Image.init()
# What people keep pictures in. Pillow knows more, some of which runs other programs; and not every build
# knows all of these.
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
FORMATS = tuple(form for form in _PICTURES if form in Image.OPEN)
_RUN_OF_DIGITS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\d+")


def image_endings() -> tuple[str, ...]:
    """Those of FORMATS, in lower case."""
    endings = Image.registered_extensions()
    return tuple(sorted(ending for ending, form in endings.items() if form in FORMATS))


@dataclass
class Contents:
    """What lies in a folder, sorted."""

    folder: Path
    images: list[Path] = field(default_factory=list)
    """In any depth."""
    tables: list[Path] = field(default_factory=list)
    """In the folder itself."""
    left_out: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """By reason, names below the folder."""

    def notes(self) -> tuple[str, ...]:
        """What is left out, a line for each reason."""
        order = sorted(self.left_out.items(), key=lambda item: (-len(item[1]), item[0]))
        return tuple(
            f"{self.folder}: {counted(len(names), 'file')} left out, {reason}: {first_few(sorted(names))}"
            for reason, names in order
        )


def look_into(folder: Path) -> Contents:
    """Everything below a folder. Raises DataError when a part of it cannot be read."""
    found, endings = Contents(folder), image_endings()
    for path in sorted(_files(folder, found)):
        ending = path.suffix.lower()
        if ending in endings:
            found.images.append(path)
        elif ending in TABLE_ENDINGS and path.parent == folder:
            found.tables.append(path)
        else:
            _leave_out(found, path, f"with the ending {ending}" if ending else "without an ending")
    return found


def images_of(found: Contents, labelled: bool) -> tuple[list[Path], list[str] | None, tuple[str, ...]]:
    """The images, the names of their classes if wanted, and what is to be told.

    Raises DataError for an image outside of FOLDER/CLASS/ when its class is wanted.
    """
    folder = found.folder
    for path in found.tables:
        _leave_out(found, path, "a table beside images")
    notes = found.notes()
    if not labelled:
        return found.images, None, notes
    for image in found.images:
        if image.parent.parent != folder:
            raise DataError(f"{image} does not lie in a class folder, {folder}/CLASS/; move it there")
    classes = [image.parent.name for image in found.images]
    there = {path.name for path in folder.iterdir() if path.is_dir() and not hidden(path.name)}
    if empty := sorted(there - set(classes)):
        told = f"{counted(len(empty), 'folder')} without an image, so no class"
        notes += (f"{folder}: {told}: {first_few(empty)}",)
    return found.images, classes, notes


def shards_of(found: Contents) -> tuple[list[Path], tuple[str, ...]]:
    """The files of one table in the order of their names, and what is to be told.

    Raises DataError when they are not alike, or one of NAME-00000-of-00003 is missing.
    """
    shapes = {_RUN_OF_DIGITS.sub("#", path.name): path.name for path in reversed(found.tables)}
    if len(shapes) > 1:
        several = ", ".join(sorted(shapes.values()))
        raise DataError(
            f"{found.folder} holds files that may be of several sets ({several}); name one file, or a "
            "folder with the files of one set, named alike, such as part-1.parquet and part-2.parquet"
        )
    require_all_shards(found.tables, f"{found.folder}")
    told = (
        f"{counted(len(found.tables), 'file')} read as one table: {first_few([p.name for p in found.tables])}"
    )
    return found.tables, (f"{found.folder}: {told}", *found.notes())


def require_all_shards(files: Sequence[Path], where: str) -> None:
    """Named train-00000-of-00006, a part of a download would pass for the whole. Raises DataError."""
    wanted = files[0].stem.rpartition("-of-")[2]
    if "-of-" in files[0].stem and wanted.isdigit() and int(wanted) != len(files):
        raise DataError(f"{where} holds {len(files)} of {int(wanted)} files; get the others too")


def hidden(name: str) -> bool:
    """What systems and programs leave beside the data: .DS_Store, ._1.png, .git, __MACOSX, _SUCCESS."""
    return name.startswith((".", "__MACOSX")) or name in ("_SUCCESS", "_metadata", "_common_metadata")


def _files(folder: Path, found: Contents) -> Iterator[Path]:
    """Regular files that are not hidden, through links to folders too."""

    def refuse(error: OSError) -> None:
        # Otherwise a folder that may not be read is passed over.
        raise error

    seen = set()
    with opened(folder):
        for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
            where = Path(place)
            if (real := where.resolve()) in seen:
                folders.clear()
                _leave_out(found, where, "a link to a folder that is read already")
                continue
            seen.add(real)
            for name in [*folders, *files]:
                require_utf8_name(where / name)
                if hidden(name):
                    _leave_out(found, where / name, "hidden by name")
            folders[:] = sorted(name for name in folders if not hidden(name))
            for name in files:
                path = where / name
                if hidden(name):
                    continue
                if path.is_file():
                    yield path
                elif path.is_symlink():
                    raise DataError(f"{path} is a link to a file that is not there; mend or remove it")
                else:
                    _leave_out(found, path, "no regular file")


def _leave_out(found: Contents, path: Path, reason: str) -> None:
    found.left_out[reason].append(str(path.relative_to(found.folder)))
