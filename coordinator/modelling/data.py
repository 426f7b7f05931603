"""The owner's test and public data, read as the configuration says."""

import logging
from dataclasses import replace

from common.config.run import RunConfig
from common.config.task import DataSource, TestData
from common.data.examples import Columns, Examples, read_examples
from common.data.inspection import inspected
from common.data.presets import load_preset

log = logging.getLogger(__name__)


def read_source(source: DataSource, config: RunConfig) -> Examples:
    """The owner's test data with labels, or public data without; what is odd about them is logged.

    Raises DataError.
    """
    examples = inspected(examples_of(source, config))
    for note in examples.notes:
        log.warning("%s", note)
    return examples


def examples_of(source: DataSource, config: RunConfig) -> Examples:
    """The same, not looked at yet. Raises DataError."""
    kind, is_test = config.task.kind, isinstance(source, TestData)
    if source.preset is not None:
        found = load_preset(source.preset, config.data.root, test=is_test, labelled=is_test)
        return found.require(kind) if is_test else replace(found, pairs=None).require(kind)
    assert source.path is not None
    columns = Columns(text=source.text_column, image=source.image_column, label=None)
    if isinstance(source, TestData):
        columns = replace(columns, pair=source.pair_column, label=source.label_column)
    return read_examples(source.path, columns, kind)
