"""Presets are listed, and a data set is dealt out to workers."""

import io
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
import typer
from click.testing import Result
from PIL import Image
from pyarrow import parquet
from typer.testing import CliRunner

from cli.datasets import datasets, split
from common.data.examples import Columns, Examples, read_examples, write_examples
from common.data.presets import PRESETS
from tests.chats import write_chats

app = typer.Typer()
app.command()(datasets)
app.command()(split)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "160"})


def parts_in(folder: Path, columns: Columns | None = None) -> list[Examples]:
    paths = sorted(folder.glob("part-*.parquet"), key=lambda path: int(path.stem.partition("-")[2]))
    return [read_examples(path, columns or Columns()) for path in paths]


def texts_of(parts: list[Examples]) -> list[str]:
    return [text for part in parts for text in part.texts or ()]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 texts, half of them of class a, a quarter b, a quarter c."""
    names = ["a", "b", "a", "c"] * 15
    path = tmp_path / "data.parquet"
    write_examples(path, Examples("x", [f"text {i}" for i in range(60)], label_names=names))
    return path


def test_every_preset_is_listed_with_its_task_home_and_splits() -> None:
    result = run("datasets")
    assert result.exit_code == 0
    for preset in PRESETS.values():
        assert f" {preset.name} " in result.stdout and preset.hub_id in result.stdout
    assert "validation_matched *" in result.stdout and "test_matched" not in result.stdout


def test_equal_shares_hold_every_example_once(table: Path, tmp_path: Path) -> None:
    result = run("split", table, "--parts", 7, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    parts = parts_in(tmp_path / "out")
    assert sorted(len(part) for part in parts) == [8, 8, 8, 9, 9, 9, 9]
    assert sorted(texts_of(parts)) == sorted(f"text {i}" for i in range(60))
    whole = dict(zip([f"text {i}" for i in range(60)], ["a", "b", "a", "c"] * 15, strict=True))
    for part in parts:
        assert [whole[text] for text in part.texts or ()] == part.label_names
    assert f"{tmp_path / 'out' / 'part-1.parquet'}: 9 examples" in result.stdout


def test_a_low_concentration_gives_uneven_classes_and_a_high_one_even(table: Path, tmp_path: Path) -> None:
    run("split", table, "--parts", 3, "--dirichlet", 0.05, "--out", tmp_path / "uneven")
    run("split", table, "--parts", 3, "--dirichlet", 1e6, "--out", tmp_path / "even")
    even = [Counter(part.label_names) for part in parts_in(tmp_path / "even")]
    assert even == [Counter(a=10, b=5, c=5)] * 3
    uneven = [Counter(part.label_names) for part in parts_in(tmp_path / "uneven")]
    assert sum(uneven, Counter()) == Counter(a=30, b=15, c=15)
    assert max(count["a"] for count in uneven) > 20


def test_the_seed_decides_the_split_and_the_limit_draws_by_chance(table: Path, tmp_path: Path) -> None:
    drawn = {}
    for name, seed in {"first": 1, "again": 1, "other": 2}.items():
        options = ["--limit", 20, "--seed", seed, "--out", tmp_path / name]
        assert run("split", table, "--parts", 2, *options).exit_code == 0
        drawn[name] = texts_of(parts_in(tmp_path / name))
    assert drawn["first"] == drawn["again"] != drawn["other"]
    assert len(set(drawn["first"])) == 20
    assert sorted(drawn["first"]) != sorted(f"text {i}" for i in range(20))


def test_pairs_keep_together_under_the_usual_names(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("q\ts\ty\n" + "".join(f"q{i}\ts{i}\t{i % 2}\n" for i in range(6)))
    names = ["--text-column", "q", "--pair-column", "s", "--label-column", "y"]
    result = run("split", tmp_path / "x.tsv", "--parts", 2, *names, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for part in parts_in(tmp_path / "out", Columns(pair="pair")):
        assert [text[1:] for text in part.texts or ()] == [pair[1:] for pair in part.pairs or ()]
    assert parquet.read_schema(tmp_path / "out" / "part-2.parquet").names == ["text", "pair", "label"]


def test_a_folder_of_images_becomes_files_that_hold_them(tmp_path: Path) -> None:
    for name, shade in {"cat/1.png": 1, "cat/2.png": 2, "dog/1.png": 3, "dog/2.png": 4}.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), shade).save(path)
    result = run("split", tmp_path / "pictures", "--parts", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    found = {}
    for part in parts_in(tmp_path / "out"):
        for image, label in zip(part.images or (), part.label_names or (), strict=True):
            assert isinstance(image, bytes)
            found[Image.open(io.BytesIO(image)).getpixel((0, 0))] = label
    assert found == {1: "cat", 2: "cat", 3: "dog", 4: "dog"}


def test_a_preset_is_split_by_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "nyu-mll" / "glue" / "sst2"
    folder.mkdir(parents=True)
    rows = pyarrow.table({"sentence": ["x", "y"], "label": [0, 1], "idx": [0, 1]})
    parquet.write_table(rows, folder / "train-00000-of-00001.parquet")
    options = ["--parts", 1, "--data-root", tmp_path / "hub", "--out", tmp_path / "out"]
    assert run("split", "sst2", *options).exit_code == 0
    (part,) = parts_in(tmp_path / "out")
    assert (part.texts, part.label_names) == (["x", "y"], ["negative", "positive"])


def test_conversations_are_dealt_out_as_they_are(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "x.jsonl", 5)
    result = run("split", path, "--parts", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    parts, whole = parts_in(tmp_path / "out"), read_examples(path, Columns())
    found = [chat for part in parts for chat in part.conversations or ()]
    assert len(found) == 5 and all(chat in (whole.conversations or ()) for chat in found)
    assert parquet.read_schema(tmp_path / "out" / "part-1.parquet").names == ["messages"]


def test_unlabelled_texts_stay_so(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    result = run("split", tmp_path / "x.jsonl", "--parts", 2, "--unlabelled", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert sorted(texts_of(parts_in(tmp_path / "out", Columns(label=None)))) == ["a", "b"]
    assert parquet.read_schema(tmp_path / "out" / "part-1.parquet").names == ["text"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", 61], "60 examples cannot be split into 61 parts"),
        (["--parts", 2, "--limit", 61], "has 60 examples, fewer than --limit 61"),
        (["--parts", 2, "--dirichlet", 0], "the Dirichlet concentration must be > 0 and finite, got 0"),
        (["--parts", 2, "--dirichlet", "nan"], "the Dirichlet concentration must be > 0 and finite"),
        (["--parts", 2, "--dirichlet", 1, "--unlabelled"], "it does not go with --unlabelled"),
        (["--parts", 2, "--label-column", "gold"], "has no column 'gold'; its columns are: text, label"),
    ],
)
def test_what_cannot_be_split_is_one_line_and_writes_nothing(
    table: Path, tmp_path: Path, options: list[object], message: str
) -> None:
    result = run("split", table, *options, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_parts_of_another_split_are_not_mixed_in(table: Path, tmp_path: Path) -> None:
    assert run("split", table, "--parts", 3, "--out", tmp_path / "out").exit_code == 0
    result = run("split", table, "--parts", 2, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "holds parts already" in result.stderr
    assert len(parts_in(tmp_path / "out")) == 3


@pytest.mark.parametrize(
    ("source", "message"),
    [("sst", "there is no preset 'sst'"), ("gone.csv", "gone.csv: no such data file"), ("x/gone", "no such")],
)
def test_a_source_that_is_not_there_says_so(tmp_path: Path, source: str, message: str) -> None:
    result = run("split", source, "--parts", 2, "--out", tmp_path / "out")
    assert result.exit_code == 2 and message in result.stderr
