"""A federated round of every family and task, by real processes, and what comes out of it."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from typer.testing import CliRunner

from cli.main import app
from common.model.families import FAMILIES, sizes_of
from common.model.ffn import ffns_of
from common.model.tasks import auto_class
from common.records import AdapterTargets, Phase, TaskKind
from common.task_forms import FORMS
from tests.conftest import VOCABULARY, labels_of
from tests.families import EVERYDAY, FFN, LAYERS, small_inputs, small_model, write_family
from tests.integration.federation import Federation, federation

# In `make test`, too; texts are classified by test_run.py's BERT.
USUAL = {("vit", TaskKind.IMAGE_CLASSIFICATION), ("llama", TaskKind.CAUSAL_LM)}
TASKS = [
    pytest.param((name, kind), id=f"{name}-{kind}", marks=() if (name, kind) in USUAL else pytest.mark.slow)
    for name, family in FAMILIES.items()
    # What a family is like all others of its kind in needs no run of its own.
    for kind in (family.tasks if name in EVERYDAY else family.tasks[-1:])
]


@pytest.fixture(scope="module", params=TASKS)
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Federation]:
    """One round of 75 % pruning with adapters on attention and the FFN, and a neuron-level alignment."""
    model_type, kind = request.param
    model = write_family(tmp_path_factory.mktemp("model"), model_type, kind)
    settings = {
        "rounds__count": 2,
        "rounds__workers": 2,
        "rounds__minimum": 2,
        "adapter__targets": str(AdapterTargets.ATTENTION_FFN),
        # A random head may start better than chance; a few steps would not come below that.
        "training__epochs": 8,
        "alignment__steps": 4,
        "realignment__steps": 2,
        "gradient_gap__batches": 1,
    }
    with federation(tmp_path_factory.mktemp("run"), model, kind, **settings) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2):
            # A language model's texts have no labels.
            extra = ["--label-column", ""] if kind is TaskKind.CAUSAL_LM else []
            running.start_worker(number, address, *extra)
        running.wait()
        yield running


def test_a_federated_run_of_the_family(finished: Federation, tmp_path: Path) -> None:
    status = finished.status()
    assert status.phase is Phase.FINISHED
    losses = [e.loss for e in status.evaluations if e.model == "fm"]
    # So few steps of so small a model overshoot by chance of dropout, but not in both rounds.
    assert min(losses[1:]) < losses[0]
    assert [gap.round for gap in status.gaps] == [0, 1, 2]
    _check_sizes(finished)
    _check_exports(finished, tmp_path)
    _check_scores(finished, tmp_path)


def _check_sizes(finished: Federation) -> None:
    models = finished.status().models
    assert models is not None
    ffn = ffns_of(small_model(finished.model_type))[0]
    # 48 of 64 neurons go in each of two layers, each with its rows, their biases and its column.
    lost = 2 * 48 * sum(p.numel() for p in ffn.neuron_parameters()) // FFN
    assert models.fm_layer_parameters - models.sub_fm_layer_parameters == lost


def _check_exports(finished: Federation, tmp_path: Path) -> None:
    outs = {"adapter": [], "merged": ["--merge"]}
    for name, extra in outs.items():
        command = ["export", str(finished.run), "--out", str(tmp_path / name), *extra]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    load = auto_class(finished.kind).from_pretrained
    outputs = FORMS[finished.kind].outputs(labels_of(finished.kind))
    classes = {"num_labels": len(outputs)} if outputs else {}
    tuned = PeftModel.from_pretrained(load(finished.model, **classes), tmp_path / "adapter").eval()
    plain = load(tmp_path / "merged").eval()
    inputs = small_inputs(plain, 4)
    if "input_ids" in inputs:
        inputs["input_ids"] %= len(VOCABULARY)
    with torch.no_grad():
        difference = (tuned(**inputs).logits - plain(**inputs).logits).abs().max()
        untuned = load(finished.model, **classes).eval()(**inputs).logits
    assert difference < 1e-4
    assert (plain(**inputs).logits - untuned).abs().max() > 1e-3
    widths = {p.shape for n, p in plain.named_parameters() if FFN in p.shape}
    assert widths and sizes_of(plain.config).num_hidden_layers == LAYERS


def _check_scores(finished: Federation, tmp_path: Path) -> None:
    """`fedpft score` finds in either export what the run itself has scored its FM with."""
    [run] = [e for e in finished.status().evaluations if (e.round, e.model) == (2, "fm")]
    wanted = {"loss": run.loss, "accuracy": run.accuracy} | dict(run.metrics)
    [test] = finished.folder.glob("test.*")
    for name, extra in (("adapter", ["--base", str(finished.model)]), ("merged", [])):
        command = ["score", str(tmp_path / name), str(test), "--json", "--max-length", "16", *extra]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        [scores] = json.loads(result.stdout)["scores"]
        found = {key: figure["value"] for key, figure in scores["figures"].items()}
        if finished.kind is TaskKind.CAUSAL_LM:
            found["accuracy"] = found["token_accuracy"]
            assert found["perplexity"] == pytest.approx(math.exp(run.loss), rel=1e-3)
        for key, value in wanted.items():
            if math.isfinite(value):
                assert found[key] == pytest.approx(value, abs=2e-3), (name, key)
