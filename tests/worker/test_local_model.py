"""The local model is the sub-FM at the version that a task names, from real artifact files."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.processors import load_processor, processor_files
from common.errors import BadUpdate, DataError, ModelError, UnsupportedFamily
from common.model.adapter import plus
from common.model.ffn import ffns_of
from common.model.int8 import channels_of, each_as_int8, schema_as_int8
from common.model.submodel import build, make_patch, own_weights
from common.quantization import Quantization
from common.records import (
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    RunSpec,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    ZeroRule,
)
from common.storage.tensors import TensorFile, to_bytes
from coordinator.modelling.foundation import load_foundation, wire_config
from tests.conftest import FFN, LABELS, write_pictures, write_table
from tests.families import write_family
from tests.small import LORA, TEXT, copies, load_model, same_bits
from worker.data import PrivateData, Source
from worker.local_model import LocalModel, Place
from worker.train import LocalUpdate

WIDTHS = (64, 64, 64, 64)
TRAINING = TrainingSpec(1, 16, 5e-3, 5e-3, 0.01, 1.0, neuron_learning_rate=1e-3)
TASK = TaskSpec(TEXT, LABELS, 32, False)


@dataclass
class Artifacts:
    """What a coordinator would have published, in files."""

    folder: Path
    files: dict[str, Path] = field(default_factory=dict)

    def add(self, kind: ArtifactKind, content: bytes) -> ArtifactRef:
        digest = hashlib.sha256(content).hexdigest()
        self.files[digest] = self.folder / digest
        self.files[digest].write_bytes(content)
        return ArtifactRef(kind, digest, len(content))

    def add_tensors(self, kind: ArtifactKind, tensors: dict[str, Tensor]) -> ArtifactRef:
        return self.add(kind, to_bytes(tensors))

    def patch(self, folder: Path, step: float) -> ArtifactRef:
        """A patch that sets neuron 3 of layer 1 to `step`."""
        ffns = ffns_of(load_model(folder))
        patch = make_patch(ffns, {1: torch.tensor([3])})
        return self.add_tensors(
            ArtifactKind.NEURON_PATCH,
            {n: t if n.endswith("neurons") else torch.full_like(t, step) for n, t in patch.items()},
        )


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    folder = tmp_path / "artifacts"
    folder.mkdir()
    return Artifacts(folder)


def published(artifacts: Artifacts, folder: Path, kind: TaskKind) -> SubModelRef:
    """The model in a folder as the sub-FM, as a coordinator publishes it."""
    loaded = load_foundation(str(folder), kind, () if kind is TaskKind.CAUSAL_LM else LABELS, 1)
    fm, processor = loaded.model, loaded.processor
    weights = artifacts.add_tensors(ArtifactKind.SUB_MODEL, own_weights(fm))
    files = tuple(artifacts.add(k, content) for k, content in processor_files(processor).items())
    return SubModelRef(wire_config(fm.config), WIDTHS, weights, (), files)


@pytest.fixture
def base(artifacts: Artifacts, model_folder: Path) -> SubModelRef:
    """The sub-FM as first published."""
    return published(artifacts, model_folder, TEXT)


@pytest.fixture
def local(tmp_path: Path) -> LocalModel:
    data = PrivateData.read(Source(write_table(tmp_path / "private.csv", 24)))
    run = RunSpec("run", TASK, LORA, TRAINING, seed=7)
    return LocalModel("alice", run, data, Place(tmp_path / "alice", torch.device("cpu")))


def another(local: LocalModel, worker: str = "alice", run: RunSpec | None = None) -> LocalModel:
    """The same data and place, in another worker's hands or another run."""
    return LocalModel(worker, run or local.run, local._data, local._place)


def train(
    local: LocalModel, artifacts: Artifacts, reference: SubModelRef, round_number: int = 1, **changes: object
) -> LocalUpdate:
    """A round from the adapter that the local has now, as first published."""
    start = artifacts.add_tensors(ArtifactKind.ADAPTER, local.adapter())
    task = TrainTask(round_number, reference, start, 1.0, (), 60.0, 1)
    task = replace(task, **changes)  # type: ignore[arg-type]
    return local.train(task, artifacts.files[task.adapter.sha256], lambda *told: None)


def neuron(local: LocalModel) -> set[float]:
    """The values of neuron 3 of layer 1."""
    assert local._adapted is not None
    ffn = ffns_of(local._adapted.base)[1]
    (up,) = ffn.ins
    assert up.bias is not None
    return set(torch.cat([up.weight[3], up.bias[3:4], ffn.out.weight[:, 3]]).tolist())


def test_a_new_worker_lacks_everything_and_then_nothing(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    assert local.lacks(base) == [base.base, *base.processor]
    local.equip(base, artifacts.files)
    assert local.lacks(base) == []


def test_a_later_version_lacks_its_new_patches_only(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    first, second = (artifacts.patch(model_folder, step) for step in (1.0, 2.0))
    local.equip(replace(base, patches=(first,)), artifacts.files)
    assert neuron(local) == {1.0}
    newest = replace(base, patches=(first, second))
    assert local.lacks(newest) == [second]
    local.equip(newest, {second.sha256: artifacts.files[second.sha256]})
    assert neuron(local) == {2.0}
    assert local.lacks(newest) == []


def test_a_version_without_a_patch_already_laid_is_built_anew(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    local.equip(replace(base, patches=(artifacts.patch(model_folder, 1.0),)), artifacts.files)
    assert local.lacks(base) == [base.base, *base.processor]
    local.equip(base, artifacts.files)
    assert len(neuron(local)) > 1


def test_patches_do_not_reach_the_cached_base_file(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    local.equip(replace(base, patches=(artifacts.patch(model_folder, 1.0),)), artifacts.files)
    content = artifacts.files[base.base.sha256].read_bytes()
    assert hashlib.sha256(content).hexdigest() == base.base.sha256


def test_the_equipped_model_is_the_coordinators(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    local.equip(base, artifacts.files)
    assert local._adapted is not None
    fm = load_model(model_folder)
    expected = build(fm.config, TEXT, WIDTHS, TensorFile(artifacts.files[base.base.sha256]).load())
    plain = copies(local._adapted.merged().state_dict())
    assert same_bits(plain, expected.state_dict())


def test_a_round_trains_from_the_given_adapter_and_repeats(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    local.equip(base, artifacts.files)
    start = artifacts.add_tensors(ArtifactKind.ADAPTER, local.adapter())
    first, again, later = (train(local, artifacts, base, r, adapter=start) for r in (1, 1, 2))
    assert same_bits(first.delta, again.delta)
    assert not same_bits(first.delta, later.delta)
    on_top = plus(TensorFile(artifacts.files[start.sha256]).load(), later.delta)
    assert same_bits(local.adapter(), on_top)


def test_two_workers_with_the_same_data_draw_differently(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    deltas = []
    for worker in (local, another(local, "bob")):
        worker.equip(base, artifacts.files)
        deltas.append(train(worker, artifacts, base).delta)
    assert not same_bits(*deltas)


def test_a_task_decides_what_is_counted_and_by_which_rule(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    local.equip(base, artifacts.files)
    start = artifacts.add_tensors(ArtifactKind.ADAPTER, local.adapter())

    def counted(**changes: object) -> dict[int, list[int]]:
        update = train(local, artifacts, base, adapter=start, **changes)
        return {layer: c.zeros.tolist() for layer, c in update.counts.items()}

    assert counted() == {}
    before = counted(apoz_layers=(1, 2))
    assert before.keys() == {1, 2} and len(before[1]) == FFN
    # No GELU is zero but at zero itself.
    assert counted(apoz_layers=(1,), zero_rule=ZeroRule.NEAR_ZERO) == {1: [0] * FFN}
    near = counted(apoz_layers=(1,), zero_rule=ZeroRule.NEAR_ZERO, zero_threshold=0.1)
    assert sum(near[1]) > 0 and near[1] != before[1]


def test_a_task_that_counts_in_a_layer_that_is_not_there_is_a_model_error(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    local.equip(base, artifacts.files)
    with pytest.raises(ModelError, match="the task counts in layer 4, the sub-FM has 4"):
        train(local, artifacts, base, apoz_layers=(1, 4))


@pytest.mark.parametrize("factor", [0.1, 1.0])
def test_a_task_scales_the_learning_rates(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, factor: float
) -> None:
    local.equip(base, artifacts.files)
    start = artifacts.add_tensors(ArtifactKind.ADAPTER, local.adapter())
    delta = train(local, artifacts, base, adapter=start, learning_rate_factor=factor).delta
    steps = 2
    largest = max(tensor.abs().max().item() for tensor in delta.values())
    # AdamW's first steps are as large as the rate, but for the decay.
    assert 0.5 * steps * factor * 5e-3 < largest < 1.5 * steps * factor * 5e-3


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("gpt2", TaskKind.CAUSAL_LM),
        ("llama", TEXT),
        ("vit", TaskKind.IMAGE_CLASSIFICATION),
        ("distilbert", TEXT),
    ],
)
@pytest.mark.parametrize("how", ["factors", "frozen A", "neurons"])
def test_a_round_of_another_family_and_task(
    tmp_path: Path, artifacts: Artifacts, model_type: str, kind: TaskKind, how: str
) -> None:
    reference = published(artifacts, write_family(tmp_path / "model", model_type, kind), kind)
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        data = write_pictures(tmp_path / "private.parquet", 24)
    else:
        data = write_table(tmp_path / "private.csv", 24)
    targets = AdapterTargets.ATTENTION_NEURONS if how == "neurons" else AdapterTargets.ATTENTION_FFN
    adapter = replace(LORA, targets=targets, freeze_a=how == "frozen A")
    task = TaskSpec(kind, () if kind is TaskKind.CAUSAL_LM else LABELS, 16, False)
    local = LocalModel(
        "alice",
        RunSpec("run", task, adapter, TRAINING, seed=7),
        PrivateData.read(Source(data)),
        Place(tmp_path / "alice", torch.device("cpu")),
    )
    assert local.lacks(reference) == [reference.base, *reference.processor]
    local.equip(reference, artifacts.files)
    start = local.adapter()
    update = train(local, artifacts, reference, apoz_layers=(1,))
    assert same_bits(local.adapter(), plus(start, update.delta))
    assert any(name.endswith(".lora_A.weight") for name in update.delta) is (how != "frozen A")
    assert any(name.endswith(".residual.weight") for name in update.delta) is (how == "neurons")
    assert 0 < update.counts[1].zeros.sum() < FFN * update.counts[1].tokens
    # The processor that came over the wire, not the one beside the model.
    names = {path.name for path in (tmp_path / "alice" / "processor").iterdir()}
    expected = {"preprocessor_config.json"} if kind is TaskKind.IMAGE_CLASSIFICATION else set()
    assert names == (expected or {"tokenizer.json", "tokenizer_config.json"})
    load_processor(tmp_path / "alice" / "processor", kind)


def config_with(base: SubModelRef, **fields: object) -> SubModelRef:
    return replace(base, config_json=json.dumps(json.loads(base.config_json) | fields))


def test_a_configuration_that_is_no_json_object_is_a_model_error(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    for text in ("", "[]", "3", "{}", "{"):
        with pytest.raises(ModelError, match="model configuration is not readable"):
            local.equip(replace(base, config_json=text), artifacts.files)


def test_an_unknown_family_is_told(local: LocalModel, base: SubModelRef, artifacts: Artifacts) -> None:
    with pytest.raises(UnsupportedFamily, match="'t5' is not supported"):
        local.equip(config_with(base, model_type="t5"), artifacts.files)


def test_a_family_that_cannot_do_the_runs_task_is_told(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    run = replace(local.run, task=TaskSpec(TaskKind.CAUSAL_LM, (), 32, False))
    with pytest.raises(ModelError, match="a bert model cannot do causal-lm"):
        another(local, run=run).equip(base, artifacts.files)


def test_a_model_for_other_classes_than_the_tasks_is_a_model_error(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    three = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(ModelError, match="the model has 3 classes, the task 2"):
        local.equip(config_with(base, **three), artifacts.files)


@pytest.mark.parametrize("fault", ["widths", "not safetensors", "tokenizer kind", "tokenizer content"])
def test_artifacts_that_do_not_fit_are_refused(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, fault: str
) -> None:
    odd = artifacts.add(ArtifactKind.TOKENIZER, b"nonsense")
    wanted = {
        "widths": replace(base, ffn_widths=(64, 16, 16, 64)),
        "not safetensors": replace(base, base=odd),
        "tokenizer kind": replace(base, processor=(base.base,)),
        "tokenizer content": replace(base, processor=(odd, base.processor[1])),
    }[fault]
    with pytest.raises((ModelError, BadUpdate)):
        local.equip(wanted, artifacts.files)
    assert local.lacks(base) == [base.base, *base.processor]
    local.equip(base, artifacts.files)


def test_a_patch_that_does_not_fit_is_refused_and_a_good_one_still_goes_in(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    bad = artifacts.add_tensors(ArtifactKind.NEURON_PATCH, {"9.neurons": torch.tensor([0])})
    good = artifacts.patch(model_folder, 1.0)
    with pytest.raises(BadUpdate, match="layer 9"):
        local.equip(replace(base, patches=(bad,)), artifacts.files)
    wanted = replace(base, patches=(good,))
    local.equip(wanted, {ref.sha256: artifacts.files[ref.sha256] for ref in local.lacks(wanted)})
    assert neuron(local) == {1.0}


def test_a_label_that_the_run_does_not_know_is_told(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts
) -> None:
    run = replace(local.run, task=replace(TASK, labels=("animals", "traffic")))
    with pytest.raises(DataError, match="the run knows: animals, traffic"):
        another(local, run=run).equip(base, artifacts.files)


def as_int8(artifacts: Artifacts, base: SubModelRef, folder: Path, **changes: Tensor) -> SubModelRef:
    """The same sub-FM, published as int8; with `changes`, spoilt."""
    held, weights = (
        channels_of(load_model(folder), TEXT),
        TensorFile(artifacts.files[base.base.sha256]).load(),
    )
    tensors = dict(each_as_int8(weights, held, schema_as_int8(weights, held))) | changes
    return replace(base, base=artifacts.add_tensors(ArtifactKind.SUB_MODEL, tensors))


def test_int8_is_held_as_it_came_and_trained_on(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    run = replace(local.run, quantization=Quantization.INT8)
    one = another(local, run=run)
    one.equip(as_int8(artifacts, base, model_folder), artifacts.files)
    assert one._adapted is not None
    frozen = [p for p in one._adapted.model.parameters() if not p.requires_grad and p.dim() == 2]
    assert sum(p.dtype is torch.int8 for p in frozen) == 4 * 6 + 1
    update = train(one, artifacts, base)
    assert {tensor.dtype for tensor in update.delta.values()} == {torch.float32}
    local.equip(base, artifacts.files)
    plain = train(local, artifacts, base)
    assert update.loss == pytest.approx(plain.loss, rel=0.02) and update.loss != plain.loss


PATH = "bert.encoder.layer.1.output.dense"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({f"{PATH}.weight": torch.zeros(32, 64)}, rf"{PATH}\.weight must be torch\.int8 \[32, 64\], got"),
        ({f"{PATH}.scale": torch.zeros(32)}, rf"{PATH}\.scale must be torch\.float32 \[64\], got"),
        ({f"{PATH}.spread": torch.zeros(32, dtype=torch.float64)}, rf"{PATH}\.spread must be torch\.float32"),
        ({"classifier.scale": torch.zeros(2)}, r"classifier\.scale is not expected"),
    ],
)
def test_int8_that_is_not_what_the_model_wants_is_refused(
    local: LocalModel,
    base: SubModelRef,
    artifacts: Artifacts,
    model_folder: Path,
    changes: dict[str, Tensor],
    reason: str,
) -> None:
    one = another(local, run=replace(local.run, quantization=Quantization.INT8))
    with pytest.raises(BadUpdate, match=reason):
        one.equip(as_int8(artifacts, base, model_folder, **changes), artifacts.files)


def test_int8_in_a_run_that_does_not_announce_it_is_refused_and_the_other_way_round(
    local: LocalModel, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    with pytest.raises(BadUpdate, match="is not expected"):
        local.equip(as_int8(artifacts, base, model_folder), artifacts.files)
    with pytest.raises(BadUpdate, match="is missing"):
        another(local, run=replace(local.run, quantization=Quantization.INT8)).equip(base, artifacts.files)
