"""A run that tunes FFN neurons in full, exported: what plain transformers loads scores as the run did."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.records import TaskKind
from common.run_status import Evaluation
from coordinator.storage.store import Store
from tests.conftest import write_model
from tests.families import write_family
from tests.field.test_export import Tuned, card_of, same

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
SETTINGS: dict[str, Any] = {"adapter__targets": "attention+neurons", "training__neuron_learning_rate": 1e-2}


def evaluations(run: Path) -> dict[str, Evaluation]:
    store = Store.existing(run)
    try:
        return {e.model: e for e in store.evaluations() if e.round == 1}
    finally:
        store.close()


@pytest.mark.parametrize(
    ("model_type", "kind", "settings"),
    [
        ("bert", TEXT, {}),
        pytest.param("bert", TEXT, {"adapter__targets": "neurons"}, marks=pytest.mark.slow),
        pytest.param("bert", TEXT, {"sub_fm__construction": "layer-drop"}, marks=pytest.mark.slow),
        pytest.param("bert", TEXT, {"sub_fm__construction": "full"}, marks=pytest.mark.slow),
        pytest.param("bert", TEXT, {"correction__steps": 4}, marks=pytest.mark.slow),
        # Their weights are transposed; their FFN is gated; they are no texts.
        pytest.param("gpt2", CAUSAL, {}, marks=pytest.mark.slow),
        pytest.param("llama", TEXT, {}, marks=pytest.mark.slow),
        pytest.param("vit", IMAGES, {}, marks=pytest.mark.slow),
    ],
)
def test_the_merged_model_scores_as_the_fm_with_the_neurons_plugged_in(
    model_type: str, kind: TaskKind, settings: dict[str, Any], tmp_path: Path
) -> None:
    model = write_family(tmp_path / "vesalius", model_type, kind)
    settings = SETTINGS | {"correction__least_gain": 0.0} | settings
    tuned = Tuned(tmp_path, model, kind, **settings)
    found = evaluations(tmp_path / "run")
    reported = found.get("corrected", found["fm"])
    out = tuned.export(merge=True)
    loaded = tuned.run_lines(card_of(out), out)
    scores = tuned.score(loaded["model"], loaded["processor"])
    assert same(scores, (reported.accuracy, reported.loss))
    lora = settings["adapter__targets"] != "neurons"
    assert ('"lora"' in (out / "README.md").read_text()) is lora


def test_a_peft_adapter_cannot_hold_them_and_the_line_says_what_can(tmp_path: Path) -> None:
    Tuned(tmp_path, write_model(tmp_path / "model"), **SETTINGS)
    command = ["export", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code != 0 and not (tmp_path / "out").exists()
    told = "this run tuned FFN neurons in full, which no PEFT adapter holds; add --merge"
    assert told in " ".join(result.output.split())
    assert CliRunner().invoke(app, [*command, "--merge"]).exit_code == 0
