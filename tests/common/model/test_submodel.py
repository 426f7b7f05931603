"""Sub-FMs built from widths and weights alone, and patches over them."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.batches import Dataset
from common.errors import BadUpdate, ModelError
from common.model.families import Ffn, ffns_of
from common.model.submodel import LayerPlan, SubModelPlan, apply_patch, build, make_patch
from common.tensors import TensorFile, to_bytes
from tests.conftest import FFN, HIDDEN, LAYERS
from tests.small import copies, load_model, load_texts, logits, same_bits

WIDTHS = (FFN,) * LAYERS
NEURONS = {1: torch.tensor([0, 3, 63]), 2: torch.tensor([7])}


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 6)


def shift(ffns: list[Ffn], neurons: dict[int, Tensor]) -> None:
    """Change everything that belongs to these neurons."""
    with torch.no_grad():
        for layer, index in neurons.items():
            ffns[layer].up.weight[index] += 1
            ffns[layer].up.bias[index] -= 2
            ffns[layer].down.weight[:, index] += 3


def test_a_plan_survives_its_tensors() -> None:
    plan = SubModelPlan((LayerPlan(0, None), LayerPlan(2, torch.tensor([1, 4])), LayerPlan(3, None)))
    read = SubModelPlan.from_tensors(plan.to_tensors())
    assert read.compressed == plan.compressed == (1,)
    assert [layer.source for layer in read.layers] == [0, 2, 3]
    assert read.layers[1].neurons is not None and read.layers[1].neurons.tolist() == [1, 4]
    assert read.layers[0].neurons is None and read.layers[2].neurons is None


def test_a_model_built_from_its_own_weights_is_the_same(model: PreTrainedModel, texts: Dataset) -> None:
    built = build(model.config, WIDTHS, model.state_dict())
    batch = texts.batch(range(6))
    assert not built.training
    assert torch.equal(logits(built, batch), logits(model, batch))


def test_a_built_models_parameters_are_the_given_weights_not_copies(model: PreTrainedModel) -> None:
    weights = model.state_dict()
    built = build(model.config, WIDTHS, weights)
    assert all(p.data_ptr() == weights[name].data_ptr() for name, p in built.named_parameters())


def test_a_wrong_number_of_widths_is_a_model_error(model: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="3 FFN widths given for 4 layers"):
        build(model.config, WIDTHS[:3], model.state_dict())


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
        build(model.config, widths, weights)
    assert "\n" not in str(caught.value)


def test_a_patch_makes_one_model_the_other(model: PreTrainedModel) -> None:
    changed = build(model.config, WIDTHS, copies(model.state_dict()))
    shift(ffns_of(changed), NEURONS)
    assert not same_bits(changed.state_dict(), model.state_dict())
    apply_patch(ffns_of(model), make_patch(ffns_of(changed), NEURONS))
    assert same_bits(changed.state_dict(), model.state_dict())


def test_a_patch_holds_the_named_neurons_and_nothing_else(model: PreTrainedModel) -> None:
    patch = make_patch(ffns_of(model), NEURONS)
    assert {name: tuple(tensor.shape) for name, tensor in patch.items()} == {
        "1.neurons": (3,),
        "1.up.weight": (3, HIDDEN),
        "1.up.bias": (3,),
        "1.down.weight": (HIDDEN, 3),
        "2.neurons": (1,),
        "2.up.weight": (1, HIDDEN),
        "2.up.bias": (1,),
        "2.down.weight": (HIDDEN, 1),
    }


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

    mapped = build(model.config, WIDTHS, TensorFile(path).load())
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
        ({"1.up.weight": torch.zeros(1, HIDDEN)}, "one value for each neuron"),
        ({"1.up.bias": torch.zeros(4)}, "one value for each neuron"),
        ({"1.up.bias": torch.tensor(0.0)}, "does not fit"),
        ({"1.down.weight": torch.zeros(1, 3, 3)}, "does not fit"),
        ({"1.up.weight": torch.zeros(3, HIDDEN + 1)}, "does not fit"),
        ({"1.up.weight": torch.zeros(3, HIDDEN, dtype=torch.float64)}, "does not fit"),
        ({"9.neurons": torch.tensor([0])}, "names layer 9, the sub-FM has 4"),
        ({"-1.neurons": torch.tensor([0])}, "names layer -1, the sub-FM has 4"),
        ({"x.neurons": torch.tensor([0])}, "names layer x, the sub-FM has 4"),
        ({"3.neurons": torch.tensor([0])}, "layer 3 does not fit"),
    ],
)
def test_a_bad_patch_is_a_bad_update(model: PreTrainedModel, change: dict[str, Tensor], problem: str) -> None:
    patch = make_patch(ffns_of(model), NEURONS) | change
    with pytest.raises(BadUpdate, match=problem):
        apply_patch(ffns_of(model), patch)
