"""A run is known by what lies at its paths, a worker's update by the data that it was trained on."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.config.run import RunConfig
from common.data.examples import Columns, read_examples
from common.errors import ConfigError, RunFailed
from common.records import ArtifactKind, ArtifactRef, RunSpec, SubModelRef, TrainTask
from common.storage.files import digest_of
from coordinator.storage.store import Store
from experiments.clients import LocalClients
from experiments.simulation import simulate
from tests.conftest import LABELS, write_model, write_table
from tests.contexts import context
from worker.data import PrivateData, Source
from worker.outbox import question_of


def config_of(folder: Path, model: Path, **settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": folder / "public.csv",
        "data.test.path": folder / "test.csv",
        "alignment.steps": 1,
        "rounds.count": 2,
        "rounds.workers": 1,
        "gradient_gap.batches": 0,
        "compute.threads": 1,
    }
    return parse_config(values | {k.replace("__", "."): v for k, v in settings.items()}, "a test")


class Dies(LocalClients):
    """Breaks off in the second round."""

    def __init__(self) -> None:
        self.rounds = 0

    def train(self, *arguments: Any) -> Any:
        self.rounds += 1
        if self.rounds == 2:
            raise RunFailed("broken off")
        return super().train(*arguments)


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder with model, data and a run that broke off after its first round."""
    write_model(tmp_path / "model")
    write_table(tmp_path / "public.csv", 32, 90, labelled=False)
    write_table(tmp_path / "test.csv", 32, 91)
    write_table(tmp_path / "worker.csv", 20, 1)
    with pytest.raises(RunFailed):
        go_on(tmp_path, config_of(tmp_path, tmp_path / "model"), Dies())
    return tmp_path


def go_on(folder: Path, config: RunConfig, clients: LocalClients | None = None) -> None:
    data = {"w": read_examples(folder / "worker.csv", Columns())}
    simulate(config, data, trained_by=clients)


def other_weights(model: Path) -> None:
    """Same names and shapes: a re-download, a moved revision of the hub."""
    weights = load_file(model / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, model / "model.safetensors", {"format": "pt"})


def edited_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace('"cat"', '"kitten"'))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda f: other_weights(f / "model"),
            "foundation model has another content (model.safetensors)",
        ),
        (
            lambda f: edited_tokenizer(f / "model"),
            "foundation model has another content (tokenizer.json)",
        ),
        (
            lambda f: write_table(f / "public.csv", 32, 5, labelled=False),
            "public data has another content",
        ),
        (lambda f: write_table(f / "test.csv", 32, 5), "the test data has another content"),
    ],
    ids=["weights", "tokenizer", "public", "test"],
)
def test_a_run_does_not_go_on_with_something_else_in_the_same_place(
    begun: Path, change: Any, told: str
) -> None:
    change(begun)
    with pytest.raises(ConfigError) as error:
        go_on(begun, config_of(begun, begun / "model"))
    assert told in str(error.value)


def test_everything_moved_is_the_same_run(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    there = tmp_path_factory.mktemp("elsewhere")
    for name in ("model", "run", "worker.csv"):
        shutil.move(begun / name, there / name)
    for name in ("public.csv", "test.csv"):
        shutil.move(begun / name, there / f"renamed-{name}")
    (there / "model" / "README.md").write_text("A card is not the model.")
    moved = {f"data__{name}__path": there / f"renamed-{name}.csv" for name in ("public", "test")}
    go_on(there, config_of(there, there / "model", **moved))
    # Where it was moved to is where export looks.
    result = CliRunner().invoke(app, ["export", str(there / "run"), "--out", str(there / "out")])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", ["export", "audit"])
def test_a_run_is_not_exported_or_audited_with_another_model(begun: Path, command: str) -> None:
    shutil.copytree(begun / "model", begun / "kept")
    other_weights(begun / "model")
    arguments = [command, str(begun / "run"), *(["--out", str(begun / "out")] if command == "export" else [])]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "the foundation model has another content (model.safetensors)" in result.output
    assert not (begun / "out").exists()
    # The owner has another copy, and says where.
    result = CliRunner().invoke(app, [*arguments, "--model", str(begun / "kept")])
    assert result.exit_code == 0, result.output


def test_mended_labels_are_other_data_though_as_many(tmp_path: Path) -> None:
    path = write_table(tmp_path / "private.csv", 12, 1)
    before = PrivateData.read(Source(path))
    path.write_text(path.read_text().replace("animals", "weather", 1))
    after = PrivateData.read(Source(path))
    assert len(before) == len(after)
    assert before.digest != after.digest
    assert PrivateData.read(Source(path.rename(tmp_path / "moved.csv"))).digest == after.digest


def test_an_update_answers_for_the_data_that_it_was_trained_on(tmp_path: Path) -> None:
    run: RunSpec = context(Store(tmp_path / "run")).spec
    ref = ArtifactRef(ArtifactKind.ADAPTER, "0" * 64, 1)
    task = TrainTask(1, SubModelRef("{}", (), ref, (), ()), ref, 1.0, (), 60.0, 1)
    asked = {question_of(run, "w", data, task) for data in ("a", "b")}
    assert len(asked) == 2
    assert question_of(run, "w", "a", replace(task, attempt=2)) in asked


def test_digests_of_folders_see_names_and_contents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "cat").mkdir(parents=True)
        (tmp_path / name / "cat" / "a.png").write_bytes(b"1")
    same = digest_of([tmp_path / "one"])
    assert digest_of([tmp_path / "two"]) == same
    (tmp_path / "two" / "cat").rename(tmp_path / "two" / "dog")
    assert digest_of([tmp_path / "two"]) != same
