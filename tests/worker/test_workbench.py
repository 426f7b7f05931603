"""The workbench holds the sub-FM at the version that a task names, from real artifact files."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.errors import BadUpdate, DataError, ModelError, UnsupportedFamily
from common.model.families import ffns_of
from common.model.submodel import build, make_patch
from common.records import ArtifactKind, ArtifactRef, RunSpec, SubModelRef, TaskSpec, TrainingSpec
from common.tensors import TensorFile, to_bytes
from tests.conftest import LABELS, write_table
from tests.small import LORA, copies, load_model, same_bits
from worker.data import PrivateData
from worker.workbench import Workbench

WIDTHS = (64, 64, 64, 64)
TRAINING = TrainingSpec(1, 16, 5e-3, 5e-3, 0.01, 1.0)


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


@pytest.fixture
def base(artifacts: Artifacts, model_folder: Path) -> SubModelRef:
    """The sub-FM as first published."""
    weights = load_model(model_folder).state_dict()
    tokenizer = [
        artifacts.add(kind, (model_folder / name).read_bytes())
        for kind, name in (
            (ArtifactKind.TOKENIZER, "tokenizer.json"),
            (ArtifactKind.TOKENIZER_CONFIG, "tokenizer_config.json"),
        )
    ]
    return SubModelRef(
        (model_folder / "config.json").read_text(),
        WIDTHS,
        artifacts.add_tensors(ArtifactKind.SUB_MODEL, weights),
        (),
        tuple(tokenizer),
    )


@pytest.fixture
def bench(tmp_path: Path) -> Workbench:
    data = PrivateData.read(write_table(tmp_path / "private.csv", 24), "text", "label")
    run = RunSpec("run", TaskSpec(LABELS, 32), LORA, TRAINING, seed=7)
    return Workbench("alice", run, data, tmp_path / "alice", torch.device("cpu"))


def neuron(bench: Workbench) -> set[float]:
    """The values of neuron 3 of layer 1."""
    assert bench._adapted is not None
    ffn = ffns_of(bench._adapted.base)[1]
    return set(torch.cat([ffn.up.weight[3], ffn.up.bias[3:4], ffn.down.weight[:, 3]]).tolist())


def test_a_new_worker_lacks_everything_and_then_nothing(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    assert bench.lacks(base) == [base.base, *base.tokenizer]
    bench.equip(base, artifacts.files)
    assert bench.lacks(base) == []


def test_a_later_version_lacks_its_new_patches_only(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    first, second = (artifacts.patch(model_folder, step) for step in (1.0, 2.0))
    bench.equip(replace(base, patches=(first,)), artifacts.files)
    assert neuron(bench) == {1.0}
    newest = replace(base, patches=(first, second))
    assert bench.lacks(newest) == [second]
    bench.equip(newest, {second.sha256: artifacts.files[second.sha256]})
    assert neuron(bench) == {2.0}
    assert bench.lacks(newest) == []


def test_a_version_without_a_patch_already_laid_is_built_anew(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    bench.equip(replace(base, patches=(artifacts.patch(model_folder, 1.0),)), artifacts.files)
    assert bench.lacks(base) == [base.base, *base.tokenizer]
    bench.equip(base, artifacts.files)
    assert len(neuron(bench)) > 1


def test_patches_do_not_reach_the_cached_base_file(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    bench.equip(replace(base, patches=(artifacts.patch(model_folder, 1.0),)), artifacts.files)
    content = artifacts.files[base.base.sha256].read_bytes()
    assert hashlib.sha256(content).hexdigest() == base.base.sha256


def test_the_equipped_model_is_the_coordinators(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    bench.equip(base, artifacts.files)
    assert bench._adapted is not None
    fm = load_model(model_folder)
    expected = build(fm.config, WIDTHS, TensorFile(artifacts.files[base.base.sha256]).load())
    plain = copies(bench._adapted.merged().state_dict())
    assert same_bits(plain, expected.state_dict())


def test_a_round_trains_from_the_given_adapter_and_repeats(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    bench.equip(base, artifacts.files)
    start = artifacts.add_tensors(ArtifactKind.ADAPTER, bench.adapter())
    path = artifacts.files[start.sha256]
    first, again, later = (bench.train(path, r, 1.0, (), lambda *told: None) for r in (1, 1, 2))
    assert same_bits(first.delta, again.delta)
    assert not same_bits(first.delta, later.delta)


def test_two_workers_with_the_same_data_draw_differently(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    deltas = []
    for worker in (bench, replace(bench, worker="bob")):
        worker.equip(base, artifacts.files)
        start = artifacts.add_tensors(ArtifactKind.ADAPTER, worker.adapter())
        deltas.append(worker.train(artifacts.files[start.sha256], 1, 1.0, (), lambda *told: None).delta)
    assert not same_bits(*deltas)


def config_with(base: SubModelRef, **fields: object) -> SubModelRef:
    return replace(base, config_json=json.dumps(json.loads(base.config_json) | fields))


def test_a_configuration_that_is_no_json_object_is_a_model_error(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    for text in ("", "[]", "3", "{}", "{"):
        with pytest.raises(ModelError, match="model configuration is not readable"):
            bench.equip(replace(base, config_json=text), artifacts.files)


def test_an_unknown_family_is_told(bench: Workbench, base: SubModelRef, artifacts: Artifacts) -> None:
    with pytest.raises(UnsupportedFamily, match="gpt2"):
        bench.equip(config_with(base, model_type="gpt2"), artifacts.files)


def test_a_model_for_other_classes_than_the_tasks_is_a_model_error(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    three = {"id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}
    with pytest.raises(ModelError, match="the model has 3 classes, the task 2"):
        bench.equip(config_with(base, **three), artifacts.files)


@pytest.mark.parametrize("fault", ["widths", "not safetensors", "tokenizer kind", "tokenizer content"])
def test_artifacts_that_do_not_fit_are_refused(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, fault: str
) -> None:
    odd = artifacts.add(ArtifactKind.TOKENIZER, b"nonsense")
    wanted = {
        "widths": replace(base, ffn_widths=(64, 16, 16, 64)),
        "not safetensors": replace(base, base=odd),
        "tokenizer kind": replace(base, tokenizer=(base.base,)),
        "tokenizer content": replace(base, tokenizer=(odd, base.tokenizer[1])),
    }[fault]
    with pytest.raises((ModelError, BadUpdate)):
        bench.equip(wanted, artifacts.files)
    assert bench.lacks(base) == [base.base, *base.tokenizer]
    bench.equip(base, artifacts.files)


def test_a_patch_that_does_not_fit_is_refused_and_a_good_one_still_goes_in(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts, model_folder: Path
) -> None:
    bad = artifacts.add_tensors(ArtifactKind.NEURON_PATCH, {"9.neurons": torch.tensor([0])})
    good = artifacts.patch(model_folder, 1.0)
    with pytest.raises(BadUpdate, match="layer 9"):
        bench.equip(replace(base, patches=(bad,)), artifacts.files)
    wanted = replace(base, patches=(good,))
    bench.equip(wanted, {ref.sha256: artifacts.files[ref.sha256] for ref in bench.lacks(wanted)})
    assert neuron(bench) == {1.0}


def test_a_label_that_the_run_does_not_know_is_told(
    bench: Workbench, base: SubModelRef, artifacts: Artifacts
) -> None:
    run = replace(bench.run, task=TaskSpec(("animals", "traffic"), 32))
    with pytest.raises(DataError, match="the run knows: animals, traffic"):
        replace(bench, run=run).equip(base, artifacts.files)
