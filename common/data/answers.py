"""Labels as they were found → what a task of a certain kind makes of them."""

import json
import math
import re
from collections.abc import Iterator, Sequence

from common.data.examples import Examples
from common.data.rows import counted, cut
from common.errors import DataError
from common.records import TaskKind
from common.task_forms import FORMS, SEPARATORS, Answer

_BETWEEN = re.compile(f"[{re.escape(SEPARATORS)}]")
# The largest that float32 holds; more would be infinite to a model.
_LARGEST = 3.4e38


def require_answers(examples: Examples, kind: TaskKind, labels: tuple[str, ...]) -> None:
    """Raises DataError unless the examples have labels as this kind of task wants them."""
    match FORMS[kind].answer:
        case Answer.CLASS:
            examples.class_indices(labels)
        case Answer.CLASSES:
            class_sets_of(examples, labels)
        case Answer.NUMBER:
            numbers_of(examples)
        case Answer.TAGS:
            tags_of(examples, labels)


def names_in(examples: Examples, kind: TaskKind) -> Iterator[str]:
    """The names of classes that there are, as often as they are there; of numbers and of none nothing."""
    match FORMS[kind].answer:
        case Answer.CLASS:
            yield from examples.label_names or ()
        case Answer.CLASSES | Answer.TAGS:
            for names in _lists(examples):
                yield from names


def numbers_of(examples: Examples) -> list[float]:
    """A finite number for each example. Raises DataError naming the row of the first that is none."""
    if examples.label_names is None:
        raise _unfit(examples, "a number")
    numbers = []
    for row, text in enumerate(examples.label_names):
        try:
            # Python would read 1_000.
            number = math.nan if "_" in text else float(text)
        except ValueError:
            number = math.nan
        if not abs(number) <= _LARGEST:
            hint = "; write it with a point" if re.fullmatch(r"\s*[+-]?\d+,\d+\s*", text) else ""
            raise DataError(
                f"{examples.name_of(row)} has label {cut(text)!r}, which is no finite number{hint}"
            )
        numbers.append(number)
    return numbers


def class_sets_of(examples: Examples, labels: tuple[str, ...]) -> list[list[int]]:
    """Positions in `labels` of every example's classes, of which there may be none.

    They are a list, or one text: names with any of SEPARATORS between them, or a list in JSON. Raises
    DataError when unlabelled, or for a label that is not among them.
    """
    if not examples.labelled:
        raise _unfit(examples, "any number of classes")
    return _positions(examples, labels, _lists(examples))


def tags_of(examples: Examples, labels: tuple[str, ...]) -> list[list[int]]:
    """Positions in `labels` of the words' tags. Raises DataError when they are not as many as the words,
    or for a tag that is not among them."""
    if examples.label_lists is None or examples.words is None:
        raise _unfit(examples, "a list of tags, one for each word")
    for row, (words, tags) in enumerate(zip(examples.words, examples.label_lists, strict=True)):
        if len(words) != len(tags):
            told = f"{counted(len(words), 'word')} and {counted(len(tags), 'tag')}"
            raise DataError(f"{examples.name_of(row)} has {told}; there must be as many")
    return _positions(examples, labels, examples.label_lists)


def _positions(
    examples: Examples, labels: tuple[str, ...], lists: Sequence[Sequence[str]]
) -> list[list[int]]:
    index = {label: i for i, label in enumerate(labels)}
    unknown = [row for row, names in enumerate(lists) if any(name not in index for name in names)]
    if unknown:
        name = next(name for name in lists[unknown[0]] if name not in index)
        raise examples.unknown(unknown, name, labels)
    return [[index[name] for name in names] for names in lists]


def _lists(examples: Examples) -> Sequence[Sequence[str]]:
    if examples.label_lists is not None:
        return examples.label_lists
    return [_several(text) for text in examples.label_names or ()]


def _several(text: str) -> list[str]:
    """The names in one cell."""
    if text.lstrip().startswith("["):
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return [name.strip() for name in _BETWEEN.split(text) if name.strip()]


def _unfit(examples: Examples, wanted: str) -> DataError:
    if not examples.labelled:
        return DataError(f"{examples.source} has no labels; name the column that holds them")
    found = "one text" if examples.label_lists is None else "a list"
    return DataError(f"{examples.source} has {found} for each label, but the task wants {wanted}")
