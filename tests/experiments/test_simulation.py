"""Runs in one process: the same bits as real services, and every setting of the method shows in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from common.config.choices import ModelDtype
from common.config.file import load_config, parse_config
from common.config.run import RunConfig
from common.data.examples import Columns, Examples, read_examples
from common.errors import CannotTrain, RunFailed
from common.records import ArtifactKind
from common.storage.tensors import TensorFile, header_of
from coordinator.context import settled
from coordinator.storage.store import Store
from experiments.clients import Clients, LocalClients, Trained
from experiments.simulation import OnProgress, simulate
from tests.conftest import LABELS, write_model, write_table
from tests.integration.federation import federation


def data(folder: Path) -> dict[str, Examples]:
    """What the federation of processes gives its workers."""
    return {
        f"worker-{n}": read_examples(write_table(folder / f"worker-{n}.csv", 30 + 10 * n, n), Columns())
        for n in (1, 2, 3)
    }


def test_the_engine_ends_with_the_adapter_of_real_services(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, adapter__targets="attention+ffn") as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        status = running.status()
        config = load_config(tmp_path / "run.toml")
    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    config = config.model_copy(update={"run": run})
    scores = simulate(config, data(tmp_path / "again"), score_every=1, score_sub_fm=True).evaluations
    assert digest(tmp_path / "simulated") == status.adapter_sha256
    assert {(e.round, e.model): e.accuracy for e in scores} == {
        (e.round, e.model): e.accuracy for e in status.evaluations if e.round > 0
    }
    store = Store(tmp_path / "simulated")
    assert store.gaps() == status.gaps
    store.close()


def digest(directory: Path) -> str:
    store = Store.existing(directory)
    try:
        latest = store.latest_adapter()
        assert latest is not None
        return latest[1].sha256
    finally:
        store.close()


def run(
    folder: Path,
    model: Path,
    settings: dict[str, Any],
    trained_by: Clients | None = None,
    on_progress: OnProgress = lambda what, step, steps: None,
) -> Path:
    """Two rounds of three clients with an alignment between; returns the run's directory."""
    values: dict[str, Any] = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "alignment.steps": 5,
        "realignment.every": 1,
        "realignment.steps": 3,
        "rounds.count": 2,
        "rounds.workers": 3,
        "rounds.minimum": 3,
        # What is measured does not change what comes out.
        "gradient_gap.batches": 0,
        "compute.threads": 1,
    }
    simulate(parse_config(values | settings, "test"), data(folder), on_progress, trained_by=trained_by)
    return folder / "run"


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> str:
    """Digest of the run with default settings."""
    return digest(run(tmp_path_factory.mktemp("usual"), model_folder, {}))


VARIANTS: dict[str, dict[str, Any]] = {
    "layer-drop": {"sub_fm.construction": "layer-drop"},
    "full": {"sub_fm.construction": "full"},
    "drop-ratio": {"sub_fm.drop_ratio": 0.5},
    "keep-first": {"sub_fm.keep_first": 2},
    "attention-rank": {"sub_fm.attention_rank": 3},
    "keep-margin": {"alignment.keep_margin": 0.5},
    "keep-margin, between rounds alone": {"alignment.keep_margin": 0.5, "alignment.steps": 0},
    "activation": {"sub_fm.saliency": "activation"},
    "integrated-gradients": {"sub_fm.saliency": "integrated-gradients"},
    "attention": {"sub_fm.saliency": "attention"},
    "random": {"sub_fm.saliency": "random"},
    "unaligned": {"alignment.steps": 0},
    "closed-form": {"alignment.method": "closed-form"},
    "both": {"alignment.method": "both"},
    "weight-term": {"alignment.weight_term": 1.0},
    "attention-term": {"alignment.attention_term": 1.0},
    "logit-term": {"alignment.logit_term": 1.0},
    "never-realigned": {"realignment.every": 0},
    "lowest": {"realignment.choice": "lowest"},
    "random-choice": {"realignment.choice": "random"},
    "proportion": {"realignment.proportion": 0.8},
    "near-zero": {"realignment.zero_rule": "near-zero", "realignment.zero_threshold": 0.05},
    "attention+ffn": {"adapter.targets": "attention+ffn"},
    "neurons": {"adapter.targets": "neurons"},
    "attention+neurons": {"adapter.targets": "attention+neurons"},
    "neurons, faster": {"adapter.targets": "attention+neurons", "training.neuron_learning_rate": 1e-3},
    "neurons, layer-drop": {"adapter.targets": "neurons", "sub_fm.construction": "layer-drop"},
    "neurons, full": {"adapter.targets": "neurons", "sub_fm.construction": "full"},
    "neurons, median": {"adapter.targets": "neurons", "aggregation.rule": "median"},
    "neurons, krum": {
        "adapter.targets": "neurons",
        "aggregation.rule": "krum",
        "aggregation.byzantine": 0,
    },
    "neurons, ties": {"adapter.targets": "neurons", "aggregation.rule": "ties"},
    "neurons, fedavgm": {"adapter.targets": "neurons", "aggregation.optimizer": "momentum"},
    "rank": {"adapter.rank": 4},
    "proximal": {"training.proximal": 10.0},
    "epochs": {"training.epochs": 2},
    "median": {"aggregation.rule": "median"},
    "trimmed-mean": {"aggregation.rule": "trimmed-mean"},
    "krum": {"aggregation.rule": "krum", "aggregation.byzantine": 0},
    "multi-krum": {"aggregation.rule": "multi-krum", "aggregation.byzantine": 0},
    "fedavgm": {"aggregation.optimizer": "momentum"},
    "fedadam": {"aggregation.optimizer": "adam", "aggregation.learning_rate": 0.01},
    "fedyogi": {"aggregation.optimizer": "yogi", "aggregation.learning_rate": 0.01},
    "ffa-lora": {"aggregation.lora": "freeze-a"},
    "fedex-lora": {"aggregation.lora": "exact"},
}


# One of a kind runs every day; the others are near to it.
EVERYDAY = ("layer-drop", "activation", "closed-form", "lowest", "median")


@pytest.mark.parametrize(
    "name", [n if n in EVERYDAY else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS]
)
def test_every_setting_of_the_method_changes_the_result(
    name: str, usual: str, tmp_path: Path, model_folder: Path
) -> None:
    first = digest(run(tmp_path / "first", model_folder, VARIANTS[name]))
    assert first != usual
    if name in ("random", "random-choice", "fedadam", "fedex-lora", "attention+neurons"):
        assert digest(run(tmp_path / "again", model_folder, VARIANTS[name])) == first


@pytest.mark.slow
def test_a_checkpoint_in_bfloat16_is_held_and_sent_so_and_tuned_in_float32(
    tmp_path: Path, model_folder: Path
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "half")
    settings = {"adapter.targets": "attention+ffn", "gradient_gap.batches": 1}
    store = Store.existing(run(tmp_path / "one", tmp_path / "half", settings))
    stored, latest = store.sub_model(), store.latest_adapter()
    assert stored is not None and latest is not None
    for artifact, wanted in (
        (stored[0].base, {torch.bfloat16}),
        (stored[0].patches[0], {torch.bfloat16, torch.int64}),
        (latest[1], {torch.float32}),
    ):
        assert {spec.dtype for spec in header_of(store.artifacts.path(artifact.sha256)).values()} == wanted
    assert all(0 <= gap.drift < 1 for gap in store.gaps())
    store.close()
    again = run(tmp_path / "two", tmp_path / "half", settings)
    assert digest(again) == digest(tmp_path / "one" / "run")
    exact = run(tmp_path / "exact", tmp_path / "half", settings | {"model.dtype": "float32"})
    assert digest(exact) != digest(again)
    # As a run of before model.dtype: it goes on in what its sub-FM was published in.
    for directory, wanted in ((exact, ModelDtype.FLOAT32), (again, ModelDtype.BFLOAT16)):
        store = Store.existing(directory)
        config = RunConfig.model_validate_json(store.config())
        left_open = config.model.model_copy(update={"dtype": ModelDtype.AUTO})
        config = config.model_copy(update={"model": left_open})
        assert settled(config, store).model.dtype is wanted
        store.close()


@pytest.mark.slow
def test_real_services_in_bfloat16_end_with_the_same_bits(tmp_path: Path, model_folder: Path) -> None:
    settings = {"model__dtype": "bfloat16", "adapter__targets": "attention+ffn"}
    with federation(tmp_path, model_folder, **settings) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        config = load_config(tmp_path / "run.toml")
    there = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    simulate(config.model_copy(update={"run": there}), data(tmp_path / "again"))
    assert digest(tmp_path / "simulated") == digest(config.run.directory)


class OneDiverges(LocalClients):
    """worker-2 always does."""

    def train(self, *arguments: Any) -> Iterator[Trained]:
        for client, update in zip(arguments[-1], super().train(*arguments), strict=True):
            yield CannotTrain("training diverged") if client.client == "worker-2" else update


def test_a_client_whose_training_diverges_is_left_out_as_its_worker_would_be(
    tmp_path: Path, model_folder: Path
) -> None:
    store = Store.existing(run(tmp_path, model_folder, {"rounds.minimum": 2}, OneDiverges()))
    for number in (1, 2):
        assert [u.worker for u in store.accepted(number) or []] == ["worker-1", "worker-3"]
    told = [e for e in store.events.all() if e.kind == "worker_cannot"]
    assert [(e.round, e.worker) for e in told] == [(1, "worker-2"), (2, "worker-2")]
    store.close()


def test_a_simulated_round_that_misses_its_minimum_fails_and_says_why(
    tmp_path: Path, model_folder: Path
) -> None:
    with pytest.raises(RunFailed, match=r"minimum of 3 updates; missing: worker-2 \(training diverged\)"):
        run(tmp_path, model_folder, {}, OneDiverges())


@pytest.mark.slow
def test_relu_counts_zeros_and_gelu_arguments_below_zero(tmp_path: Path, usual: str) -> None:
    """ "auto" is "near-zero" for ReLU, where it agrees with the other rule, and not for GELU."""
    relu = write_model(tmp_path / "relu", activation="relu")
    rules = ("auto", "near-zero", "pre-activation")
    digests = [
        digest(run(tmp_path / rule, relu, {"realignment.zero_rule": rule, "realignment.zero_threshold": 0.0}))
        for rule in rules
    ]
    assert len(set(digests)) == 1


@pytest.mark.slow
def test_drift_asks_for_alignments_only_above_its_limit(tmp_path: Path, model_folder: Path) -> None:
    aligned = []
    for limit in (1e-6, 1.999):
        settings = {"realignment.every": 0, "realignment.drift": limit}
        settings |= {"rounds.count": 3, "gradient_gap.batches": 1}
        store = Store.existing(run(tmp_path / str(limit), model_folder, settings))
        aligned.append([n for n in (1, 2, 3) if store.alignments.done_after(n)])
        assert [gap.round for gap in store.gaps()] == [0, 1, 2, 3]
        store.close()
    # Never after the last round.
    assert aligned == [[1, 2], []]


@pytest.mark.slow
def test_under_ffa_lora_updates_hold_half_and_a_stays(tmp_path: Path, model_folder: Path) -> None:
    sizes = {}
    for lora in ("factors", "freeze-a"):
        directory = run(tmp_path / lora, model_folder, {"aggregation.lora": lora})
        store = Store.existing(directory)
        # Of the last round: earlier ones' files are given up, as a coordinator does.
        newest = store.updates(2)[0].sha256
        update = TensorFile(store.artifacts.path(newest))
        sizes[lora] = {name for name in update if "lora_" in name}
        assert store.artifacts.get(newest).kind is ArtifactKind.UPDATE
        store.close()
    assert not any("lora_A" in name for name in sizes["freeze-a"])
    assert 2 * len(sizes["freeze-a"]) == len(sizes["factors"])


def test_a_sub_fm_built_ahead_is_the_one_built_in_the_run(
    tmp_path: Path, model_folder: Path, usual: str
) -> None:
    from typer.testing import CliRunner

    from cli.main import app

    public = write_table(tmp_path / "public.csv", 64, 90, labelled=False)
    command = [
        "build",
        "--model",
        str(model_folder),
        "--corpus",
        str(public),
        "--out",
        str(tmp_path / "built"),
    ]
    result = CliRunner().invoke(app, [*command, "--steps", "5", "--max-length", "16"])
    assert result.exit_code == 0, result.output
    directory = run(tmp_path / "taken", model_folder, {"sub_fm.path": tmp_path / "built"})
    assert digest(directory) == usual


@pytest.mark.slow
def test_private_clients_tell_neither_losses_nor_neurons_at_rest(tmp_path: Path, model_folder: Path) -> None:
    private = {
        "privacy.dp.unit": "example",
        "privacy.dp.batch_size": 32,
        "realignment.choice": "random",
        "training.optimizer": "sgd",
    }
    store = Store.existing(run(tmp_path, model_folder, private))
    updates = store.updates(2)
    assert len(updates) == 3 and all(update.loss == 0.0 for update in updates)
    for update in updates:
        names = header_of(store.artifacts.path(update.sha256))
        assert names and not any(name.startswith("apoz") for name in names)
    # An alignment of neurons chosen at random lay between the rounds.
    assert store.alignments.done_after(1)
    store.close()
