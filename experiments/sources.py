"""Where an experiment's data come from: a package, a preset, or a file of the user's own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from common.data.answers import names_in
from common.data.examples import Columns, Examples, read_examples
from common.data.inspection import inspected
from common.data.presets import find_preset, is_preset, load_preset
from common.errors import DataError
from common.records import TaskKind
from common.runtime import seeds
from common.task_forms import FORMS, Answer, Input
from experiments.headline import headline_of, headline_of_preset
from experiments.packaged import write_bbc_news, write_fashion_mnist, write_tweets
from experiments.splitting import SplitData, draw_indices, write_parts

log = logging.getLogger(__name__)

PACKAGED: dict[str, Callable[..., SplitData]] = {
    "tweets": write_tweets,
    "fashion-mnist": write_fashion_mnist,
}
BBC_NEWS = "bbc-news"


@dataclass(frozen=True)
class Source:
    """A data set to experiment on.

    `name` is a packaged data set ("tweets", "bbc-news", "fashion-mnist"), a preset such as "sst2" (see
    common.presets; `root` is as there), or a table or image folder, read by `columns`.
    """

    name: str
    root: Path | None = None
    columns: Columns = field(default_factory=Columns)
    kind: TaskKind | None = None
    """Of a file of one's own, where it is another task than its form says: numbers, several classes."""

    @cached_property
    def task(self) -> TaskKind:
        """What it is for. Raises DataError."""
        if self._packaged:
            return (
                TaskKind.IMAGE_CLASSIFICATION
                if self.name == "fashion-mnist"
                else TaskKind.TEXT_CLASSIFICATION
            )
        if is_preset(self.name):
            return find_preset(self.name)[0].kind
        return self.kind or _kind_of(read_examples(Path(self.name), self.columns))

    @property
    def metric(self) -> str:
        """By what runs on it are compared (`experiments.headline`). Raises DataError."""
        return (
            headline_of_preset(find_preset(self.name)[0]) if is_preset(self.name) else headline_of(self.task)
        )

    def settings(self) -> dict[str, Any]:
        """What a run on it is to be told of its task, by keys of run.toml. Raises DataError."""
        kind, pairs = self.task, False
        if self.kind is not None and (self._packaged or is_preset(self.name)) and self.kind is not kind:
            raise DataError(f"{self.name} is for {kind}, not for {self.kind}")
        if not FORMS[kind].labelled:
            raise DataError(f"experiments compare how often answers are right, which {kind} has none of")
        if is_preset(self.name):
            pairs = find_preset(self.name)[0].columns.pair is not None
        elif not self._packaged:
            pairs = read_examples(Path(self.name), self.columns).pairs is not None
        return {"task.kind": kind} | ({"task.pairs": True, "data.test.pair_column": "pair"} if pairs else {})

    @property
    def _packaged(self) -> bool:
        return self.name in PACKAGED or self.name == BBC_NEWS


@dataclass(frozen=True)
class Sizes:
    """The most examples taken: private, over all clients; test; public."""

    train: int
    test: int
    public: int


def deal_out(
    source: Source, folder: Path, clients: int, concentration: float | None, seed: int, most: Sizes
) -> SplitData:
    """The data set as files in `folder`: the owner's test and public data, a file for each client.

    A file of the user's own that is smaller gives a fifth each to test and public. Raises DataError when
    the data are not there or too few.
    """
    if concentration is not None and FORMS[source.task].answer is not Answer.CLASS:
        raise DataError(
            f"{source.name} is for {source.task}: shares of classes need one class for every example; "
            "--split iid deals it out evenly"
        )
    if source.name == BBC_NEWS:
        return write_bbc_news(folder, clients, concentration, seed, most.train)
    if source.name in PACKAGED:
        write = PACKAGED[source.name]
        return write(folder, clients, concentration, seed, most.train, most.test, most.public)
    random = numpy.random.default_rng(seeds.derive(seed, "experiment-data"))
    if is_preset(source.name):
        preset, _ = find_preset(source.name)
        labels = preset.labels
        held = _some(load_preset(preset.name, source.root, test=True), most.test, random)
        rest = load_preset(source.name, source.root)
        train, public, _ = _fitting(len(rest), replace(most, test=0), source.name)
    else:
        whole = inspected(read_examples(Path(source.name), source.columns))
        for note in whole.notes:
            log.warning("%s", note)
        if not whole.labelled:
            raise DataError(f"{source.name} has no labels; an experiment needs them to score")
        labels = tuple(sorted(set(names_in(whole, source.task)))) if FORMS[source.task].named else ()
        train, public, test = _fitting(len(whole), most, source.name)
        held, rest = _parted(whole, test, random)
    unlabelled, private = _parted(rest, public, random)
    unlabelled = replace(unlabelled.without_labels(), pairs=None)
    return write_parts(
        folder, labels, held, unlabelled, _some(private, train, random), clients, concentration, random
    )


def _kind_of(examples: Examples) -> TaskKind:
    """The task that examples of this form are for; numbers and names between separators pass for classes."""
    match examples.input:
        case Input.IMAGES:
            return TaskKind.IMAGE_CLASSIFICATION
        case Input.CONVERSATIONS:
            return TaskKind.CAUSAL_LM
        case Input.WORDS:
            return TaskKind.TOKEN_CLASSIFICATION
    several = examples.label_lists is not None
    return TaskKind.TEXT_MULTI_LABEL if several else TaskKind.TEXT_CLASSIFICATION


def _fitting(there: int, most: Sizes, source: str) -> tuple[int, int, int]:
    """Train, public and test as wanted, or less where there are too few examples."""
    if most.train + most.public + most.test <= there:
        return most.train, most.public, most.test
    public, test = min(most.public, there // 5), min(most.test, there // 5)
    train = min(most.train, there - public - test)
    if min(train, public) < 1 or (most.test and not test):
        raise DataError(f"{source} has only {there} examples: too few for private, public and test data")
    return train, public, test


def _parted(examples: Examples, count: int, random: numpy.random.Generator) -> tuple[Examples, Examples]:
    """So many drawn by chance, and the others."""
    drawn, others = draw_indices(len(examples), (count,), examples.source, random)
    return examples.take(sorted(drawn)), examples.take(sorted(others))


def _some(examples: Examples, most: int, random: numpy.random.Generator) -> Examples:
    return _parted(examples, most, random)[0] if len(examples) > most else examples
