"""What a task learns from: texts, pairs, lists of words or images, with their labels; conversations."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow
from pyarrow import parquet

from common.data.columnar import parquet_columns, read_images
from common.data.content import opened, require_utf8_name
from common.data.conversations import chat_columns, chat_table, read_conversations
from common.data.folders import images_of, look_into, shards_of
from common.data.found import Found, Reading
from common.data.labels import likely, taken_for_one
from common.data.rows import NoColumn, Places, counted, cut, filled, told_apart
from common.data.tables import TABLE_ENDINGS, read_table
from common.data.words import TAGS_COLUMNS, WORDS_COLUMN, table_of
from common.errors import DataError
from common.listing import first_few
from common.records import TaskKind
from common.task_forms import FORMS, Input

_LABELS_NAMED = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what."""

    text: str = "text"
    """The text, or the first of a pair, or the list of words."""
    pair: str | None = None
    """The second text of a pair; None for single texts."""
    label: str | None = "label"
    """The label; None for unlabelled data. In a folder of images: whether its folders are classes."""
    image: str = "image"
    """The image of a Parquet file: encoded bytes, or the hub's struct of bytes and path."""


@dataclass(frozen=True)
class Examples(Found):
    """Texts, words, images or conversations as they were found, not yet tokenised or decoded."""

    def without_labels(self) -> Self:
        """The same, unlabelled."""
        return replace(self, label_names=None, label_lists=None)

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
        if self.label_lists is not None:
            raise DataError(f"{self.source} has lists of labels, but every example is of one class")
        if self.label_names is None:
            raise DataError(f"{self.source} has no labels; name the column that holds them")
        index = {label: i for i, label in enumerate(labels)}
        unknown = [i for i, name in enumerate(self.label_names) if name not in index]
        if unknown:
            raise self.unknown(unknown, self.label_names[unknown[0]], labels)
        return [index[name] for name in self.label_names]

    def unknown(self, rows: list[int], name: str, labels: tuple[str, ...]) -> DataError:
        """What to say of `rows`, the first of which has the label `name`, which is none of `labels`."""
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
            words=_take(self.words, indices),
            label_lists=_take(self.label_lists, indices),
            conversations=_take(self.conversations, indices),
            reading=replace(self.reading, places=None if places is None else places.take(indices)),
        )

    def require(self, kind: TaskKind) -> Self:
        """These, when a task of this kind can use them. Raises DataError."""
        wanted = FORMS[kind].input
        # What is aligned on needs no answers, so whole texts will do.
        if not FORMS[kind].takes(self.input) and not (
            wanted is Input.WORDS and self.texts is not None and not self.labelled
        ):
            raise DataError(
                f"{kind} needs {wanted}, but {self.source} holds {self.input}; {_WHERE_THEY_LIE[wanted]}"
            )
        if self.pairs is not None and not FORMS[kind].pairs:
            raise DataError(f"{kind} needs single texts, but {self.source} holds pairs; name one column only")
        return self


_IMAGES_LIE = "give a folder with FOLDER/CLASS/*.png, or a Parquet file of images"
_WHERE_THEY_LIE = {
    Input.IMAGES: _IMAGES_LIE,
    Input.TEXTS: "give a CSV, TSV, JSONL or Parquet file with a column of texts",
    Input.WORDS: "give CoNLL columns (.conll), or a JSONL or Parquet file with a list of words in each row",
}


def read_examples(path: Path, columns: Columns, kind: TaskKind | None = None) -> Examples:
    """Everything in a file of texts or words, a Parquet file of images, a folder of images or of a table.

    A folder of images holds FOLDER/CLASS/*.png (jpg, tif and others); without labels, images in any
    depth. A folder without images holds the files of one table, read in the order of their names.
    A Parquet file holds images when it has the image column and no text column, or both and `kind`
    wants images. Images are decoded when they are used. Texts may be lists of words, as CoNLL's columns
    are, and labels lists. A row without a text is left out; what is left
    out is counted in the examples' notes. A language model learns from texts alone: with CAUSAL_LM no
    label is read. A table without the column of texts, but with messages, or prompt and completion, holds
    conversations.

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
    """A Parquet file with text (and pair) or image, and label, or tokens and tags, or messages, or prompt and
    completion: as `read_examples` reads.

    Raises DataError when the file cannot be written.
    """
    table: dict[str, Any] = {}
    if examples.images is not None:
        with opened(path):
            data = [image.read_bytes() if isinstance(image, Path) else image for image in examples.images]
        # The hub's form of an image.
        form = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        table["image"] = pyarrow.array([{"bytes": encoded, "path": None} for encoded in data], form)
    elif examples.words is not None:
        table[WORDS_COLUMN] = _lists(examples.words)
    elif examples.conversations is not None:
        table = chat_table(examples.conversations)
    else:
        table["text"] = examples.texts
    if examples.pairs is not None:
        table["pair"] = examples.pairs
    if examples.label_names is not None:
        table["label"] = examples.label_names
    if examples.label_lists is not None:
        table["label" if examples.words is None else TAGS_COLUMNS[0]] = _lists(examples.label_lists)
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
        words=_chain([part.words for part in parts]),
        label_lists=_chain([part.label_lists for part in parts]),
        conversations=_chain([part.conversations for part in parts]),
        reading=Reading(_joined_places(parts), tuple(chain.from_iterable(part.notes for part in parts))),
    )


def _read_file(path: Path, columns: Columns, kind: TaskKind | None) -> Examples:
    if _holds_images(path, columns, kind):
        return _read_images(path, columns)
    try:
        return _read_texts(path, columns)
    except NoColumn as error:
        found = chat_columns(error.found, columns.text)
        if not found or columns.pair is not None or kind not in (None, TaskKind.CAUSAL_LM):
            raise
    chats, places, notes = read_conversations(path, found)
    return Examples(str(path), None, reading=Reading(places, notes), conversations=chats)


def _read_folder(folder: Path, columns: Columns, kind: TaskKind | None) -> Examples:
    found = look_into(folder)
    if found.images:
        images, classes, notes = images_of(found, labelled=columns.label is not None)
        reading = Reading(notes=notes)
        return Examples(str(folder), None, images=list(images), label_names=classes, reading=reading)
    if found.tables:
        files, notes = shards_of(found)
        parts = [_read_file(file, columns, kind) for file in files]
        if len(held := sorted({part.input for part in parts})) > 1:
            raise DataError(f"{folder} holds tables of {' and of '.join(held)}; name one of them")
        if len({part.label_lists is None for part in parts}) > 1:
            raise DataError(f"{folder} holds tables with lists of labels, and without")
        examples = join(str(folder), parts)
        return replace(examples, reading=replace(examples.reading, notes=(*notes, *examples.notes)))
    there = "".join(f"; {note.partition(': ')[2]}" for note in found.notes())
    raise DataError(
        f"{folder} holds no images; put them in {folder}/CLASS/*.png (or jpg, webp, tif, bmp, gif), or the "
        f"files of one table ({', '.join(TABLE_ENDINGS)}) in {folder} itself{there}"
    )


def _read_texts(path: Path, columns: Columns) -> Examples:
    table, text, label = table_of(path, columns.text, columns.pair, columns.label)
    texts = table.columns[: 1 if columns.pair is None else 2]
    empty = [i for i, row in enumerate(zip(*texts, strict=True)) if not all(map(filled, row))]
    if len(empty) == len(table):
        raise DataError(f"{path} has no row with a text in column {text!r}")
    single, words = told_apart(table, 0, text)
    pairs, second = (None, None) if columns.pair is None else told_apart(table, 1, columns.pair)
    if columns.pair is not None and (words or second):
        raise DataError(f"{path}: pairs are of texts, not of lists")
    names, lists = (None, None) if label is None else told_apart(table, -1, label)
    if words and names:
        raise DataError(f"{path}: column {text!r} holds lists of words, {label!r} no lists of their tags")
    if lists and None in table.columns[-1]:
        where = table.places[list(table.columns[-1]).index(None)]
        raise DataError(f"{where} has no value in column {label!r}; write an empty list for none")
    reading = Reading(table.places, table.notes)
    examples = Examples(str(path), single, pairs, None, names, words, lists, reading)
    if empty:
        where = first_few([table.places[i].removeprefix(f"{path}: ") for i in empty])
        left = f"{counted(len(empty), 'row')} of {len(table):,} left out, without a text: {where}"
        without = set(empty)
        examples = examples.noted(f"{path}: {left}").take([i for i in range(len(table)) if i not in without])
    _require_labels(examples, label)
    return examples


def _require_labels(examples: Examples, column: str | None) -> None:
    """Raises DataError for a row without one: to leave it out would be a guess at what was meant."""
    if missing := [i for i, label in enumerate(examples.label_names or ()) if not filled(label)]:
        more = f" (nor have {counted(len(missing) - 1, 'row')} more)" if missing[1:] else ""
        where = f"{examples.name_of(missing[0])} has no value in column {column!r}{more}"
        raise DataError(f"{where}; fill it in, or remove the row")


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
        names, lists = told_apart(read_table(path, columns.label), 0, columns.label)
        if lists is not None:
            raise DataError(f"{path}: column {columns.label!r} holds lists, not the class of each image")
    images = read_images(path, columns.image)
    if not images:
        raise DataError(f"{path} is empty: it has columns but no rows")
    places = Places.in_file(path, "row", range(1, len(images) + 1))
    examples = Examples(str(path), None, images=images, label_names=names, reading=Reading(places))
    _require_labels(examples, columns.label)
    return examples


def _lists(values: list[tuple[str, ...]]) -> Any:
    """Also where all of them are empty, of the type that they are of."""
    return pyarrow.array(values, pyarrow.list_(pyarrow.string()))


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
