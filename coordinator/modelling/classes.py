"""What clients tell of their classes, brought together to those of the run."""

from collections import Counter
from collections.abc import Sequence

from pydantic import ValidationError

from common.config.file import explain
from common.config.run import RunConfig
from common.data.answers import names_in
from common.data.labels import taken_for_one
from common.errors import DataError, RunFailed
from common.listing import first_few
from common.records import ClassCounts
from coordinator.modelling.data import read_source
from coordinator.storage.class_counts import StoredClasses

_INSTEAD = "; mend the data, or list the classes in task.labels"


def agreed(config: RunConfig, told: Sequence[ClassCounts]) -> StoredClasses:
    """The run's labels, and how many answers of each the clients have together. Blocking: reads test data.

    Labels that are asked for are those of the clients and of the owner's test data: numbers by size, before
    names by alphabet. Raises RunFailed when these are no classes that can be told apart; DataError.
    """
    sums: Counter[str] = Counter()
    for client in told:
        sums.update(client.counts)
    labels = config.task.labels
    if config.task.asks:
        tested: set[str] = set()
        if config.data.test is not None:
            tested = set(names_in(read_source(config.data.test, config), config.task.kind))
        labels = tuple(sorted(sums.keys() | tested, key=_order))
        if alike := taken_for_one(labels):
            raise RunFailed(f"the workers' classes hold some that look like one: {alike}{_INSTEAD}")
        try:
            config.with_labels(labels)
        except ValidationError as error:
            raise RunFailed(
                f"the workers' classes are none for {config.task.kind}: {explain(error, RunConfig)}{_INSTEAD}"
            ) from None
    elif unknown := sorted(sums.keys() - set(labels)):
        raise DataError(f"clients have label {unknown[0]!r}; the run knows: {first_few(labels)}")
    counts = tuple(sums[label] for label in labels)
    return StoredClasses(labels, counts, sum(client.examples for client in told), len(told))


def _order(label: str) -> tuple[bool, float, str]:
    try:
        number = float(label)
    except ValueError:
        return True, 0.0, label
    return (False, number, label) if number == number else (True, 0.0, label)
