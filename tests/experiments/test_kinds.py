"""Experiments on presets, and on data of every kind of task."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.data.answers import require_answers
from common.data.examples import Columns, read_examples
from common.data.presets import PRESETS
from common.errors import DataError
from common.records import TaskKind
from common.run_status import Evaluation, reported
from experiments.catalogue import EXPERIMENTS, RATIOS
from experiments.clients import LocalClients
from experiments.experiment import conduct
from experiments.headline import title_of
from experiments.report.of_experiment import document
from experiments.sources import Sizes, Source, deal_out
from tests.conftest import TAGS, sentences, write_conll, write_pictures
from tests.experiments.test_experiment import FAST, results, wanted
from tests.families import write_family

CLASSES = [name for name, preset in PRESETS.items() if preset.labels]


def write_copy(root: Path, name: str, count: int = 70) -> Path:
    """A local copy in the hub's layout, of texts that its classes can be told from, or of pictures."""
    preset = PRESETS[name]
    folder = root / preset.hub_id / preset.folder
    folder.mkdir(parents=True)
    for seed, split in enumerate(dict.fromkeys((preset.train, preset.test))):
        texts, kinds = sentences(count, seed)
        labels = [int(kind == "weather") for kind in kinds]
        columns: dict[str, Any] = {preset.columns.label or "label": labels}
        if preset.kind is TaskKind.IMAGE_CLASSIFICATION:
            table = parquet.read_table(write_pictures(root / "pictures.parquet", count, seed))
            columns[preset.columns.image] = table["image"]
        else:
            columns |= {preset.columns.text: texts, "idx": list(range(count))}
        if preset.columns.pair is not None:
            columns[preset.columns.pair] = texts
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return root


def write_numbers(root: Path, count: int = 90) -> Path:
    """STS-B's form: pairs, and a number for each."""
    preset = PRESETS["stsb"]
    folder = root / preset.hub_id / preset.folder
    folder.mkdir(parents=True)
    for seed, split in enumerate(dict.fromkeys((preset.train, preset.test))):
        texts, kinds = sentences(count, seed)
        columns = {preset.columns.text: texts, preset.columns.pair or "pair": texts}
        columns["label"] = [float(kind == "weather") + i % 3 / 10 for i, kind in enumerate(kinds)]
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.parametrize("name", CLASSES)
def test_every_preset_of_classes_is_dealt_out_to_clients(name: str, tmp_path: Path) -> None:
    source = Source(name, write_copy(tmp_path / "hub", name))
    data = deal_out(source, tmp_path / "dealt", 3, 1.0, 1, Sizes(train=40, test=20, public=20))
    preset = PRESETS[name]
    given = {"model.path": "x", "task.labels": data.labels, "data.public.path": data.public}
    config = parse_config(given | {"data.test.path": data.test} | source.settings(), "a test")
    assert (config.task.kind, config.task.labels) == (preset.kind, preset.labels)
    assert config.task.pairs == (preset.columns.pair is not None)
    columns = Columns(pair="pair" if config.task.pairs else None)
    for path in (data.test, *data.workers):
        require_answers(read_examples(path, columns, preset.kind), preset.kind, preset.labels)
    public = read_examples(data.public, Columns(label=None), preset.kind)
    assert len(public) == 20 and not public.labelled and public.pairs is None


@pytest.mark.parametrize(
    ("name", "metric", "title"),
    [
        ("sst2", "accuracy", "accuracy"),
        ("stsb", "pearson", "Pearson correlation"),
        ("cola", "matthews", "Matthews correlation"),
        ("mrpc", "f1:equivalent", "F1 of equivalent"),
    ],
)
def test_runs_are_compared_by_the_presets_own_metric(name: str, metric: str, title: str) -> None:
    assert Source(name).metric == metric and title_of(metric) == title


def test_a_file_of_ones_own_may_be_of_another_task_than_its_form_says(tmp_path: Path) -> None:
    table = tmp_path / "own.csv"
    table.write_text("text,label\n" + "".join(f"text {i},{i / 8}\n" for i in range(60)))
    numbers = Source(str(table), kind=TaskKind.TEXT_REGRESSION)
    assert numbers.settings() == {"task.kind": "text-regression"} and numbers.metric == "pearson"
    dealt = deal_out(numbers, tmp_path / "dealt", 2, None, 1, Sizes(20, 10, 10))
    assert dealt.labels == ()
    require_answers(read_examples(dealt.workers[0], Columns()), TaskKind.TEXT_REGRESSION, ())
    with pytest.raises(DataError, match=r"shares of classes need one class.*--split iid"):
        deal_out(numbers, tmp_path / "dealt", 2, 1.0, 1, Sizes(20, 10, 10))
    with pytest.raises(DataError, match="sst2 is for text-classification, not for text-regression"):
        Source("sst2", kind=TaskKind.TEXT_REGRESSION).settings()
    with pytest.raises(DataError, match="which causal-lm has none of"):
        Source(str(table), kind=TaskKind.CAUSAL_LM).settings()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "metric"),
    [
        ("stsb", TaskKind.TEXT_REGRESSION, "Pearson correlation"),
        ("tags", TaskKind.TOKEN_CLASSIFICATION, "entity F1"),
    ],
)
def test_the_report_is_of_the_tasks_own_metric(
    name: str, kind: TaskKind, metric: str, tmp_path: Path
) -> None:
    source = Source(str(write_conll(tmp_path / "own.conll", 90, 1)))
    if kind is TaskKind.TEXT_REGRESSION:
        source = Source(name, write_numbers(tmp_path / "hub"))
    model = write_family(tmp_path / "model", "bert", kind)
    order = replace(
        wanted(tmp_path, model, "compare", variants=("fedpetuning", "corrected", "head-only")),
        source=source,
        scale=replace(
            EXPERIMENTS["compare"].quick, splits=("iid",), seeds=1, clients=2, sample=2, rounds=1, train=40
        ),
        settings=FAST | {"correction.steps": 2, "correction.least_gain": 0.0},
    )
    conduct(order, Console(quiet=True), LocalClients)
    table = document(order.folder).tables[0]
    assert table.columns[2].title == metric and table.title.lower().startswith(metric.lower())
    cells = results(order.folder)
    for figures in cells.values():
        last = reported(tuple(Evaluation(**score) for score in figures["scores"]))
        key = {"Pearson correlation": "pearson", "entity F1": "entity_f1"}[metric]
        assert last is not None and figures["score"] == pytest.approx(last.metrics[key], nan_ok=True)
    shown = [row[2] for row in table.rows]
    assert any(isinstance(value, float) for value in shown)


def ratio(tmp_path: Path, model: Path, data: str, *extra: str) -> str:
    """`fedpft experiment ratio` with the least and the largest share cut; what it prints."""
    sizes = [
        "--clients",
        "2",
        "--sample",
        "2",
        "--rounds",
        "1",
        "--seeds",
        "1",
        "--train",
        "32",
        "--test",
        "16",
    ]
    settings = ["alignment.steps=2", "task.max_length=24", "sub_fm.saliency_batches=1"]
    only = [f"--only=ratio-{share}" for share in (0.5, 0.95)]
    command = ["experiment", "ratio", "--quick", "--model", str(model), "--data", data, *only, *sizes]
    command += [f"--set={setting}" for setting in settings]
    done = CliRunner().invoke(app, [*command, "--parallel", "1", "--folder", str(tmp_path / "out"), *extra])
    assert done.exit_code == 0, done.output
    cells = sorted(file.parent.name for file in (tmp_path / "out" / "cells").rglob("*.json"))
    assert cells == ["ratio-0.5", "ratio-0.95"]
    return done.output


def test_the_ratios_are_those_that_are_asked_for() -> None:
    assert (RATIOS[0], RATIOS[-1]) == (0.5, 0.95) and list(RATIOS) == sorted(RATIOS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cola", "mrpc", "cifar10"])
def test_the_ratio_on_a_preset(name: str, tmp_path: Path) -> None:
    root = write_copy(tmp_path / "hub", name)
    images = PRESETS[name].kind is TaskKind.IMAGE_CLASSIFICATION
    model = write_family(tmp_path / "model", "vit" if images else "bert", PRESETS[name].kind)
    assert "report: " in ratio(tmp_path, model, name, "--data-root", str(root), "--split", "iid")


@pytest.mark.slow
def test_the_ratio_on_entities_of_ones_own(tmp_path: Path) -> None:
    table = write_conll(tmp_path / "own.conll", 90, 1)
    source = Source(str(table))
    assert source.settings() == {"task.kind": "token-classification"}
    dealt = deal_out(source, tmp_path / "dealt", 2, None, 1, Sizes(20, 10, 10))
    assert dealt.labels == tuple(sorted(TAGS))
    model = write_family(tmp_path / "model", "bert", TaskKind.TOKEN_CLASSIFICATION)
    ratio(tmp_path, model, str(table), "--split", "iid")
