"""Sub-FMs built from widths and weights alone, and patches over them."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Dataset
from common.errors import BadUpdate, ModelError
from common.model.families import FAMILIES
from common.model.ffn import Ffn, ffns_of
from common.model.submodel import (
    LayerPlan,
    SubModelPlan,
    apply_patch,
    build,
    make_patch,
    own_weights,
    tied_names,
)
from common.records import TaskKind
from common.storage.tensors import TensorFile, to_bytes
from tests.conftest import FFN, HIDDEN, LAYERS
from tests.families import is_gated, small_inputs, small_model
from tests.small import TEXT, copies, load_model, load_texts, logits, same_bits

WIDTHS = (FFN,) * LAYERS
NEURONS = {1: torch.tensor([0, 3, 63]), 2: torch.tensor([7])}
CAUSAL = TaskKind.CAUSAL_LM

every_family = pytest.mark.parametrize("model_type", FAMILIES)
every_task = pytest.mark.parametrize(
    ("model_type", "kind"), [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]
)


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 6)


@torch.no_grad()
def shift(ffns: Sequence[Ffn], neurons: Mapping[int, Tensor]) -> None:
    """Change everything that belongs to these neurons."""
    for layer, index in neurons.items():
        for projection in ffns[layer].ins:
            projection.weight[index] += 1
            if projection.bias is not None:
                projection.bias[index] -= 2
        ffns[layer].out.weight[:, index] += 3


def test_a_plan_survives_its_tensors() -> None:
    plan = SubModelPlan((LayerPlan(0, None), LayerPlan(2, torch.tensor([1, 4])), LayerPlan(3, None)))
    read = SubModelPlan.from_tensors(plan.to_tensors())
    assert read.compressed == plan.compressed == (1,)
    assert [layer.source for layer in read.layers] == [0, 2, 3]
    assert read.layers[1].neurons is not None and read.layers[1].neurons.tolist() == [1, 4]
    assert read.layers[0].neurons is None and read.layers[2].neurons is None


# --- building ---


def test_a_model_built_from_its_own_weights_is_the_same(model: PreTrainedModel, texts: Dataset) -> None:
    built = build(model.config, TEXT, WIDTHS, model.state_dict())
    batch = texts.batch(range(6))
    assert not built.training
    assert torch.equal(logits(built, batch), logits(model, batch))


@every_task
@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["where they are", "cpu"])
@torch.no_grad()
def test_a_model_of_any_family_and_task_can_be_built(
    model_type: str, kind: TaskKind, device: torch.device | None
) -> None:
    model = small_model(model_type, kind)
    built = build(model.config, kind, WIDTHS, own_weights(model), device)
    assert type(built) is type(model)
    assert not any(tensor.is_meta for tensor in (*built.parameters(), *built.buffers()))
    inputs = small_inputs(model)
    assert torch.equal(built(**inputs).logits, model(**inputs).logits)


@every_family
def test_a_model_has_the_widths_asked_for(model_type: str) -> None:
    kind, widths = FAMILIES[model_type].tasks[0], (FFN, 16, 1, FFN)
    fm = small_model(model_type)
    weights = own_weights(fm)
    rows = FAMILIES[model_type].rows
    for name, tensor in weights.items():
        for i in (1, 2):
            for times in {1, rows}:
                if f".{i}." in name and FFN * times in tensor.shape:
                    axis = list(tensor.shape).index(FFN * times)
                    maps = [whole.narrow(axis, 0, widths[i]) for whole in tensor.split(FFN, axis)]
                    weights[name] = torch.cat(maps, axis)
    built = build(fm.config, kind, widths, weights)
    assert tuple(ffn.width for ffn in ffns_of(built)) == widths


@pytest.mark.parametrize("device", [None, torch.device("cpu")], ids=["where they are", "cpu"])
def test_a_built_models_parameters_are_the_given_weights_not_copies(
    model: PreTrainedModel, device: torch.device | None
) -> None:
    weights = model.state_dict()
    built = build(model.config, TEXT, WIDTHS, weights, device)
    assert all(p.data_ptr() == weights[name].data_ptr() for name, p in built.named_parameters())


@every_task
def test_all_of_a_model_is_on_the_device_asked_for(model_type: str, kind: TaskKind) -> None:
    """Also what no file holds, such as llama's rotary frequencies; "meta" stands for a GPU here."""
    model = small_model(model_type, kind)
    built = build(model.config, kind, WIDTHS, own_weights(model), torch.device("meta"))
    assert all(tensor.is_meta for tensor in (*built.parameters(), *built.buffers()))


def test_a_task_that_the_family_cannot_do_is_a_model_error(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="a bert model cannot do causal-lm"):
        build(model.config, CAUSAL, WIDTHS, model.state_dict())


def test_a_wrong_number_of_widths_is_a_model_error(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="3 FFN widths given for 4 layers"):
        build(model.config, TEXT, WIDTHS[:3], model.state_dict())


@pytest.mark.parametrize("fault", ["missing", "unknown", "width"])
def test_weights_that_do_not_fit_are_a_model_error_on_one_line(model: PreTrainedModel, fault: str) -> None:
    weights, widths = model.state_dict(), WIDTHS
    match fault:
        case "missing":
            del weights["classifier.weight"]
        case "unknown":
            weights["classifier.extra"] = torch.zeros(1)
        case "width":
            widths = (FFN, FFN - 1, FFN, FFN)
    with pytest.raises(ModelError, match="the weights do not fit the sub-FM") as caught:
        build(model.config, TEXT, widths, weights)
    assert "\n" not in str(caught.value)


# --- tied weights ---


def test_a_tied_head_is_not_among_a_models_own_weights_and_is_tied_again() -> None:
    model = small_model("gpt2", CAUSAL)
    weights = own_weights(model)
    assert tied_names(model) == {"lm_head.weight"}
    assert weights.keys() == model.state_dict().keys() - {"lm_head.weight"}
    built = build(model.config, CAUSAL, WIDTHS, weights)
    embedding = built.get_submodule("transformer.wte").weight
    assert built.lm_head.weight is embedding
    assert embedding.data_ptr() == weights["transformer.wte.weight"].data_ptr()


def test_a_tied_head_that_is_given_besides_goes_unused() -> None:
    model = small_model("gpt2", CAUSAL)
    weights = own_weights(model) | {"lm_head.weight": torch.zeros(64, HIDDEN)}
    built = build(model.config, CAUSAL, WIDTHS, weights)
    assert torch.equal(built.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(("tied", "names"), [(True, {"lm_head.weight"}), (False, set())])
def test_a_head_is_tied_when_the_configuration_says_so(tied: bool, names: set[str]) -> None:
    model = small_model("llama", CAUSAL, tie_word_embeddings=tied)
    assert tied_names(model) == names
    built = build(model.config, CAUSAL, WIDTHS, own_weights(model))
    assert (built.lm_head.weight is built.get_input_embeddings().weight) is tied


def test_a_head_of_its_own_that_is_missing_is_not_made_up() -> None:
    model = small_model("llama", CAUSAL)
    weights = own_weights(model)
    del weights["lm_head.weight"]
    with pytest.raises(ModelError, match=r"lm_head\.weight is on one side only"):
        build(model.config, CAUSAL, WIDTHS, weights)


@pytest.mark.parametrize("model_type", [n for n, family in FAMILIES.items() if CAUSAL not in family.tasks])
def test_a_classifier_ties_nothing(model_type: str) -> None:
    model = small_model(model_type)
    assert tied_names(model) == set()
    assert own_weights(model).keys() == model.state_dict().keys()


# --- patches ---


@every_family
def test_a_patch_makes_one_model_the_other(model_type: str) -> None:
    model, changed = small_model(model_type), small_model(model_type)
    shift(ffns_of(changed), NEURONS)
    assert not same_bits(changed.state_dict(), model.state_dict())
    apply_patch(ffns_of(model), make_patch(ffns_of(changed), NEURONS))
    assert same_bits(changed.state_dict(), model.state_dict())


@every_family
def test_a_patch_holds_the_named_neurons_and_nothing_else(model_type: str) -> None:
    ins = ffns_of(model := small_model(model_type))[0].ins
    patch = make_patch(ffns_of(model), NEURONS)
    expected: dict[str, tuple[int, ...]] = {}
    for layer, count in ((1, 3), (2, 1)):
        expected[f"{layer}.neurons"] = (count,)
        for i, projection in enumerate(ins):
            expected[f"{layer}.in.{i}.weight"] = (count, HIDDEN)
            if projection.bias is not None:
                expected[f"{layer}.in.{i}.bias"] = (count,)
        expected[f"{layer}.out.weight"] = (HIDDEN, count)
    assert {name: tuple(tensor.shape) for name, tensor in patch.items()} == expected


@every_family
def test_a_patch_holds_neurons_in_one_layout_however_the_family_stores_them(model_type: str) -> None:
    ffns = ffns_of(small_model(model_type))
    patch = make_patch(ffns, NEURONS)
    for layer, index in NEURONS.items():
        for k, neuron in enumerate(index.tolist()):
            for i, projection in enumerate(ffns[layer].ins):
                assert torch.equal(patch[f"{layer}.in.{i}.weight"][k], projection.weight[neuron])
                if projection.bias is not None:
                    assert torch.equal(patch[f"{layer}.in.{i}.bias"][k], projection.bias[neuron])
            assert torch.equal(patch[f"{layer}.out.weight"][:, k], ffns[layer].out.weight[:, neuron])


@every_family
def test_a_patch_of_other_families_neurons_is_refused(model_type: str) -> None:
    """A plain family's patch lacks the gate or has it for the map; a gated one's has a map too many."""
    other = "bert" if is_gated(model_type) else "llama"
    patch = make_patch(ffns_of(small_model(other)), NEURONS)
    lacks, holds = r"must hold in\.1\.weight, torch\.float32 \[3", r"holds in\.(0\.bias|1\.weight), which"
    with pytest.raises(BadUpdate, match=rf"patch for layer 1 ({lacks}|{holds})"):
        apply_patch(ffns_of(small_model(model_type)), patch)


def test_a_patch_is_not_changed_by_what_happens_to_the_model(model: PreTrainedModel) -> None:
    patch = make_patch(ffns_of(model), NEURONS)
    before = copies(patch)
    shift(ffns_of(model), NEURONS)
    assert same_bits(patch, before)


def test_a_patch_from_a_file_does_not_reach_the_file_of_the_weights(
    tmp_path: Path, model: PreTrainedModel
) -> None:
    path, patch_path = tmp_path / "weights", tmp_path / "patch"
    path.write_bytes(to_bytes(model.state_dict()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    shift(ffns_of(model), NEURONS)
    patch_path.write_bytes(to_bytes(make_patch(ffns_of(model), NEURONS)))

    mapped = build(model.config, TEXT, WIDTHS, TensorFile(path).load())
    apply_patch(ffns_of(mapped), TensorFile(patch_path))
    assert same_bits(mapped.state_dict(), model.state_dict())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"1.neurons": torch.tensor([0, 3, FFN])}, "layer 1 names neurons beyond 64"),
        ({"1.neurons": torch.tensor([-1, 3, 5])}, "layer 1 names neurons beyond 64"),
        ({"1.neurons": torch.tensor([0.0, 3.0, 5.0])}, "neurons as int64"),
        ({"1.neurons": torch.tensor([True, False, True])}, "neurons as int64"),
        ({"1.neurons": torch.tensor([[0, 3, 63]])}, "neurons as int64"),
        ({"1.in.0.weight": torch.zeros(1, HIDDEN)}, r"must hold in\.0\.weight, torch\.float32 \[3, 32\]"),
        (
            {"1.in.0.weight": torch.zeros(3, HIDDEN).double()},
            r"must hold in\.0\.weight, torch\.float32 \[3, 32\]",
        ),
        ({"1.in.0.bias": torch.zeros(4)}, r"must hold in\.0\.bias, torch\.float32 \[3\]"),
        ({"1.in.0.bias": torch.tensor(0.0)}, r"must hold in\.0\.bias, torch\.float32 \[3\]"),
        ({"1.out.weight": torch.zeros(1, 3, 3)}, r"must hold out\.weight, torch\.float32 \[32, 3\]"),
        ({"1.out.weight": torch.zeros(3, HIDDEN)}, r"must hold out\.weight, torch\.float32 \[32, 3\]"),
        ({"1.in.0.weight": torch.zeros(3, HIDDEN + 1)}, r"must hold in\.0\.weight, torch\.float32 \[3, 32\]"),
        ({"9.neurons": torch.tensor([0])}, "names layer 9, the sub-FM has 4"),
        ({"-1.neurons": torch.tensor([0])}, "names layer -1, the sub-FM has 4"),
        ({"x.neurons": torch.tensor([0])}, "names layer x, the sub-FM has 4"),
        ({"3.neurons": torch.tensor([0])}, r"layer 3 must hold in\.0\.weight, torch\.float32 \[1, 32\]"),
    ],
)
def test_a_bad_patch_is_a_bad_update(model: PreTrainedModel, change: dict[str, Tensor], problem: str) -> None:
    patch = make_patch(ffns_of(model), NEURONS) | change
    with pytest.raises(BadUpdate, match=problem):
        apply_patch(ffns_of(model), patch)
