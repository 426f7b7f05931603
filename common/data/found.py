"""What was found in a file: texts, pairs of texts, lists of words or images, and their labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.data.rows import Places
from common.task_forms import Input


@dataclass(frozen=True)
class Reading:
    """What was found out about examples when they were read."""

    places: Places | None = None
    """Where each stands; None: in the rows of the source."""
    notes: tuple[str, ...] = ()
    """What their owner should know, a line each: what was left out, and what looks like a mistake."""


@dataclass(frozen=True)
class Found:
    """Texts, words or images as they were found, not yet tokenised or decoded."""

    source: str
    """Where they come from, for messages: a path, or the name of a preset."""
    texts: list[str] | None
    pairs: list[str] | None = None
    """Second texts, of pairs."""
    images: list[Path | bytes] | None = None
    """Files, or encoded bytes. Exactly one of texts, images and words is there."""
    label_names: list[str] | None = None
    """As text, whatever the task makes of it: a class, a number, or several classes. None: unlabelled."""
    words: list[tuple[str, ...]] | None = None
    """Texts that are cut into words already."""
    label_lists: list[tuple[str, ...]] | None = None
    """Labels that were found as lists, in place of `label_names`: tags of words, or several classes."""
    reading: Reading = field(default=Reading(), compare=False, repr=False)

    def __post_init__(self) -> None:
        if [self.texts, self.images, self.words].count(None) != 2:
            raise ValueError("examples are either texts or images or words")
        if self.label_names is not None and self.label_lists is not None:
            raise ValueError("labels are either texts or lists")
        for beside in (self.pairs, self.label_names, self.label_lists, self.reading.places):
            if beside is not None and len(beside) != len(self):
                raise ValueError(f"{len(self)} examples with {len(beside)} pairs, labels or places")

    def __len__(self) -> int:
        return len(self._inputs())

    def _inputs(self) -> Sequence[str | Path | bytes | tuple[str, ...]]:
        return next(given for given in (self.texts, self.images, self.words) if given is not None)

    @property
    def input(self) -> Input:
        """What they are."""
        return Input.TEXTS if self.texts is not None else Input.WORDS if self.images is None else Input.IMAGES

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.label_names is not None or self.label_lists is not None
