"""The FM spread over memory and disk does what it does in one place, or says why not."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from common.config.file import parse_config
from common.config.service import ComputeSection
from common.data.examples import Columns, read_examples
from common.errors import ConfigError
from common.model.families import FAMILIES
from common.model.held import device_of, held_itself
from common.model.submodel import own_weights
from common.storage.tensors import TensorFile
from coordinator.modelling.building import fingerprint
from coordinator.modelling.spreading import placed, spread
from coordinator.owner.export import export
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import LABELS, write_table
from tests.families import EVERYDAY, small_inputs, small_model
from tests.small import same_bits

MAP = {"layers.0": "cpu", "layers.1-2": "disk"}


def on_disk(folder: Path, **changes: Any) -> ComputeSection:
    return ComputeSection.model_validate({"device_map": MAP, "offload_folder": folder} | changes)


def answers(model: Any) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(**small_inputs(model, 3, seed=5)).logits
    return found


@pytest.mark.parametrize("family", EVERYDAY)
def test_a_spread_model_has_the_values_and_answers_of_a_plain_one(family: str, tmp_path: Path) -> None:
    plain, model = small_model(family), small_model(family)
    spread(model, on_disk(tmp_path))
    held = {name: p.is_meta for name, p in model.named_parameters()}
    layers = [name for name, is_meta in held.items() if is_meta]
    assert 2 * len(layers) > len(held) / 4 and {
        int(c) for n in layers for c in n.split(".") if c.isdigit()
    } == {
        1,
        2,
    }
    assert same_bits(own_weights(plain), own_weights(model))
    assert fingerprint(plain) == fingerprint(model)
    for _ in range(2):
        torch.testing.assert_close(answers(model), answers(plain), rtol=1e-5, atol=1e-5)
    assert {name: p.is_meta for name, p in model.named_parameters()} == held
    assert device_of(model) == torch.device("cpu")
    with held_itself(model):
        assert not any(p.is_meta for p in model.parameters())


def test_what_lies_on_disk_goes_with_the_model(tmp_path: Path) -> None:
    model = small_model("bert")
    spread(model, on_disk(tmp_path / "there"))
    (own,) = (tmp_path / "there").iterdir()
    assert (own / "layers.safetensors").stat().st_size > 0
    del model
    gc.collect()
    assert list((tmp_path / "there").iterdir()) == []


def test_auto_fills_one_place_after_the_other(tmp_path: Path) -> None:
    model = small_model("llama")
    layer = sum(p.numel() * p.element_size() for p in model.model.layers[0].parameters())
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    rest = whole - 4 * layer

    def places(most: int) -> list[str]:
        return placed(model, ComputeSection(device_map="auto", max_gigabytes={"cpu": most / 1e9}))

    assert places(whole + 8) == ["cpu"] * 4
    assert places(rest + 2 * layer + 8) == ["cpu", "cpu", "disk", "disk"]
    assert places(0) == ["disk"] * 4
    assert placed(model, ComputeSection(device_map="auto")) == ["cpu"] * 4


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"device_map": {"layers.0": "cuda:7"}}, 'device_map names "cuda:7", which cannot be used here'),
        ({"device_map": {"layers.0": "gpu"}}, 'device_map names "gpu", which cannot be used here'),
        ({"device_map": {"layers.3-4": "cpu"}}, 'names "layers.3-4", and the model has the layers 0 to 3'),
        ({"device_map": {"layers.1": "cpu", "layers.0-2": "cpu"}}, "names layer 1 twice"),
        ({"device_map": "auto", "max_gigabytes": {"cpu": 0}}, "set compute.offload_folder to a folder"),
    ],
)
def test_a_map_that_does_not_fit_is_one_line_and_changes_nothing(section: dict[str, Any], told: str) -> None:
    model = small_model("bert")
    with pytest.raises(ConfigError, match=told) as caught:
        spread(model, ComputeSection.model_validate(section))
    assert "\n" not in str(caught.value)
    assert not any(p.is_meta for p in model.parameters())
    assert not hasattr(model, "_hf_hook")


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"compute.offload_folder .*file.* cannot be written"):
        spread(small_model("bert"), on_disk(tmp_path / "file"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"compute.device_map": "all"}, 'device_map: must be "auto", or name layers and their devices'),
        ({"compute.device_map": {}}, 'device_map: must be "auto", or name layers and their devices'),
        ({"compute.device_map": {"0": "cpu"}}, 'keys must be "layers.N" or "layers.N-M", N <= M, got "0"'),
        ({"compute.device_map": {"layers.2-1": "cpu"}}, 'N <= M, got "layers.2-1"'),
        ({"compute.device_map": {"layers.1": 1}}, '"layers.1" must be a device'),
        ({"compute.device_map": {"layers.1": "disk"}}, 'offload_folder must be set for layers on "disk"'),
        ({"compute.max_gigabytes": {"cpu": 1}}, 'max_gigabytes needs device_map = "auto"'),
        (
            {"compute.device_map": "auto", "aggregation.lora": "exact"},
            'compute.device_map must be unset for aggregation.lora = "exact"',
        ),
        ({"compute.device_map": "auto", "adapter.targets": "neurons"}, "compute.device_map must be unset"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], told: str) -> None:
    given = {"model.path": "m", "task.labels": ["a", "b"], "alignment.steps": 0} | settings
    with pytest.raises(ConfigError) as caught:
        parse_config(given, "here")
    assert told in str(caught.value)


def whole_run(folder: Path, model: Path, more: dict[str, Any]) -> Path:
    """A run with every step that looks at the FM: alignments, gaps, scores, the correction."""
    values: dict[str, Any] = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "data.test.path": write_table(folder / "test.csv", 40, 91),
        "sub_fm.saliency": "activation",
        "alignment.method": "both",
        "alignment.steps": 4,
        "realignment.every": 1,
        "realignment.steps": 3,
        "adapter.targets": "attention+ffn",
        "correction.steps": 4,
        "correction.least_gain": 0.0,
        "rounds.count": 1,
        "rounds.workers": 2,
        "rounds.minimum": 2,
        "training.checkpointing": True,
        "compute.threads": 1,
    }
    clients = {
        f"worker-{n}": read_examples(write_table(folder / f"{n}.csv", 30, n), Columns()) for n in (1, 2)
    }
    simulate(parse_config(values | more, "test"), clients, score_every=1, score_sub_fm=True)
    return folder / "run"


@pytest.mark.slow
def test_a_run_of_a_spread_fm_ends_where_one_in_one_place_ends(tmp_path: Path, model_folder: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "spread").mkdir()
    settings = {"compute.device_map": MAP, "compute.offload_folder": tmp_path / "off"}
    folders = [
        whole_run(tmp_path / "plain", model_folder, {}),
        whole_run(tmp_path / "spread", model_folder, settings),
    ]
    stores = [Store(folder) for folder in folders]
    gaps = [store.gaps() for store in stores]
    scores = [store.evaluations() for store in stores]
    corrections = [store.corrections.of(1) for store in stores]
    adapters = [TensorFile(s.artifacts.path(s.latest_adapter()[1].sha256)).load() for s in stores]  # type: ignore[index]
    for store in stores:
        store.close()
    assert corrections[0] is not None and corrections[1] is not None
    before, after = corrections[0].before, corrections[0].after
    assert before != after
    assert (corrections[1].before, corrections[1].after) == pytest.approx((before, after), rel=1e-3)
    assert len(gaps[0]) == len(gaps[1]) > 0
    for one, other in zip(*gaps, strict=True):
        assert other.cosine == pytest.approx(one.cosine, abs=1e-5)
        assert [layer.output_difference for layer in other.layers] == pytest.approx(
            [layer.output_difference for layer in one.layers], abs=1e-5
        )
    assert len(scores[0]) == len(scores[1]) == 2
    for mine, theirs in zip(*scores, strict=True):
        assert (theirs.round, theirs.model) == (mine.round, mine.model)
        assert theirs.loss == pytest.approx(mine.loss, abs=1e-5)
    assert max(float((adapters[0][name] - adapters[1][name]).abs().max()) for name in adapters[0]) < 1e-5
    for folder, out in zip(folders, ("a", "b"), strict=True):
        export(folder, tmp_path / out, merge=True)
    one, two = (TensorFile(tmp_path / out / "model.safetensors").load() for out in ("a", "b"))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5
    # A model refers to itself.
    gc.collect()
    assert list((tmp_path / "off").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(EVERYDAY)))
def test_so_has_one_of_every_other_family(family: str, tmp_path: Path) -> None:
    test_a_spread_model_has_the_values_and_answers_of_a_plain_one(family, tmp_path)
