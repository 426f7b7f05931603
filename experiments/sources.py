"""Where an experiment's data come from: a package, a preset, or a file of the user's own."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
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

    def settings(self) -> dict[str, Any]:
        """What a run on it is to be told of its task, by keys of run.toml. Raises DataError."""
        pairs = False
        if self._packaged:
            images = self.name == "fashion-mnist"
            kind = TaskKind.IMAGE_CLASSIFICATION if images else TaskKind.TEXT_CLASSIFICATION
        elif is_preset(self.name):
            preset, _ = find_preset(self.name)
            kind, pairs = preset.kind, preset.columns.pair is not None
            if FORMS[kind].answer is Answer.NUMBER:
                # Before anything is run, and not when the first score is to be told.
                raise DataError(
                    f"{preset.name} is for {kind}: experiments compare accuracies, and it has none"
                )
        else:
            examples = read_examples(Path(self.name), self.columns)
            kind, pairs = _kind_of(examples), examples.pairs is not None
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
    if source.name == BBC_NEWS:
        return write_bbc_news(folder, clients, concentration, seed)
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
        labels = tuple(sorted(set(names_in(whole, _kind_of(whole)))))
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
