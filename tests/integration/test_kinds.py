"""Runs of every kind of task on texts, by real processes, until something is learned."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from transformers import AutoModelForTokenClassification
from typer.testing import CliRunner

from cli.main import app
from common.data.batches import TaggedDataset
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples, write_examples
from common.data.processors import load_processor
from common.model.entities import EntityCounts, entities_of
from common.records import Phase, TaskKind
from tests.conftest import TAGS, labels_of, sentences, write_data
from tests.families import write_family
from tests.integration.federation import Federation, federation

NER, NUMBERS, SEVERAL = (
    TaskKind.TOKEN_CLASSIFICATION,
    TaskKind.TEXT_REGRESSION,
    TaskKind.TEXT_MULTI_LABEL,
)
# Enough for a small random model to learn a pattern.
SETTINGS: dict[str, Any] = {
    "rounds__workers": 2,
    "rounds__minimum": 2,
    "rounds__count": 6,
    "training__epochs": 6,
    "training__learning_rate": 2e-3,
    "training__head_learning_rate": 5e-3,
    "adapter__targets": "attention+ffn",
    "gradient_gap__batches": 1,
    "sub_fm__drop_ratio": 0.25,
}
EXAMPLES = 200


def start_on(running: Federation, number: int, address: str, data: Path) -> None:
    """Start a worker on this file."""
    name = f"worker-{number}"
    arguments = ["--coordinator", address, "--data", str(data), "--name", name]
    folder = str(running.folder / name)
    running.start(name, "worker", *arguments, "--folder", folder, "--threads", "1")


def own_data(running: Federation, number: int) -> Path:
    """A worker's own examples, in the usual form."""
    return write_data(running.folder / f"own-{number}", running.kind, EXAMPLES, number)


def exported(running: Federation, out: Path, *extra: str) -> Path:
    result = CliRunner().invoke(app, ["export", str(running.run), "--out", str(out), *extra])
    assert result.exit_code == 0, result.output
    return out


def entity_f1(model: torch.nn.Module, data: TaggedDataset) -> float:
    counts = EntityCounts()
    with torch.no_grad():
        for batch in data.in_order(16):
            assert batch.labels is not None
            counts += entities_of(model(**batch.inputs).logits, batch.labels, TAGS)
    return counts.f1


@pytest.mark.slow
def test_entities_in_conlls_columns_are_learned(tmp_path: Path) -> None:
    """The files of one worker are CoNLL's, those of the other JSON lists with the hub's names."""
    model = write_family(tmp_path / "model", "bert", NER)
    with federation(tmp_path / "run", model, NER, **SETTINGS) as running:
        address = running.start_coordinator()["address"]
        start_on(running, 1, address, own_data(running, 1))
        found = read_examples(own_data(running, 2), Columns())
        rows = [
            {"id": i, "tokens": words, "ner_tags": tags}
            for i, (words, tags) in enumerate(zip(found.words or (), found.label_lists or (), strict=True))
        ]
        lists = running.folder / "lists.jsonl"
        lists.write_text("".join(json.dumps(row) + "\n" for row in rows))
        start_on(running, 2, address, lists)
        running.wait()
    status = running.status()
    assert status.phase is Phase.FINISHED
    test = read_examples(write_data(tmp_path / "unseen", NER, 80, 77), Columns())
    data = encode(load_processor(model, NER), test, NER, 16, TAGS)
    assert isinstance(data, TaggedDataset)
    merged = AutoModelForTokenClassification.from_pretrained(
        exported(running, tmp_path / "merged", "--merge")
    ).eval()
    assert merged.config.id2label == dict(enumerate(TAGS))
    assert entity_f1(merged, data) > 0.9
    base = AutoModelForTokenClassification.from_pretrained(model).eval()
    assert entity_f1(base, data) < 0.3
    tuned = PeftModel.from_pretrained(base, exported(running, tmp_path / "adapter")).eval()
    assert entity_f1(tuned, data) == entity_f1(merged, data)


@pytest.mark.slow
def test_several_classes_of_a_text_are_learned(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", SEVERAL)
    with federation(tmp_path / "run", model, SEVERAL, **SETTINGS) as running:
        address = running.start_coordinator()["address"]
        start_on(running, 1, address, own_data(running, 1))
        # Lists in Parquet instead of names between semicolons.
        found = read_examples(own_data(running, 2), Columns())
        lists = [tuple(n for n in labels_of(SEVERAL) if n in name) for name in found.label_names or ()]
        assert () in lists and labels_of(SEVERAL) in lists
        table = running.folder / "lists.parquet"
        write_examples(table, Examples("lists", found.texts, label_lists=lists))
        start_on(running, 2, address, table)
        running.wait()
    scores = [e.accuracy for e in running.status().evaluations if e.model == "fm"]
    assert scores[-1] > 0.65 > 0.3 > scores[0], scores


@pytest.mark.slow
def test_numbers_are_learned(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", NUMBERS)
    with federation(tmp_path / "run", model, NUMBERS, **SETTINGS) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2):
            start_on(running, number, address, own_data(running, number))
        running.wait()
    status = running.status()
    with (running.folder / "test.csv").open(newline="") as file:
        numbers = [float(row["label"]) for row in csv.DictReader(file)]
    errors = [e.loss for e in status.evaluations if e.model == "fm"]
    # Better than to foretell the mean, which would err by the variance.
    assert errors[-1] < 0.5 * float(numpy.var(numbers)) < errors[0], errors
    assert "mean squared error of the FM" in running.log("coordinator")
    told = CliRunner().invoke(app, ["status", "--run", str(running.run)])
    assert told.exit_code == 0 and "mean squared error" in told.output and "nan" not in told.output.lower()


def write_stsb(root: Path) -> Path:
    """Pairs are alike by the share of telling words that both have; scores from 0 to 5."""
    folder = root / "nyu-mll" / "glue" / "stsb"
    folder.mkdir(parents=True)
    for split, seed in (("train", 1), ("validation", 2)):
        first, kinds = sentences(60, seed)
        second, others = sentences(60, seed + 10)
        scores = [5.0 if a == b else 0.0 for a, b in zip(kinds, others, strict=True)]
        columns = {"sentence1": first, "sentence2": second, "label": pyarrow.array(scores, pyarrow.float32())}
        parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return root


@pytest.mark.slow
def test_a_run_on_pairs_with_numbers_from_a_preset(tmp_path: Path) -> None:
    root = write_stsb(tmp_path / "hub")
    model = write_family(tmp_path / "model", "bert", NUMBERS)
    settings = {
        "task__pairs": True,
        "task__max_length": 32,
        "data__root": str(root),
        "data__test__path": None,
        "data__test__preset": "stsb",
        "rounds__workers": 1,
        "rounds__minimum": 1,
        "rounds__count": 2,
    }
    with federation(tmp_path / "run", model, NUMBERS, **settings) as running:
        address = running.start_coordinator()["address"]
        arguments = ["--coordinator", address, "--preset", "stsb", "--data-root", str(root)]
        folder = str(running.folder / "w")
        running.start("worker-1", "worker", *arguments, "--name", "w", "--folder", folder, "--threads", "1")
        running.wait()
    status = running.status()
    assert status.phase is Phase.FINISHED
    losses = [e.loss for e in status.evaluations if e.model == "fm"]
    assert losses[-1] < losses[0], losses


@pytest.mark.parametrize(
    ("kind", "content", "told"),
    [
        (NUMBERS, "text,label\na cat,1\na dog,many\n", "line 3 has label 'many', which is no finite number"),
        (
            SEVERAL,
            "text,label\na cat,animals|snow\n",
            "line 2 has label 'snow'; the run knows: animals, weather",
        ),
        (NER, "text,label\na cat,animals\n", "holds texts, but the run is for token-classification"),
    ],
)
def test_a_worker_whose_labels_are_not_the_runs_ends_with_one_line(
    kind: TaskKind, content: str, told: str, tmp_path: Path
) -> None:
    model = write_family(tmp_path / "model", "bert", kind)
    with federation(tmp_path / "run", model, kind) as running:
        address = running.start_coordinator()["address"]
        data = running.folder / "odd.csv"
        data.write_text(content)
        arguments = ["--coordinator", address, "--data", str(data), "--name", "w"]
        process = running.start("w", "worker", *arguments, "--folder", str(tmp_path / "w"))
        for _ in running.until("the worker ends"):
            if process.poll() is not None:
                break
        log = running.log("w")
        assert process.returncode == 2 and told in log and "Traceback" not in log
