"""The owner's own data: public data without labels, test data with them."""

from dataclasses import replace

from common.config.run import RunConfig
from common.config.task import DataSource, TestData
from common.data.examples import Columns, Examples, read_examples
from common.data.presets import load_preset


def read_source(source: DataSource, config: RunConfig) -> Examples:
    """The owner's test data with labels, or public data without. Raises DataError."""
    kind, is_test = config.task.kind, isinstance(source, TestData)
    if source.preset is not None:
        found = load_preset(source.preset, config.data.root, test=is_test, labelled=is_test)
        return found.require(kind) if is_test else replace(found, pairs=None).require(kind)
    assert source.path is not None
    columns = Columns(text=source.text_column, image=source.image_column, label=None)
    if isinstance(source, TestData):
        columns = replace(columns, pair=source.pair_column, label=source.label_column)
    return read_examples(source.path, columns, kind)
