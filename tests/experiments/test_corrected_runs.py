"""A run that is corrected after its last round: what is kept, scored and exported, and what workers see."""

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config, parse_config
from common.errors import ConfigError, Stopped
from common.storage.tensors import TensorFile
from coordinator.federation.authorization import PUBLISHED
from coordinator.modelling.correcting import CORRECTION_FILE
from coordinator.owner.export import export
from coordinator.storage import retention
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import LABELS, write_table
from tests.experiments.test_simulation import data, digest, run
from tests.integration.federation import federation

CORRECTED: dict[str, Any] = {"correction.steps": 20, "correction.least_gain": 0.0, "correction.held_out": 16}


def with_test(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {"data.test.path": write_table(folder / "test.csv", 32, 91), **settings}


@pytest.fixture(scope="module")
def corrected(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("corrected")
    return run(folder, model_folder, with_test(folder, CORRECTED))


def file_of(directory: Path) -> str:
    store = Store.existing(directory)
    try:
        correction = store.corrections.of(2)
        assert correction is not None and correction.adapter is not None
        return correction.adapter.sha256
    finally:
        store.close()


def test_it_is_scored_beside_the_fm_and_workers_adapter_is_as_without(
    corrected: Path, tmp_path: Path, model_folder: Path
) -> None:
    assert digest(corrected) == digest(run(tmp_path, model_folder, with_test(tmp_path, {})))
    store = Store.existing(corrected)
    correction = store.corrections.of(2)
    assert correction is not None and 0 < correction.after < correction.before
    assert [e.model for e in store.evaluations() if e.round == 2] == ["corrected", "fm", "sub_fm"]
    told = {e.kind: e for e in store.events.all()}
    assert told["corrected"].values == {
        "divergence_before": correction.before,
        "divergence_after": correction.after,
    }
    assert "correction_left_out" not in told
    assert correction.adapter is not None and correction.adapter.kind not in PUBLISHED
    assert correction.adapter in [artifact for artifact, _ in retention._needed(store)]
    assert not (corrected / CORRECTION_FILE).exists()
    store.close()


def test_the_same_inputs_give_the_same_bits(corrected: Path, tmp_path: Path, model_folder: Path) -> None:
    assert file_of(run(tmp_path, model_folder, with_test(tmp_path, CORRECTED))) == file_of(corrected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    {
        "teacher sub-fm": {"correction.teacher": "sub-fm"},
        "teacher rounds": {"correction.teacher": "rounds", "correction.learning_rate": 1e-4},
        "rate": {"correction.learning_rate": 1e-4},
        "rate of the head": {"correction.head_learning_rate": 1e-4},
        "warm-up": {"correction.warmup": 0.5},
        "batch": {"correction.batch_size": 4},
    }.items(),
)
def test_every_setting_changes_it(
    name: str, settings: dict[str, Any], corrected: Path, tmp_path: Path, model_folder: Path
) -> None:
    assert file_of(run(tmp_path, model_folder, CORRECTED | settings)) != file_of(corrected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"sub_fm.construction": "layer-drop"},
        {"adapter.targets": "attention+ffn"},
        {"adapter.targets": "none"},
        {"adapter.targets": "attention+neurons"},
        {"aggregation.lora": "exact"},
        {"aggregation.lora": "freeze-a"},
    ],
    ids=lambda s: next(iter(s.values())),
)
def test_other_constructions_and_adapters_are_corrected_too(
    settings: dict[str, Any], tmp_path: Path, model_folder: Path
) -> None:
    directory = run(tmp_path, model_folder, with_test(tmp_path, CORRECTED | settings))
    store = Store.existing(directory)
    correction = store.corrections.of(2)
    assert correction is not None and correction.after < correction.before
    store.close()
    merged = export(directory, tmp_path / "merged", merge=True)
    plain = export(directory, tmp_path / "plain", merge=True, corrected=False)
    name = "model.safetensors"
    weights = [load_file(next(p for p in files if p.name == name)) for files in (merged, plain)]
    assert any(not weights[0][key].equal(weights[1][key]) for key in weights[0])


def test_an_export_is_the_corrected_model_unless_it_is_not_wanted(corrected: Path, tmp_path: Path) -> None:
    store = Store.existing(corrected)
    correction = store.corrections.of(2)
    assert correction is not None and correction.adapter is not None
    own = TensorFile(store.artifacts.path(correction.adapter.sha256)).load()
    last = TensorFile(store.artifacts.path(digest(corrected))).load()
    store.close()
    for options, wanted in (([], own), (["--uncorrected"], last)):
        out = tmp_path / f"out{len(options)}"
        result = CliRunner().invoke(app, ["export", str(corrected), "--out", str(out), *options])
        assert result.exit_code == 0, result.output
        exported = load_file(out / "adapter_model.safetensors")
        assert all(exported[name].equal(tensor) for name, tensor in wanted.items())


def test_what_helps_too_little_is_left_out_by_name(tmp_path: Path, model_folder: Path) -> None:
    settings = with_test(tmp_path, CORRECTED | {"correction.least_gain": 1.0})
    directory = run(tmp_path, model_folder, settings)
    store = Store.existing(directory)
    correction = store.corrections.of(2)
    assert correction is not None and correction.adapter is None
    assert "corrected" not in {e.model for e in store.evaluations()}
    assert "correction_left_out" in {e.kind for e in store.events.all()}
    store.close()
    assert export(directory, tmp_path / "out", merge=False)


@pytest.mark.slow
@pytest.mark.parametrize("at", [7, 13], ids=["before a checkpoint", "after one"])
def test_interrupted_it_goes_on_to_the_same_bits(
    at: int, corrected: Path, tmp_path: Path, model_folder: Path
) -> None:
    steps = 0

    def stop(what: str, step: int, of: int) -> None:
        nonlocal steps
        steps += of == 20
        if steps == at:
            raise Stopped("stopped")

    settings = with_test(tmp_path, CORRECTED | {"correction.checkpoint_every": 10})
    with pytest.raises(Stopped):
        run(tmp_path, model_folder, settings, on_progress=stop)
    assert (tmp_path / "run" / CORRECTION_FILE).exists() is (at > 10)
    assert file_of(run(tmp_path, model_folder, settings)) == file_of(corrected)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_begun_anew(corrected: Path, tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CORRECTION_FILE).write_bytes(b"half of it")
    assert file_of(run(tmp_path, model_folder, with_test(tmp_path, CORRECTED))) == file_of(corrected)


@pytest.mark.slow
def test_going_back_forgets_it(tmp_path: Path, model_folder: Path) -> None:
    directory = run(tmp_path, model_folder, with_test(tmp_path, CORRECTED))
    before = file_of(directory)
    result = CliRunner().invoke(app, ["rewind", str(directory), "--round", "1"])
    assert result.exit_code == 0, result.output
    store = Store.existing(directory)
    assert store.corrections.of(2) is None
    store.close()
    assert file_of(run(tmp_path, model_folder, with_test(tmp_path, CORRECTED))) == before


def test_without_public_data_it_is_refused_by_name(model_folder: Path) -> None:
    values = {"model.path": str(model_folder), "task.labels": LABELS, "alignment.steps": 0}
    with pytest.raises(ConfigError, match=r"correction\.steps"):
        parse_config(values | CORRECTED, "test")


@pytest.mark.slow
def test_real_services_correct_to_the_same_bits(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, correction__steps=10, correction__least_gain=0.0) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        config = load_config(tmp_path / "run.toml")
        scores = {(e.round, e.model): e.accuracy for e in running.status().evaluations if e.round == 2}
    moved = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    config = config.model_copy(update={"run": moved})
    again = simulate(config, data(tmp_path / "again"), score_every=1, score_sub_fm=True).evaluations
    assert file_of(tmp_path / "simulated") == file_of(tmp_path / "run")
    assert {(e.round, e.model): e.accuracy for e in again if e.round == 2} == scores
    assert len(scores) == 3
