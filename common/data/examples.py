"""What a task learns from: single texts, pairs of texts or images, with the names of their classes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Self, TypeVar

import pyarrow
from pyarrow import parquet

from common.data.tables import (
    class_indices,
    parquet_columns,
    read_columns,
    readable,
    require_columns,
    require_content,
)
from common.errors import DataError
from common.records import TaskKind

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Rows of images held twice while a Parquet file is read: as pyarrow's and as Python's.
_READ_ROWS = 256


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

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.images is None):
            raise ValueError("examples are either texts or images")
        for beside in (self.pairs, self.label_names):
            if beside is not None and len(beside) != len(self):
                raise ValueError(f"{len(self)} examples with {len(beside)} pairs or labels")

    def __len__(self) -> int:
        return len(self._inputs())

    def _inputs(self) -> Sequence[str | Path | bytes]:
        inputs = self.images if self.texts is None else self.texts
        assert inputs is not None
        return inputs

    def name_of(self, i: int) -> str:
        """Example `i`, for messages: its file, or its row counted from 1."""
        example = self._inputs()[i]
        return str(example) if isinstance(example, Path) else f"{self.source}: row {i + 1}"

    def class_indices(self, labels: tuple[str, ...]) -> list[int]:
        """Positions in `labels`. Raises DataError when unlabelled, or for a label not among them."""
        if self.label_names is None:
            raise DataError(f"{self.source} has no labels; name the column that holds them")
        return class_indices(self.source, self.label_names, labels)

    def take(self, indices: Sequence[int]) -> Self:
        """The chosen examples, in the order of `indices`."""
        return replace(
            self,
            texts=_take(self.texts, indices),
            pairs=_take(self.pairs, indices),
            images=_take(self.images, indices),
            label_names=_take(self.label_names, indices),
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
    """Everything in a file of texts, a Parquet file of images or a folder of images.

    A folder holds FOLDER/CLASS/*.png (jpg, jpeg, webp, bmp); without labels, images in any depth.
    A Parquet file holds images when it has the image column and no text column, or both and `kind`
    wants images. Images are decoded when they are used. A language model learns from texts alone:
    with CAUSAL_LM no label is read.

    Raises DataError when there is nothing there, when it cannot be read, when a column or a value
    is missing, and when it is not what `kind` needs.
    """
    if kind is TaskKind.CAUSAL_LM:
        columns = replace(columns, label=None)
    if path.is_dir():
        examples = _read_folder(path, labelled=columns.label is not None)
    elif not path.exists():
        raise DataError(f"{path}: no such data file or folder of images")
    elif _holds_images(path, columns, kind):
        examples = _read_images(path, columns)
    else:
        examples = _read_texts(path, columns)
    return examples if kind is None else examples.require(kind)


def write_examples(path: Path, examples: Examples) -> None:
    """A Parquet file with the columns text (and pair) or image, and label, as `read_examples` reads them.

    Raises DataError when the file cannot be written.
    """
    table: dict[str, Any] = {}
    if examples.images is not None:
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
    )


def _read_texts(path: Path, columns: Columns) -> Examples:
    names = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    found = iter(read_columns(path, *names))
    return Examples(
        str(path),
        texts=next(found),
        pairs=None if columns.pair is None else next(found),
        label_names=None if columns.label is None else next(found),
    )


def _read_folder(folder: Path, labelled: bool) -> Examples:
    # Names that begin with a dot are what macOS and version control leave beside the data.
    images = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".") and path.is_file()
    ]
    if not images:
        raise DataError(f"{folder} holds no images; put them in {folder}/CLASS/*.png (or jpg, webp, bmp)")
    if not labelled:
        return Examples(str(folder), None, images=list(images))
    for image in images:
        if image.parent.parent != folder:
            raise DataError(f"{image} does not lie in a class folder, {folder}/CLASS/; move it there")
    return Examples(
        str(folder), None, images=list(images), label_names=[image.parent.name for image in images]
    )


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
        (names,) = read_columns(path, columns.label)
    images: list[Path | bytes] = []
    require_content(path)
    require_columns(path, parquet_columns(path), columns.image)
    with readable(path):
        # Table by table: an image set may be larger than half of the memory.
        for rows in parquet.ParquetFile(path).iter_batches(_READ_ROWS, columns=[columns.image]):
            for value in rows.column(0).to_pylist():
                images.append(_image(path, len(images) + 1, columns.image, value))
    if not images:
        raise DataError(f"{path} is empty: it has columns but no rows")
    return Examples(str(path), None, images=images, label_names=names)


def _image(path: Path, row: int, column: str, value: Any) -> Path | bytes:
    """The bytes; of the hub's struct without bytes, the file that it names."""
    match value:
        case bytes(encoded) | {"bytes": bytes(encoded)} if encoded:
            return encoded
        case {"bytes": None, "path": str(name)}:
            beside = path.parent.resolve()
            named = (beside / name).resolve()
            if not named.is_relative_to(beside):
                # A table from elsewhere must not choose files of this machine.
                raise DataError(f"{path}: row {row} names an image outside its folder: {name}")
            return named
        case None | b"" | {"bytes": None | b""}:
            raise DataError(f"{path}: row {row} has no value in column {column!r}")
    raise DataError(
        f"{path}: row {row} of column {column!r} holds no image; images are bytes, or the hub's "
        "struct of bytes and path"
    )


def _take(values: list[T] | None, indices: Sequence[int]) -> list[T] | None:
    return None if values is None else [values[i] for i in indices]


def _chain(lists: Sequence[list[T] | None]) -> list[T] | None:
    """One list, or None when there is none among them."""
    there = [values for values in lists if values is not None]
    return list(chain.from_iterable(there)) if there else None
