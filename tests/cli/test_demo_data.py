"""The demo's data."""

from pathlib import Path

import numpy
import pytest
from pyarrow import parquet

from cli.demo_data import dirichlet_split, packaged_model, write_bbc_news


@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_a_split_hands_out_every_index_once_and_leaves_nobody_empty(concentration: float) -> None:
    labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    parts = dirichlet_split(labels, 5, concentration, numpy.random.default_rng(0))
    assert sorted(i for part in parts for i in part) == list(range(60))
    assert all(parts)


def test_bbc_news_is_split_without_overlap_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = write_bbc_news(tmp_path / "a", 3, 1.0, seed=7)
    again = write_bbc_news(tmp_path / "b", 3, 1.0, seed=7)
    assert data.labels == ("business", "entertainment", "politics", "sports", "tech")
    sizes = [parquet.read_table(path).num_rows for path in (data.test, data.public, *data.workers)]
    assert sizes[:2] == [425, 600]
    assert sum(sizes) == 2225
    assert parquet.read_table(data.public).column_names == ["text"]
    for ours, theirs in zip(data.workers, again.workers, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_the_packaged_model_is_a_hub_directory() -> None:
    assert (packaged_model() / "model.safetensors").is_file()
