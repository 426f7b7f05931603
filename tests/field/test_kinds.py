"""What people do with each kind of task before a run: init, doctor, split; and with a worker of before."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.data_checks import fits
from cli.main import app
from common.config.file import load_config, parse_config, template
from common.data.examples import Columns, Examples, read_examples
from common.errors import BadMessage, ConfigError, ProtocolMismatch
from common.records import JoinRequest, TaskKind
from common.task_forms import FORMS
from common.transport import wire
from coordinator.storage.store import Store
from tests.conftest import TAGS, labels_of, write_conll, write_data
from tests.contexts import context
from tests.families import write_family
from tests.field.test_large_runs import Serving
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics

NEW = [kind for kind, form in FORMS.items() if form.since == 4]
NER, NUMBERS, SEVERAL = (
    TaskKind.TOKEN_CLASSIFICATION,
    TaskKind.TEXT_REGRESSION,
    TaskKind.TEXT_MULTI_LABEL,
)


def settings(folder: Path, kind: TaskKind, **more: object) -> dict[str, Any]:
    given = {
        "run.directory": str(folder / "run"),
        "model.path": str(write_family(folder / "model", "bert", kind)),
        "task.kind": str(kind),
        "task.labels": labels_of(kind),
        "task.max_length": 32,
        "data.public.path": str(write_data(folder / "public", kind, 10, labelled=False)),
        "data.test.path": str(write_data(folder / "test", kind, 10)),
        "server.listen": "127.0.0.1:0",
    }
    return given | {key.replace("__", "."): value for key, value in more.items()}


def examined(folder: Path, kind: TaskKind, **more: object) -> tuple[int, str]:
    path = folder / "run.toml"
    path.write_text(template(settings(folder, kind, **more)))
    done = CliRunner().invoke(app, ["doctor", "--config", str(path)], env={"COLUMNS": "200"})
    return done.exit_code, done.output


# The configuration.


@pytest.mark.parametrize("kind", TaskKind)
def test_init_writes_what_the_coordinator_takes(kind: TaskKind, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "run.toml"), "--task", str(kind)])
    assert done.exit_code == 0, done.output
    task = load_config(tmp_path / "run.toml").task
    assert task.kind is kind and bool(task.labels) == FORMS[kind].named


def test_init_takes_a_preset_of_numbers(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "run.toml"), "--preset", "stsb"])
    assert done.exit_code == 0, done.output
    task = load_config(tmp_path / "run.toml").task
    assert (task.kind, task.labels, task.pairs) == (NUMBERS, (), True)


@pytest.mark.parametrize(
    ("kind", "task", "told"),
    [
        (
            NUMBERS,
            {"task.labels": ("a", "b")},
            "labels must be left out for text-regression",
        ),
        (NER, {"task.labels": ("O",)}, "labels must name at least 2 classes, got ['O']"),
        (NER, {"task.labels": TAGS, "task.pairs": True}, "pairs must be false for token-classification"),
        (
            SEVERAL,
            {"task.labels": ("a", "b|c")},
            "which stand between classes, got 'b|c'",
        ),
    ],
)
def test_a_task_that_cannot_be_is_told_by_its_rule(kind: TaskKind, task: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({"model.path": "x", "task.kind": str(kind)} | task, "run.toml")
    assert told in str(caught.value)


# The doctor.


@pytest.mark.parametrize("kind", NEW)
def test_the_doctor_reads_the_owners_data(kind: TaskKind, tmp_path: Path) -> None:
    code, output = examined(tmp_path, kind)
    assert code == 0, output
    assert "ok    tokenizer  reads public data and test data" in output


@pytest.mark.parametrize(
    ("kind", "name", "content", "told"),
    [
        (
            NUMBERS,
            "x.csv",
            "text,label\na cat,1\na dog,inf\n",
            "line 3 has label 'inf', which is no finite",
        ),
        (
            SEVERAL,
            "x.csv",
            "text,label\na cat,animals;fire\n",
            "line 2 has label 'fire'; the run knows",
        ),
        (
            NER,
            "x.conll",
            "a O\ncat B-PLANT\n",
            "line 1 has label 'B-PLANT'; the run knows: O",
        ),
        (NER, "x.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}\n', "x.jsonl: line 1 has 2 words and 1 tag"),
        (NER, "x.conll", "a O\ncat\n", "x.conll: line 2 has 1 columns, the first has 2"),
        (NUMBERS, "x.conll", "a O\n", "text-regression needs texts, but"),
    ],
)
def test_the_doctor_names_the_line_of_a_label_that_cannot_be(
    kind: TaskKind, name: str, content: str, told: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    code, output = examined(tmp_path, kind, data__test__path=str(tmp_path / name))
    assert code == 2 and told in output and "Traceback" not in output


@pytest.mark.parametrize("kind", NEW)
def test_the_doctor_compares_a_workers_data_with_the_run(kind: TaskKind, tmp_path: Path) -> None:
    run = context(Store(tmp_path / "run"), {"task.kind": kind, "task.labels": labels_of(kind)})
    spec = run.spec
    run.store.close()
    fine = read_examples(write_data(tmp_path / "fine", kind, 40), Columns())
    (found,) = fits(spec, fine)
    assert (found.found, found.ok, found.notes) == ("their form and labels are the run's", True, ())
    if kind is not NUMBERS:
        fewest = fine.label_names.index("[]") if fine.label_names else 0
        (few,) = fits(spec, fine.take([fewest]))
        assert "no example of" in few.notes[0]
    (odd,) = fits(spec, Examples("x.csv", ["a"], label_names=["something else"]))
    assert not odd.ok and ("something else" in odd.found or "holds texts" in odd.found)


# Splitting.


def split(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["split", *map(str, arguments)])
    return done.exit_code, done.output


def test_sentences_of_words_are_split_and_read_again(tmp_path: Path) -> None:
    table = write_conll(tmp_path / "x.conll", 9)
    code, output = split(table, "--parts", 2, "--out", tmp_path / "out")
    assert code == 0, output
    parts = [read_examples(path, Columns(), NER) for path in sorted((tmp_path / "out").iterdir())]
    whole = read_examples(table, Columns())
    both = [(w, t) for part in parts for w, t in zip(part.words or (), part.label_lists or (), strict=True)]
    assert sorted(both) == sorted(zip(whole.words or (), whole.label_lists or (), strict=True))


def test_shares_of_classes_need_one_class_an_example(tmp_path: Path) -> None:
    table = write_conll(tmp_path / "x.conll", 9)
    code, output = split(table, "--parts", 2, "--dirichlet", 1, "--out", tmp_path / "out")
    assert code == 2 and "shares of classes need one class for every example" in output
    assert not (tmp_path / "out").exists()


# The other side is older, or newer.


@pytest.mark.parametrize("kind", NEW)
async def test_a_worker_of_before_is_told_to_upgrade(kind: TaskKind, tmp_path: Path) -> None:
    serving = Serving(context(Store(tmp_path / "run"), {"task.kind": kind, "task.labels": labels_of(kind)}))
    await serving.start()
    worker = CoordinatorClient(Endpoint(serving.address, 1.0), JoinRequest("w", 1, 3, "old", 5), Metrics())
    try:
        with pytest.raises(ProtocolMismatch) as caught:
            await worker.join()
    finally:
        await worker.close()
        await serving.stop()
    told = f"this run is for {kind}, which protocol 3 does not know: upgrade the worker"
    assert told in str(caught.value)


def test_a_kind_that_this_worker_does_not_know_is_one_line(tmp_path: Path) -> None:
    run = context(Store(tmp_path / "run"))
    message = wire.run_spec_to_pb(run.spec)
    run.store.close()
    message.task.kind = 99
    with pytest.raises(BadMessage) as caught:
        wire.run_spec_from_pb(message)
    assert str(caught.value) == "TaskKind 99 is not known; upgrade this side"


def test_status_of_numbers_is_json_without_a_score_that_is_none(tmp_path: Path) -> None:
    from common.run_status import Evaluation
    from coordinator.campaign.status import reading

    assert reading([Evaluation(1, "fm", float("nan"), 0.25)], NUMBERS) == (
        "mean squared error",
        {"fm": "0.2500"},
    )
    store = Store(tmp_path / "run")
    given = settings(tmp_path, NUMBERS, run__directory=str(tmp_path / "run"))
    store.open_run("run", parse_config(given, "a test").model_dump_json())
    store.commit_evaluation(Evaluation(1, "fm", float("nan"), 0.25))
    store.close()
    done = CliRunner().invoke(app, ["status", "--json", "--run", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    (evaluation,) = json.loads(done.stdout, parse_constant=lambda _: pytest.fail("no JSON"))["evaluations"]
    assert evaluation["loss"] == 0.25 and evaluation["accuracy"] in (None, "nan")
