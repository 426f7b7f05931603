"""Runs with all that keeps the owner's margin: every kind of task, by real processes."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config
from common.data.examples import Columns, read_examples
from common.model.families import FAMILIES
from common.model.layers import layer_prefix
from common.model.tasks import auto_class
from common.records import Phase, TaskKind
from common.storage.tensors import TensorFile
from coordinator.owner.audit import audit_run
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import write_data
from tests.experiments.test_simulation import digest
from tests.families import FFN, write_family
from tests.integration.federation import federation

RANK = 3
LEVERS = {
    "sub_fm__drop_ratio": 0.95,
    "sub_fm__attention_rank": RANK,
    "alignment__keep_margin": 0.5,
    "alignment__method": "gradient",
}
# Encoders, decoders and images; every kind of task.
RUNS = [
    ("bert", TaskKind.TEXT_CLASSIFICATION),
    ("roberta", TaskKind.TEXT_MULTI_LABEL),
    ("distilbert", TaskKind.TEXT_REGRESSION),
    ("bert", TaskKind.TOKEN_CLASSIFICATION),
    ("llama", TaskKind.CAUSAL_LM),
    ("qwen2", TaskKind.TEXT_CLASSIFICATION),
    ("vit", TaskKind.IMAGE_CLASSIFICATION),
]
# Query, key and value in one map: no rank of attention there.
CUT_ONLY = [("gpt2", TaskKind.CAUSAL_LM), ("phi3", TaskKind.TEXT_CLASSIFICATION)]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "kind"), [*RUNS, *CUT_ONLY])
def test_a_run_with_the_levers_shows_what_the_audit_says_and_exports(
    family: str, kind: TaskKind, tmp_path: Path
) -> None:
    model = write_family(tmp_path / "model", family, kind)
    ranked = (family, kind) in RUNS
    levers = {key: value for key, value in LEVERS.items() if ranked or key != "sub_fm__attention_rank"}
    with federation(tmp_path, model, kind, **levers) as running:
        address = running.start_coordinator()["address"]
        extra = ["--label-column", ""] if kind is TaskKind.CAUSAL_LM else []
        for number in (1, 2, 3):
            running.start_worker(number, address, *extra)
        running.wait()
        assert running.status().phase is Phase.FINISHED
    audit = audit_run(running.run)
    assert audit.withheld_vectors and not audit.leaks
    for e in audit.exposures:
        if e.kind == "attention" and e.layer is not None:
            cut = ranked and e.layer in (1, 2)
            # Biases stay the FM's own.
            assert (e.aligned > 5 * e.as_is) if cut else (e.aligned == 0 and e.as_is == e.parameters)
    _check_what_was_served(running.run, family, ranked)
    for name, more in {"adapter": [], "merged": ["--merge"]}.items():
        result = CliRunner().invoke(app, ["export", str(running.run), "--out", str(tmp_path / name), *more])
        assert result.exit_code == 0, result.output
    # The FM's own attention, not the sub-FM's.
    merged = auto_class(kind).from_pretrained(tmp_path / "merged")
    path = FAMILIES[family].attention[0]
    weight = merged.state_dict()[f"{layer_prefix(merged.config, 1)}{path}.weight"]
    assert int(torch.linalg.matrix_rank(weight.float())) > 2 * RANK


def _check_what_was_served(run: Path, family: str, ranked: bool) -> None:
    store = Store.existing(run)
    stored = store.sub_model()
    assert stored is not None and stored[0].ffn_widths == (FFN, 3, 3, FFN)
    base = TensorFile(store.artifacts.path(stored[0].base.sha256))
    found = FAMILIES[family]
    for layer in range(4):
        for path in found.attention:
            weight = base[f"{found.encoder}.{found.layers}.{layer}.{path}.weight"]
            is_cut = int(torch.linalg.matrix_rank(weight.float())) <= RANK
            assert is_cut == (ranked and layer in (1, 2))
    store.close()


@pytest.mark.slow
def test_real_services_and_a_simulated_run_end_with_the_same_bits(tmp_path: Path) -> None:
    kind = TaskKind.TEXT_CLASSIFICATION
    with federation(tmp_path, write_family(tmp_path / "model", "bert", kind), kind, **LEVERS) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 3):
            running.start_worker(number, address)
        running.wait()
        config = load_config(tmp_path / "run.toml")
    there = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    clients = {
        f"worker-{n}": read_examples(write_data(tmp_path / f"again-{n}", kind, 30 + 10 * n, n), Columns())
        for n in (1, 2, 3)
    }
    simulate(config.model_copy(update={"run": there}), clients)
    assert digest(tmp_path / "simulated") == digest(config.run.directory)


@pytest.mark.slow
def test_a_family_with_one_map_for_several_is_refused_before_a_round(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "gpt2", TaskKind.TEXT_CLASSIFICATION)
    with federation(tmp_path, model, **LEVERS) as running:
        running.start("coordinator", "coordinator", "--config", str(running.write_config()))
        running.wait(coordinator=2)
        log = running.log("coordinator")
    assert "sub_fm.attention_rank must be unset for gpt2, which holds query, key and value in one map" in log
    assert "Traceback" not in log
