"""What a task learns from: single texts, pairs of texts or images, with the names of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow
from pyarrow import parquet

from common.data.columnar import parquet_columns, read_images
from common.data.content import opened, require_utf8_name
from common.data.folders import images_of, look_into, shards_of
from common.data.labels import likely, taken_for_one
from common.data.rows import Places, counted, cut
from common.data.tables import TABLE_ENDINGS, read_table
from common.errors import DataError
from common.listing import first_few
from common.records import TaskKind

_LABELS_NAMED = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what."""

    text: str = "text"
    """The text, or the first of a pair."""
    pair: str | None = None
    """The second text of a pair; None for single texts."""
    label: str | None = "label"
    """The class; None for unlabelled data. In a folder of images: whether its folders are classes."""
    image: str = "image"
    """The image of a Parquet file: encoded bytes, or the hub's struct of bytes and path."""


@dataclass(frozen=True)
class Reading:
    """What was found out about examples when they were read."""

    places: Places | None = None
    """Where each stands; None: in the rows of the source."""
    notes: tuple[str, ...] = ()
    """What their owner should know, a line each: what was left out, and what looks like a mistake."""


@dataclass(frozen=True)
class Examples:
    """Texts or images as they were found, not yet tokenised or decoded."""

    source: str
    """Where they come from, for messages: a path, or the name of a preset."""
    texts: list[str] | None
    pairs: list[str] | None = None
    """Second texts, of pairs."""
    images: list[Path | bytes] | None = None
    """Files, or encoded bytes. Exactly one of texts and images is there."""
    label_names: list[str] | None = None
    """None: unlabelled."""
    reading: Reading = field(default=Reading(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.images is None):
            raise ValueError("examples are either texts or images")
        for beside in (self.pairs, self.label_names, self.reading.places):
            if beside is not None and len(beside) != len(self):
                raise ValueError(f"{len(self)} examples with {len(beside)} pairs, labels or places")

    def __len__(self) -> int:
        return len(self._inputs())

    def _inputs(self) -> Sequence[str | Path | bytes]:
        inputs = self.images if self.texts is None else self.texts
        assert inputs is not None
        return inputs

    @property
    def notes(self) -> tuple[str, ...]:
        """What their owner should know, a line each."""
        return self.reading.notes

    def noted(self, *notes: str) -> Self:
        """The same with more notes behind those that are there."""
        return replace(self, reading=replace(self.reading, notes=(*self.notes, *notes)))

    def name_of(self, i: int) -> str:
        """Example `i`, for messages: its file; or file, and line or row as a person counts them."""
        example = self._inputs()[i]
        if isinstance(example, Path):
            return str(example)
        places = self.reading.places
        return f"{self.source}: row {i + 1}" if places is None else places[i]

    def class_indices(self, labels: tuple[str, ...]) -> list[int]:
        """Positions in `labels`. Raises DataError when unlabelled, or for a label not among them."""
        if self.label_names is None:
            raise DataError(f"{self.source} has no labels; name the column that holds them")
        index = {label: i for i, label in enumerate(labels)}
        unknown = [i for i, name in enumerate(self.label_names) if name not in index]
        if unknown:
            raise self._unknown(unknown, labels)
        return [index[name] for name in self.label_names]

    def _unknown(self, rows: list[int], labels: tuple[str, ...]) -> DataError:
        assert self.label_names is not None
        name = self.label_names[rows[0]]
        told = f"{cut(name)!r}; the run knows: {first_few(labels, _LABELS_NAMED)}{likely(name, labels)}"
        more = f" (and {counted(len(rows) - 1, 'more row')} with labels unknown to it)" if rows[1:] else ""
        return DataError(f"{self.name_of(rows[0])} has label {told}{more}")

    def take(self, indices: Sequence[int]) -> Self:
        """The chosen examples, in the order of `indices`."""
        places = self.reading.places
        return replace(
            self,
            texts=_take(self.texts, indices),
            pairs=_take(self.pairs, indices),
            images=_take(self.images, indices),
            label_names=_take(self.label_names, indices),
            reading=replace(self.reading, places=None if places is None else places.take(indices)),
        )

    def require(self, kind: TaskKind) -> Self:
        """These, when a task of this kind can use them. Raises DataError."""
        if kind is TaskKind.IMAGE_CLASSIFICATION:
            if self.images is None:
                raise DataError(f"{kind} needs images, but {self.source} holds texts; {_IMAGES_LIE}")
        elif self.texts is None:
            raise DataError(f"{kind} needs texts, but {self.source} holds images; {_TEXTS_LIE}")
        elif self.pairs is not None and kind is TaskKind.CAUSAL_LM:
            raise DataError(f"{kind} needs single texts, but {self.source} holds pairs; name one column only")
        return self


_IMAGES_LIE = "give a folder with FOLDER/CLASS/*.png, or a Parquet file of images"
_TEXTS_LIE = "give a CSV, TSV, JSONL or Parquet file with a column of texts"


def read_examples(path: Path, columns: Columns, kind: TaskKind | None = None) -> Examples:
    """Everything in a file of texts, a Parquet file of images, a folder of images or of parts of a table.

    A folder of images holds FOLDER/CLASS/*.png (jpg, tif and others); without labels, images in any
    depth. A folder without images holds the files of one table, read in the order of their names.
    A Parquet file holds images when it has the image column and no text column, or both and `kind`
    wants images. Images are decoded when they are used. A row without a text is left out; what is left
    out is counted in the examples' notes. A language model learns from texts alone: with CAUSAL_LM no
    label is read.

    Raises DataError when there is nothing there, when it cannot be read, when a column or a label
    is missing, and when it is not what `kind` needs.
    """
    if kind is TaskKind.CAUSAL_LM:
        columns = replace(columns, label=None)
    require_utf8_name(path)
    with opened(path):
        there, is_folder = path.exists(), path.is_dir()
    if not there:
        raise DataError(f"{path}: no such data file or folder of images")
    examples = _read_folder(path, columns, kind) if is_folder else _read_file(path, columns, kind)
    if alike := taken_for_one(examples.label_names or ()):
        told = f"labels that differ in blanks or case only, each a class of its own: {alike}"
        examples = examples.noted(f"{path}: {told}")
    return examples if kind is None else examples.require(kind)


def write_examples(path: Path, examples: Examples) -> None:
    """A Parquet file with the columns text (and pair) or image, and label, as `read_examples` reads them.

    Raises DataError when the file cannot be written.
    """
    table: dict[str, Any] = {}
    if examples.images is not None:
        with opened(path):
            data = [image.read_bytes() if isinstance(image, Path) else image for image in examples.images]
        # The hub's form of an image.
        form = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table["image"] = pyarrow.array([{"bytes": encoded, "path": None} for encoded in data], form)
    else:
        table["text"] = examples.texts
    if examples.pairs is not None:
        table["pair"] = examples.pairs
    if examples.label_names is not None:
        table["label"] = examples.label_names
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(table), path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error


def join(source: str, parts: Sequence[Examples]) -> Examples:
    """All examples of the parts, which are of one form."""
    return Examples(
        source,
        texts=_chain([part.texts for part in parts]),
        pairs=_chain([part.pairs for part in parts]),
        images=_chain([part.images for part in parts]),
        label_names=_chain([part.label_names for part in parts]),
        reading=Reading(_joined_places(parts), tuple(chain.from_iterable(part.notes for part in parts))),
    )


def _read_file(path: Path, columns: Columns, kind: TaskKind | None) -> Examples:
    return _read_images(path, columns) if _holds_images(path, columns, kind) else _read_texts(path, columns)


def _read_folder(folder: Path, columns: Columns, kind: TaskKind | None) -> Examples:
    found = look_into(folder)
    if found.images:
        images, classes, notes = images_of(found, labelled=columns.label is not None)
        reading = Reading(notes=notes)
        return Examples(str(folder), None, images=list(images), label_names=classes, reading=reading)
    if found.tables:
        files, notes = shards_of(found)
        parts = [_read_file(file, columns, kind) for file in files]
        if len({part.texts is None for part in parts}) > 1:
            raise DataError(f"{folder} holds tables of texts and tables of images; name one of them")
        examples = join(str(folder), parts)
        return replace(examples, reading=replace(examples.reading, notes=(*notes, *examples.notes)))
    there = "".join(f"; {note.partition(': ')[2]}" for note in found.notes())
    raise DataError(
        f"{folder} holds no images; put them in {folder}/CLASS/*.png (or jpg, webp, tif, bmp, gif), or the "
        f"files of one table ({', '.join(TABLE_ENDINGS)}) in {folder} itself{there}"
    )


def _read_texts(path: Path, columns: Columns) -> Examples:
    names = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    table = read_table(path, *names)
    texts = table.columns[: 1 if columns.pair is None else 2]
    empty = [i for i, row in enumerate(zip(*texts, strict=True)) if not all(map(_filled, row))]
    if len(empty) == len(table):
        raise DataError(f"{path} has no row with a text in column {columns.text!r}")
    examples = Examples(
        str(path),
        texts=[text or "" for text in table.columns[0]],
        pairs=None if columns.pair is None else [text or "" for text in table.columns[1]],
        label_names=None if columns.label is None else [label or "" for label in table.columns[-1]],
        reading=Reading(table.places, table.notes),
    )
    if empty:
        where = first_few([table.places[i].removeprefix(f"{path}: ") for i in empty])
        left = f"{counted(len(empty), 'row')} of {len(table):,} left out, without a text: {where}"
        without = set(empty)
        examples = examples.noted(f"{path}: {left}").take([i for i in range(len(table)) if i not in without])
    _require_labels(examples, columns.label)
    return examples


def _require_labels(examples: Examples, column: str | None) -> None:
    """Raises DataError for a row without one: to leave it out would be a guess at what was meant."""
    if missing := [i for i, label in enumerate(examples.label_names or ()) if not _filled(label)]:
        more = f" (nor have {counted(len(missing) - 1, 'row')} more)" if missing[1:] else ""
        where = f"{examples.name_of(missing[0])} has no value in column {column!r}{more}"
        raise DataError(f"{where}; fill it in, or remove the row")


def _filled(text: str | None) -> bool:
    return text is not None and text != "" and not text.isspace()


def _holds_images(path: Path, columns: Columns, kind: TaskKind | None) -> bool:
    if path.suffix.lower() != ".parquet":
        if kind is TaskKind.IMAGE_CLASSIFICATION:
            raise DataError(f"{kind} needs images, but {path} is a file of another kind; {_IMAGES_LIE}")
        return False
    found = parquet_columns(path)
    if kind is TaskKind.IMAGE_CLASSIFICATION and columns.image not in found:
        there = ", ".join(found)
        raise DataError(f"{kind} needs a column {columns.image!r} of images; those of {path} are: {there}")
    return columns.image in found and (kind is TaskKind.IMAGE_CLASSIFICATION or columns.text not in found)


def _read_images(path: Path, columns: Columns) -> Examples:
    names = None
    if columns.label is not None:
        names = [label or "" for label in read_table(path, columns.label).columns[0]]
    images = read_images(path, columns.image)
    if not images:
        raise DataError(f"{path} is empty: it has columns but no rows")
    places = Places.in_file(path, "row", range(1, len(images) + 1))
    examples = Examples(str(path), None, images=images, label_names=names, reading=Reading(places))
    _require_labels(examples, columns.label)
    return examples


def _take(values: list[T] | None, indices: Sequence[int]) -> list[T] | None:
    return None if values is None else [values[i] for i in indices]


def _chain(lists: Sequence[list[T] | None]) -> list[T] | None:
    """One list, or None when there is none among them."""
    there = [values for values in lists if values is not None]
    return list(chain.from_iterable(there)) if there else None


def _joined_places(parts: Sequence[Examples]) -> Places | None:
    """Those of all parts, or None when one has none."""
    there = [part.reading.places for part in parts if part.reading.places is not None]
    return Places.joined(there) if len(there) == len(parts) else None
