"""The sub-FM before the rounds: every way to cut it and to align it, broken off and gone on with."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.config.choices import AlignmentMethod, Construction, Saliency
from common.config.method import AlignmentSection, SubModelSection
from common.data.batches import Dataset
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.data.processors import load_processor
from common.errors import ConfigError, ModelError, Stopped, StoreError
from common.model.ffn import ffns_of
from common.model.layers import layer_prefix
from common.model.submodel import SubModelPlan, own_weights
from common.records import TaskKind
from common.storage.tensors import TensorFile
from coordinator.algorithms import compression
from coordinator.modelling.building import (
    ABOUT_FILE,
    CHECKPOINT_FILE,
    LAYERS_FILE,
    PLAN_FILE,
    OnProgress,
    Recipe,
    SubModelBuilder,
    fingerprint,
)
from coordinator.modelling.foundation import load_foundation
from tests.conftest import FFN, LABELS, LAYERS, write_pictures, write_table
from tests.families import write_family
from tests.small import TEXT, load_model, load_texts, same_bits

QUICK = {"steps": 12, "batch_size": 8, "learning_rate": 3e-3, "closed_form_batches": 4, "checkpoint_every": 4}
GRADIENT, CLOSED_FORM, BOTH = AlignmentMethod.GRADIENT, AlignmentMethod.CLOSED_FORM, AlignmentMethod.BOTH


def unseen(step: int, steps: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 48)


@pytest.fixture
def fm(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


def builder(
    fm: PreTrainedModel,
    public: Dataset | None,
    *,
    seed: int = 7,
    alignment: dict[str, Any] | None = None,
    **settings: Any,
) -> SubModelBuilder:
    aligned = AlignmentSection(**QUICK | (alignment or {}))
    return SubModelBuilder(fm, TEXT, public, Recipe(SubModelSection(**settings), aligned, seed))


def neurons_of(plan: SubModelPlan) -> list[list[int] | None]:
    return [None if layer.neurons is None else layer.neurons.tolist() for layer in plan.layers]


def layers_only(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in own_weights(model).items()}


# --- cutting ---


@pytest.mark.parametrize("saliency", Saliency)
def test_every_saliency_gives_a_sub_fm_of_the_widths_asked_for(
    fm: PreTrainedModel, texts: Dataset, saliency: Saliency
) -> None:
    plan, sub_fm = builder(fm, texts, saliency=saliency).cut(unseen)
    assert tuple(ffn.width for ffn in ffns_of(sub_fm)) == (FFN, 16, 16, FFN)
    assert plan.compressed == (1, 2)
    assert same_bits(own_weights(sub_fm), compression.cut(fm, plan))


def test_every_saliency_keeps_neurons_of_its_own(fm: PreTrainedModel, texts: Dataset) -> None:
    everywhere = {"keep_first": 0, "keep_last": 0, "drop_ratio": 0.5}
    plans = {s: neurons_of(builder(fm, texts, saliency=s, **everywhere).cut(unseen)[0]) for s in Saliency}
    for one, other in combinations(Saliency, 2):
        assert plans[one] != plans[other], (one, other)


@pytest.mark.parametrize("saliency", [Saliency.L2, Saliency.RANDOM])
def test_a_saliency_that_looks_at_no_data_needs_none(fm: PreTrainedModel, saliency: Saliency) -> None:
    assert builder(fm, None, saliency=saliency).cut(unseen)[0].compressed == (1, 2)


def test_the_seed_decides_on_random_neurons_and_says_nothing_about_the_largest(fm: PreTrainedModel) -> None:
    def kept(saliency: Saliency, seed: int) -> list[list[int] | None]:
        return neurons_of(builder(fm, None, saliency=saliency, seed=seed).cut(unseen)[0])

    assert kept(Saliency.RANDOM, 1) == kept(Saliency.RANDOM, 1) != kept(Saliency.RANDOM, 2)
    assert kept(Saliency.L2, 1) == kept(Saliency.L2, 2)


def test_scoring_on_data_reports_its_progress_and_can_be_stopped(fm: PreTrainedModel, texts: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    building = builder(fm, texts, saliency=Saliency.ACTIVATION, saliency_batches=3)
    building.cut(lambda *told: seen.append(told))
    assert seen == [(1, 3), (2, 3), (3, 3)]

    def stop(step: int, steps: int) -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        building.cut(stop)


@pytest.mark.parametrize(
    ("settings", "widths"),
    [
        ({"drop_ratio": 0.5}, (FFN, 32, 32, FFN)),
        ({"keep_first": 0}, (16, 16, 16, FFN)),
        ({"keep_last": 2}, (FFN, 16, FFN, FFN)),
        ({"construction": Construction.FULL}, (FFN,) * LAYERS),
        ({"construction": Construction.LAYER_DROP}, (FFN,) * 3),
        ({"construction": Construction.LAYER_DROP, "drop_ratio": 0.0}, (FFN,) * LAYERS),
    ],
)
def test_the_settings_give_the_sub_fm_its_form(
    fm: PreTrainedModel, settings: dict[str, Any], widths: tuple[int, ...]
) -> None:
    plan, sub_fm = builder(fm, None, **settings).cut(unseen)
    assert tuple(ffn.width for ffn in ffns_of(sub_fm)) == widths == compression.ffn_widths(fm, plan)
    assert sub_fm.config.num_hidden_layers == len(widths)


def test_the_full_construction_is_the_fm(fm: PreTrainedModel) -> None:
    _, sub_fm = builder(fm, None, construction=Construction.FULL).cut(unseen)
    assert same_bits(own_weights(sub_fm), own_weights(fm))


def test_only_layers_that_lose_neurons_take_memory_of_their_own(fm: PreTrainedModel) -> None:
    plan, sub_fm = builder(fm, None).cut(unseen)
    theirs = {t.data_ptr() for t in fm.state_dict().values()}
    own = {name for name, t in own_weights(sub_fm).items() if t.data_ptr() not in theirs}
    layers = tuple(layer_prefix(fm.config, i) for i in plan.compressed)
    assert own == {name for name in own_weights(sub_fm) if name.startswith(layers)}


def test_layers_that_stay_whole_leave_something_to_cut_or_it_is_told(fm: PreTrainedModel) -> None:
    with pytest.raises(ConfigError, match=r"keep_first = 3 and sub_fm\.keep_last = 1 keep all 4 layers"):
        builder(fm, None, keep_first=3).cut(unseen)


# --- aligning ---


def aligned(
    building: SubModelBuilder, checkpoint: Path | None = None, on_progress: OnProgress = unseen
) -> tuple[tuple[float, float], dict[str, Tensor]]:
    plan, sub_fm = building.cut(unseen)
    return building.align(plan, sub_fm, on_progress, checkpoint), layers_only(sub_fm)


@pytest.mark.parametrize("method", AlignmentMethod)
def test_every_method_lowers_the_hidden_error(
    fm: PreTrainedModel, texts: Dataset, method: AlignmentMethod
) -> None:
    (before, after), _ = aligned(builder(fm, texts, alignment={"method": method}))
    assert 0 < after < 0.9 * before


@pytest.mark.parametrize("method", AlignmentMethod)
def test_alignment_starts_from_and_ends_at_the_errors_told(
    fm: PreTrainedModel, texts: Dataset, method: AlignmentMethod
) -> None:
    building = builder(fm, texts, alignment={"method": method})
    plan, sub_fm = building.cut(unseen)
    before = building.hidden_error(plan, sub_fm)
    told = building.align(plan, sub_fm, unseen)
    assert told == (before, building.hidden_error(plan, sub_fm))


def test_the_methods_go_different_ways_and_both_gains_on_its_first_half(
    fm: PreTrainedModel, texts: Dataset
) -> None:
    results = {m: aligned(builder(fm, texts, alignment={"method": m})) for m in AlignmentMethod}
    for one, other in combinations(AlignmentMethod, 2):
        assert not same_bits(results[one][1], results[other][1])
    assert results[BOTH][0][1] < results[CLOSED_FORM][0][1]


def test_without_steps_the_gradient_does_nothing_and_both_is_the_closed_form(
    fm: PreTrainedModel, texts: Dataset
) -> None:
    def without_steps(method: AlignmentMethod) -> tuple[tuple[float, float], dict[str, Tensor]]:
        return aligned(builder(fm, texts, alignment={"method": method, "steps": 0}))

    (before, after), weights = without_steps(GRADIENT)
    assert before == after
    assert same_bits(weights, layers_only(builder(fm, texts).cut(unseen)[1]))
    assert same_bits(without_steps(BOTH)[1], without_steps(CLOSED_FORM)[1])


@pytest.mark.parametrize("method", AlignmentMethod)
def test_the_same_settings_and_seed_give_the_same_bits_and_leave_the_fm_alone(
    fm: PreTrainedModel, texts: Dataset, method: AlignmentMethod
) -> None:
    fm_before = layers_only(fm)
    first, again = (aligned(builder(fm, texts, alignment={"method": method})) for _ in range(2))
    assert first[0] == again[0]
    assert same_bits(first[1], again[1])
    other = aligned(builder(fm, texts, alignment={"method": method}, seed=8))
    assert not same_bits(other[1], first[1])
    assert same_bits(layers_only(fm), fm_before)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (GRADIENT, [(i, 12) for i in range(1, 13)]),
        (CLOSED_FORM, [(1, 2), (2, 2)]),
        (BOTH, [(1, 2), (2, 2), *((i, 12) for i in range(1, 13))]),
    ],
)
def test_progress_is_layers_of_the_closed_form_and_steps_of_the_gradient(
    fm: PreTrainedModel, texts: Dataset, method: AlignmentMethod, expected: list[tuple[int, int]]
) -> None:
    seen: list[tuple[int, int]] = []
    aligned(builder(fm, texts, alignment={"method": method}), on_progress=lambda *told: seen.append(told))
    assert seen == expected


# --- broken off ---


def breaks_at(step: int, steps: int, seen: list[tuple[int, int]]) -> OnProgress:
    def on_progress(done: int, total: int) -> None:
        seen.append((done, total))
        if (done, total) == (step, steps):
            raise Stopped("stopped")

    return on_progress


@pytest.mark.parametrize("method", [GRADIENT, BOTH])
@pytest.mark.parametrize(("step", "resumed_after"), [(10, 8), (8, 8), (3, 0)])
def test_a_broken_off_alignment_goes_on_from_its_checkpoint_to_the_same_bits(
    fm: PreTrainedModel,
    texts: Dataset,
    tmp_path: Path,
    method: AlignmentMethod,
    step: int,
    resumed_after: int,
) -> None:
    building, checkpoint = builder(fm, texts, alignment={"method": method}), tmp_path / CHECKPOINT_FILE
    unbroken = aligned(building)
    with pytest.raises(Stopped):
        aligned(building, checkpoint, breaks_at(step, 12, []))
    assert checkpoint.exists() == (resumed_after > 0)
    seen: list[tuple[int, int]] = []
    # Another builder, as in another process.
    resumed = aligned(
        builder(fm, texts, alignment={"method": method}), checkpoint, lambda *told: seen.append(told)
    )
    assert [done for done, total in seen if total == 12] == list(range(resumed_after + 1, 13))
    # What the checkpoint holds already is not computed again.
    assert ((1, 2) in seen) == (method is BOTH and resumed_after == 0)
    assert resumed[0] == unbroken[0]
    assert same_bits(resumed[1], unbroken[1])


def test_a_closed_form_broken_off_begins_again_to_the_same_bits(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path
) -> None:
    building, checkpoint = builder(fm, texts, alignment={"method": BOTH}), tmp_path / CHECKPOINT_FILE
    with pytest.raises(Stopped):
        aligned(building, checkpoint, breaks_at(1, 2, []))
    assert not checkpoint.exists()
    assert same_bits(aligned(building, checkpoint)[1], aligned(building)[1])


def test_a_checkpoint_of_other_settings_is_refused(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path
) -> None:
    checkpoint = tmp_path / CHECKPOINT_FILE
    aligned(builder(fm, texts), checkpoint)
    with pytest.raises(StoreError, match="is of an alignment with other settings or another model"):
        aligned(builder(fm, texts, alignment={"learning_rate": 1e-3}), checkpoint)
    with pytest.raises(StoreError, match="is of an alignment with other settings or another model"):
        aligned(builder(fm, texts, drop_ratio=0.5), checkpoint)
    # Of the same widths, but of other neurons.
    with pytest.raises(StoreError, match="is of an alignment with other settings or another model"):
        aligned(builder(fm, texts, saliency=Saliency.RANDOM), checkpoint)


def test_a_closed_form_has_no_use_for_a_gradients_checkpoint(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path
) -> None:
    checkpoint = tmp_path / CHECKPOINT_FILE
    aligned(builder(fm, texts), checkpoint)
    assert checkpoint.exists()
    building = builder(fm, texts, alignment={"method": CLOSED_FORM})
    assert same_bits(aligned(building, checkpoint)[1], aligned(building)[1])


# --- ahead of a run ---


def test_what_was_built_is_loaded_as_it_was(fm: PreTrainedModel, texts: Dataset, tmp_path: Path) -> None:
    building = builder(fm, texts)
    plan, sub_fm = building.cut(unseen)
    error = building.align(plan, sub_fm, unseen)
    building.save(tmp_path / "built", plan, sub_fm, error)
    read_plan, read = builder(fm, None).load(tmp_path / "built")
    assert neurons_of(read_plan) == neurons_of(plan)
    assert same_bits(own_weights(read), own_weights(sub_fm))
    assert not read.training
    about = json.loads((tmp_path / "built" / ABOUT_FILE).read_text())
    assert (about["hidden_error_before"], about["hidden_error_after"]) == error
    assert about["ffn_widths"] == [FFN, 16, 16, FFN]
    assert about["seed"] == 7
    assert about["settings"]["saliency"] == "l2" and about["alignment"]["steps"] == 12


def test_the_files_hold_the_layers_and_no_embeddings_or_head(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path
) -> None:
    building = builder(fm, texts)
    building.save(tmp_path, *building.cut(unseen), (0.5, 0.25))
    assert all(name.startswith("bert.encoder.layer.") for name in TensorFile(tmp_path / LAYERS_FILE))
    assert len(TensorFile(tmp_path / LAYERS_FILE)) == LAYERS * 16


def test_a_head_drawn_anew_is_the_same_fm(model_folder: Path, texts: Dataset, tmp_path: Path) -> None:
    """Another run of the same FM has another seed, and with it another head."""
    one, other = load_model(model_folder), load_model(model_folder)
    with torch.no_grad():
        other.classifier.weight.add_(1)
    assert fingerprint(one) == fingerprint(other)
    building = builder(one, texts)
    building.save(tmp_path, *building.cut(unseen), (0.5, 0.25))
    _, read = builder(other, None).load(tmp_path)
    assert torch.equal(read.classifier.weight, other.classifier.weight)


def test_another_fm_is_refused(model_folder: Path, texts: Dataset, tmp_path: Path) -> None:
    building = builder(load_model(model_folder), texts)
    building.save(tmp_path, *building.cut(unseen), (0.5, 0.25))
    other = load_model(model_folder)
    with torch.no_grad():
        ffns_of(other)[3].out.weight[0, 0] += 1e-3
    assert fingerprint(other) != fingerprint(building.fm)
    with pytest.raises(
        ModelError, match=r"another foundation model, or of one held in another model\.dtype; build it"
    ):
        builder(other, None).load(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_a_folder_without_a_whole_build_is_refused(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path, content: str | None
) -> None:
    building = builder(fm, texts)
    if content is not None:
        building.save(tmp_path, *building.cut(unseen), (0.5, 0.25))
        (tmp_path / ABOUT_FILE).write_text(content)
    with pytest.raises(ModelError, match=r"holds no built sub-FM: .*`fedpft build` makes one"):
        building.load(tmp_path)


def test_what_tells_that_a_build_is_whole_is_written_last(
    fm: PreTrainedModel, texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    for how in ("write_atomically", "write_tensors"):
        monkeypatch.setattr(
            f"coordinator.modelling.building.{how}", lambda path, content: written.append(path.name)
        )
    building = builder(fm, texts)
    building.save(tmp_path, *building.cut(unseen), (0.5, 0.25))
    assert written[-1] == ABOUT_FILE and set(written) == {PLAN_FILE, LAYERS_FILE, ABOUT_FILE}


# --- other families and tasks ---


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("gpt2", TaskKind.CAUSAL_LM),
        ("llama", TaskKind.CAUSAL_LM),
        ("dinov2", TaskKind.IMAGE_CLASSIFICATION),
        ("distilbert", TEXT),
    ],
)
def test_another_family_is_cut_aligned_kept_and_loaded(
    model_type: str, kind: TaskKind, tmp_path: Path
) -> None:
    folder = write_family(tmp_path / "model", model_type, kind)
    labels = () if kind is TaskKind.CAUSAL_LM else LABELS
    fm = load_foundation(str(folder), kind, labels, 1).model
    data = tmp_path / "public"
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        data = write_pictures(data.with_suffix(".parquet"), 24)
    else:
        data = write_table(data.with_suffix(".csv"), 48, labelled=False)
    examples = read_examples(data, Columns(label=None), kind)
    public = encode(load_processor(folder, kind), examples, kind, 16, None)
    settings = SubModelSection(saliency=Saliency.ACTIVATION)
    recipe = Recipe(settings, AlignmentSection(**QUICK | {"method": BOTH}), 7)
    building = SubModelBuilder(fm, kind, public, recipe)
    plan, sub_fm = building.cut(unseen)
    assert tuple(ffn.width for ffn in ffns_of(sub_fm)) == (FFN, 16, 16, FFN)
    before, after = building.align(plan, sub_fm, unseen)
    assert after < 0.9 * before
    building.save(tmp_path / "built", plan, sub_fm, (before, after))
    read_plan, read = building.load(tmp_path / "built")
    assert neurons_of(read_plan) == neurons_of(plan)
    assert same_bits(own_weights(read), own_weights(sub_fm))
