"""A whole run with real processes over real sockets, on a small random BERT."""

import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from cli.main import app
from common.model.submodel import SubModelPlan
from common.records import ArtifactKind, Phase
from common.storage.tensors import TensorFile
from coordinator.owner.audit import audit_run
from coordinator.storage.store import Store
from tests.conftest import LAYERS
from tests.integration.federation import Federation, federation
from worker.sent_log import audit_worker


def complete_run(running: Federation, metrics: bool = False) -> str:
    """Start a coordinator and three workers and see them through; returns the metrics page, if asked."""
    endpoint = running.start_coordinator()
    for number in (1, 2, 3):
        running.start_worker(number, endpoint["address"])
    page = ""
    if metrics:
        url = f"http://127.0.0.1:{endpoint['metrics_port']}/metrics"
        page = urllib.request.urlopen(url, timeout=10).read().decode()
    running.wait()
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Iterator[Federation]:
    with federation(tmp_path_factory.mktemp("finished"), model_folder, cold=True) as running:
        complete_run(running)
        yield running


@pytest.fixture
def store(finished: Federation) -> Iterator[Store]:
    opened = Store.existing(finished.run)
    yield opened
    opened.close()


def test_the_run_finishes_with_every_round_scored(finished: Federation) -> None:
    status = finished.status()
    assert status.phase is Phase.FINISHED
    assert status.round == 2
    assert [(e.round, e.model) for e in status.evaluations] == [
        (number, model) for number in (0, 1, 2) for model in ("fm", "sub_fm")
    ]
    first, last = (next(e for e in status.evaluations if e.round == n) for n in (0, 2))
    assert last.loss < first.loss


def test_the_same_seed_gives_the_same_adapter(
    finished: Federation, tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path, model_folder) as again:
        complete_run(again)
        assert again.status().adapter_sha256 == finished.status().adapter_sha256
    with federation(tmp_path / "other", model_folder, run__seed=8, realignment__every=0) as other:
        complete_run(other)
        assert other.status().adapter_sha256 != finished.status().adapter_sha256


def test_no_served_artifact_holds_a_row_of_a_cut_neuron(
    finished: Federation, store: Store, model_folder: Path
) -> None:
    fm = TensorFile(model_folder / "model.safetensors")
    stored = store.sub_model()
    assert stored is not None
    reference, plan_ref, _ = stored
    plan = SubModelPlan.from_tensors(TensorFile(store.artifacts.path(plan_ref.sha256)))
    assert len(reference.patches) == 1
    served = [reference.base, *reference.patches, store.latest_adapter()[1]]  # type: ignore[index]
    rows = []
    for artifact in served:
        for tensor in TensorFile(store.artifacts.path(artifact.sha256)).load().values():
            if tensor.dim() == 2:
                rows += [*tensor, *tensor.T]
    kept_seen = 0
    for layer in plan.compressed:
        neurons = plan.layers[layer].neurons
        assert neurons is not None
        up = fm[f"bert.encoder.layer.{layer}.intermediate.dense.weight"]
        down = fm[f"bert.encoder.layer.{layer}.output.dense.weight"]
        for neuron in range(len(up)):
            candidates = (up[neuron], down[:, neuron])
            near = [
                bool((row - c).abs().max() < 1e-4) for c in candidates for row in rows if row.shape == c.shape
            ]
            if neuron in neurons:
                kept_seen += len(near) > 0
            else:
                assert not any(near), f"layer {layer}: cut neuron {neuron} was served"
    assert kept_seen


def test_every_worker_worked_from_the_coordinators_adapter(finished: Federation, store: Store) -> None:
    """Updates name the adapter that they are the difference to; others are refused."""
    final = store.latest_adapter()
    assert final is not None
    for name in ("worker-1", "worker-2", "worker-3"):
        cached = {p.name for p in (finished.folder / name / "artifacts").iterdir()}
        adapters = [sha256 for sha256 in cached if store.artifacts.get(sha256).kind is ArtifactKind.ADAPTER]
        # The cache keeps only what the last task named: the adapter after round 1.
        assert adapters == [_adapter_after(store, 1)]


def _adapter_after(store: Store, number: int) -> str:
    return str(store._rows("SELECT sha256 FROM adapters WHERE round = ?", number)[0][0])


def test_after_the_first_round_only_adapter_and_patch_travel(finished: Federation, store: Store) -> None:
    patch = store.sub_model()[0].patches[0]  # type: ignore[index]
    for worker in finished.status().workers:
        counted = [t for t in store.traffic.by_worker()[worker.worker] if t.round == 2]
        down = {t.kind: t.bytes_down for t in counted}
        assert set(down) == {"adapter", "neuron_patch", "control", "update"}
        assert patch.size < down["neuron_patch"] < patch.size + 1000
        up = {t.kind: t.bytes_up for t in counted}
        sizes = {u.worker: store.artifacts.get(u.sha256).size for u in store.updates(2)}
        assert sizes[worker.worker] < up["update"] < sizes[worker.worker] + 1000


def test_the_export_loads_in_plain_transformers_and_peft(
    finished: Federation, tmp_path: Path, model_folder: Path
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    for out, extra in ((adapter, []), (merged, ["--merge"])):
        result = CliRunner().invoke(app, ["export", str(finished.run), "--out", str(out), *extra])
        assert result.exit_code == 0, result.output
    base = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=2)
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    plain = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    inputs = tokenizer(["the cat and the dog", "rain and snow"], padding=True, return_tensors="pt")
    with torch.no_grad():
        difference = tuned(**inputs).logits - plain(**inputs).logits
    assert difference.abs().max() < 1e-5
    assert plain.config.id2label == {0: "animals", 1: "weather"}
    assert plain.config.num_hidden_layers == LAYERS


def test_the_exported_model_is_the_one_that_was_scored(finished: Federation, tmp_path: Path) -> None:
    from common.data.tables import read_table

    CliRunner().invoke(app, ["export", str(finished.run), "--out", str(tmp_path), "--merge"])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts, labels = read_table(finished.folder / "test.csv", "text", "label").columns
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        predicted = [model.config.id2label[int(i)] for i in model(**inputs).logits.argmax(-1)]
    right = sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)
    scored = [e.accuracy for e in finished.status().evaluations if e.model == "fm"][-1]
    assert right == pytest.approx(scored)


@pytest.mark.parametrize(
    "settings",
    [{"sub_fm__construction": "full"}, {"sub_fm__construction": "full", "adapter__targets": "none"}],
    ids=["fedpetuning", "head-only"],
)
def test_the_reference_methods_run_through_the_same_rounds(
    tmp_path: Path, model_folder: Path, settings: dict[str, str]
) -> None:
    with federation(tmp_path, model_folder, **settings) as running:
        page = complete_run(running, metrics=True)
        status = running.status()
        assert status.models is not None
        assert status.models.sub_fm_parameters == status.models.fm_parameters
        assert "fedpft_phase{" in page
        by_round = {e.round: (e.accuracy, e.loss) for e in status.evaluations if e.model == "fm"}
        assert by_round == {e.round: (e.accuracy, e.loss) for e in status.evaluations if e.model == "sub_fm"}


def test_nothing_private_reaches_the_logs(finished: Federation) -> None:
    logs = "".join(finished.log(name) for name in finished.processes)
    text = (finished.folder / "worker-1.csv").read_text().splitlines()[1].partition(",")[0]
    assert text not in logs


def test_the_audit_finds_nothing_that_was_cut_in_what_was_served(finished: Federation, store: Store) -> None:
    found = audit_run(finished.run)
    assert not found.leaks
    cut = sum(64 - len(layer.neurons) for layer in _plan(store).layers if layer.neurons is not None)
    assert found.withheld_vectors == 2 * cut > 0
    fetched = {looked.artifact.kind for looked in found.looked if looked.served}
    assert fetched == {
        ArtifactKind.SUB_MODEL,
        ArtifactKind.NEURON_PATCH,
        ArtifactKind.ADAPTER,
        ArtifactKind.TOKENIZER,
        ArtifactKind.TOKENIZER_CONFIG,
    }
    assert {looked.compared for looked in found.looked if looked.artifact.kind is ArtifactKind.SUB_MODEL} == {
        "compared"
    }
    assert {e.layer for e in found.exposures if e.withheld} == {1, 2}
    assert any(e.aligned for e in found.exposures if e.kind == "FFN")
    assert {e.model for e in found.evaluations} == {"fm", "sub_fm"}
    result = CliRunner().invoke(app, ["audit", str(finished.run)])
    assert result.exit_code == 0 and "none was found" in result.output


@pytest.mark.parametrize("how", ["neuron", "plan", "kind"])
def test_a_planted_leak_makes_the_audit_fail(
    finished: Federation, model_folder: Path, tmp_path: Path, how: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.run, run)
    opened = Store(run)
    plan = _plan(opened)
    neurons = plan.layers[1].neurons
    assert neurons is not None
    neuron = next(n for n in range(64) if n not in neurons)
    fm = TensorFile(model_folder / "model.safetensors")
    row = fm["bert.encoder.layer.1.intermediate.dense.weight"][neuron : neuron + 1]
    planted = {
        "neuron": (ArtifactKind.NEURON_PATCH, {"1.neurons": torch.tensor([0]), "1.in.0.weight": row}),
        "plan": (ArtifactKind.NEURON_PATCH, {"1.neurons": neurons}),
        "kind": (ArtifactKind.PLAN, plan.to_tensors()),
    }[how]
    opened.artifacts.record_served(opened.artifacts.add_tensors(*planted).sha256)
    opened.close()
    result = CliRunner().invoke(app, ["audit", str(run)])
    assert result.exit_code == 1
    assert "something that was cut got out" in result.output
    if how == "neuron":
        assert f"layer 1, neuron {neuron}" in result.output


def test_a_workers_log_says_what_the_coordinator_got_from_it(finished: Federation, store: Store) -> None:
    for name in ("worker-1", "worker-2", "worker-3"):
        sent = audit_worker(finished.folder / name)
        own: dict[str, int] = {}
        for total in sent.totals:
            own[total.kind] = own.get(total.kind, 0) + total.bytes
        counted: dict[str, int] = {}
        for traffic in store.traffic.by_worker()[name]:
            counted[traffic.kind] = counted.get(traffic.kind, 0) + traffic.bytes_up
        # The goodbye comes after the last count was made durable; heartbeats may cross with the end.
        control = own.pop("control"), counted.pop("control")
        assert 0 <= control[0] - control[1] < 500
        assert own == counted
        received = [u.sha256 for n in (1, 2) for u in store.updates(n) if u.worker == name]
        assert list(sent.updates) == received


def _plan(store: Store) -> SubModelPlan:
    stored = store.sub_model()
    assert stored is not None
    return SubModelPlan.from_tensors(TensorFile(store.artifacts.path(stored[1].sha256)))
