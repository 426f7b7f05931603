"""Data sets of every origin are dealt out without overlap, and the same for the same seed."""

from pathlib import Path

import pytest

from common.data.examples import Columns, Examples, read_examples, write_examples
from common.errors import DataError
from experiments.sources import Sizes, Source, deal_out
from tests.conftest import LABELS, write_pictures, write_table

MOST = Sizes(train=60, test=20, public=20)


def dealt(source: Source, folder: Path, seed: int = 1, most: Sizes = MOST) -> dict[str, Examples]:
    data = deal_out(source, folder, 3, None, seed, most)
    assert data.labels == LABELS
    parts = {"test": data.test, **{path.stem: path for path in data.workers}}
    found = {name: read_examples(path, Columns()) for name, path in parts.items()}
    return found | {"public": read_examples(data.public, Columns(label=None))}


def test_a_file_of_ones_own_becomes_test_public_and_clients_parts(tmp_path: Path) -> None:
    table = write_table(tmp_path / "own.csv", 100, 1)
    source = Source(str(table))
    parts = dealt(source, tmp_path / "dealt")
    assert {name: len(p) for name, p in parts.items() if not name.startswith("worker")} == {
        "test": 20,
        "public": 20,
    }
    assert sum(len(p) for name, p in parts.items() if name.startswith("worker")) == 60
    assert parts["public"].label_names is None
    texts = sorted(text for p in parts.values() for text in p.texts or [])
    assert texts == sorted(read_examples(table, Columns()).texts or [])
    again, other = dealt(source, tmp_path / "again"), dealt(source, tmp_path / "other", seed=2)
    assert again["test"].texts == parts["test"].texts != other["test"].texts
    assert source.settings() == {"task.kind": "text-classification"}


def test_a_small_file_gives_a_fifth_each_to_test_and_public(tmp_path: Path) -> None:
    table = write_table(tmp_path / "own.csv", 50, 1)
    parts = dealt(Source(str(table)), tmp_path / "dealt", most=Sizes(2000, 4000, 4000))
    assert (len(parts["test"]), len(parts["public"])) == (10, 10)
    assert sum(len(p) for name, p in parts.items() if name.startswith("worker")) == 30


def test_a_file_of_pictures_is_a_task_of_images(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "own.parquet", 40, 1)
    assert Source(str(pictures)).settings() == {"task.kind": "image-classification"}
    assert deal_out(Source(str(pictures)), tmp_path / "dealt", 2, 1.0, 1, Sizes(10, 10, 10)).labels == LABELS


def test_pairs_stay_pairs_but_public_texts_are_single(tmp_path: Path) -> None:
    path = tmp_path / "pairs.parquet"
    names = [LABELS[i % 2] for i in range(40)]
    write_examples(
        path, Examples("pairs", [f"a {i}" for i in range(40)], [f"b {i}" for i in range(40)], None, names)
    )
    source = Source(str(path), columns=Columns(pair="pair"))
    assert source.settings()["task.pairs"] is True
    data = deal_out(source, tmp_path / "dealt", 2, None, 1, Sizes(10, 10, 10))
    assert read_examples(data.test, Columns(pair="pair")).pairs is not None
    with pytest.raises(DataError):
        read_examples(data.public, Columns(pair="pair", label=None))


def test_a_preset_gives_its_own_test_split(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "nyu-mll" / "glue" / "sst2"
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True)
    for split, count in (("train", 60), ("validation", 12)):
        columns = {"sentence": [f"{split} {i}" for i in range(count)], "label": [i % 2 for i in range(count)]}
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    data = deal_out(Source("sst2", tmp_path / "hub"), tmp_path / "dealt", 2, None, 1, Sizes(30, 10, 20))
    held = read_examples(data.test, Columns())
    assert len(held) == 10 and all(text.startswith("validation") for text in held.texts or [])
    private = [read_examples(path, Columns()) for path in data.workers]
    public = read_examples(data.public, Columns(label=None)).texts or []
    drawn = [text for part in private for text in part.texts or []] + public
    assert len(set(drawn)) == 50 and all(text.startswith("train") for text in drawn)


@pytest.mark.parametrize(("rows", "labelled", "message"), [(4, True, "too few"), (50, False, "'label'")])
def test_data_that_cannot_serve_are_refused(tmp_path: Path, rows: int, labelled: bool, message: str) -> None:
    table = write_table(tmp_path / "own.csv", rows, 1, labelled)
    with pytest.raises(DataError, match=message):
        deal_out(Source(str(table)), tmp_path / "dealt", 2, None, 1, MOST)
