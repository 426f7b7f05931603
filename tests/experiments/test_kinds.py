"""Experiments on presets, and on data of every kind of task."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.data.answers import require_answers
from common.data.examples import Columns, read_examples
from common.data.presets import PRESETS
from common.errors import DataError
from common.records import TaskKind
from experiments.catalogue import RATIOS
from experiments.sources import Sizes, Source, deal_out
from tests.conftest import TAGS, sentences, write_conll, write_pictures
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


def test_numbers_have_no_accuracy_to_compare() -> None:
    with pytest.raises(DataError, match="stsb is for text-regression: experiments compare accuracies"):
        Source("stsb").settings()


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
