"""The owner's data as the configuration names them, and what their log says of them."""

import logging
from pathlib import Path

import pytest

from common.config.file import parse_config
from coordinator.modelling.data import examples_of, read_source


def test_what_is_left_out_of_the_owners_data_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "test.csv").write_text("text,label\na,x\n,y\nb,y\n")
    (tmp_path / "public.csv").write_text("text\na\n")
    settings = {
        "model.path": "none",
        "task.labels": ("x", "y"),
        "data.test.path": str(tmp_path / "test.csv"),
        "data.public.path": str(tmp_path / "public.csv"),
    }
    config = parse_config(settings, "a test")
    assert config.data.test is not None and config.data.public is not None
    with caplog.at_level(logging.WARNING):
        assert read_source(config.data.test, config).label_names == ["x", "y"]
        assert read_source(config.data.public, config).label_names is None
    assert caplog.messages == [f"{tmp_path}/test.csv: 1 row of 3 left out, without a text: line 3"]
    # The doctor tells the same itself.
    assert examples_of(config.data.test, config).notes == tuple(caplog.messages)
