"""Models in bfloat16: cut, aligned, compared and tuned as others are, what is trained being float32."""

import pytest
import torch
from transformers import PreTrainedModel

from common.config.choices import Saliency
from common.data.batches import Batch
from common.model import passes
from common.model.adapter import Adapted
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.submodel import SubModelPlan, build
from common.model.tasks import drawn_labels
from common.records import AdapterSpec, AdapterTargets, TaskKind
from coordinator.algorithms.compression import config_of, cut, ffn_widths, plan_ffn_pruning
from coordinator.algorithms.distillation import Settings, distil, hidden_error
from coordinator.algorithms.gradient_gap import measure
from coordinator.algorithms.reconstruction import reconstruct
from coordinator.algorithms.saliency import score_layers
from tests.coordinator.algorithms.pairs import batches
from tests.families import small_inputs, small_model
from tests.small import copies, same_bits

HALF = torch.bfloat16
SPEC = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=3, alpha=6.0, dropout=0.0)
FAST = ("bert", "gpt2", "llama", "vit")
every_task = pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        pytest.param(name, kind, marks=() if name in FAST and kind is family.tasks[0] else pytest.mark.slow)
        for name, family in FAMILIES.items()
        if family.half
        # Whatever the head, what is under it is the same.
        for kind in dict.fromkeys((family.tasks[0], family.tasks[-1]))
    ],
)


def in_half(model_type: str, kind: TaskKind) -> PreTrainedModel:
    model = small_model(model_type, kind)
    model.config.dtype = HALF
    return model.to(HALF)  # type: ignore[arg-type]


def some(model: PreTrainedModel, count: int = 4) -> list[Batch]:
    return [Batch(small_inputs(model, 6, seed)) for seed in range(count)]


def cut_from(fm: PreTrainedModel, kind: TaskKind) -> tuple[SubModelPlan, PreTrainedModel]:
    plan = plan_ffn_pruning(score_layers(fm, Saliency.ACTIVATION, some(fm), 0), 0.75)
    return plan, build(config_of(fm, plan), kind, ffn_widths(fm, plan), cut(fm, plan))


def dtypes(model: PreTrainedModel) -> set[torch.dtype]:
    return {parameter.dtype for parameter in model.parameters()}


@every_task
def test_both_alignments_bring_it_nearer_and_it_stays_so(model_type: str, kind: TaskKind) -> None:
    fm = in_half(model_type, kind)
    whole = copies(fm.state_dict())
    plan, sub_fm = cut_from(fm, kind)
    _, other = cut_from(fm, kind)
    reconstruct(fm, sub_fm, plan.compressed, some(fm), 1e-2)
    distil(fm, other, plan.compressed, batches(fm), Settings(30, 2e-3, 0.1, 0.01))
    before, closed, trained = (
        hidden_error(fm, model, plan.compressed, iter(some(fm)))
        for model in (cut_from(fm, kind)[1], sub_fm, other)
    )
    assert closed < 0.9 * before and trained < 0.9 * before
    assert dtypes(other) == {HALF}
    assert dtypes(fm) == dtypes(sub_fm) == {HALF}
    assert same_bits(copies(fm.state_dict()), whole)


def test_of_chosen_neurons_only_these_change() -> None:
    fm = in_half("bert", TaskKind.TEXT_CLASSIFICATION)
    plan, sub_fm = cut_from(fm, TaskKind.TEXT_CLASSIFICATION)
    before = [ffn.out.weight.detach().clone() for ffn in ffns_of(sub_fm)]
    neurons = {i: torch.tensor([1, 4]) for i in plan.compressed}
    distil(fm, sub_fm, plan.compressed, batches(fm), Settings(5, 1e-2, 0.1, 0.01), neurons=neurons)
    for i, (was, ffn) in enumerate(zip(before, ffns_of(sub_fm), strict=True)):
        changed = (ffn.out.weight != was).any(0).nonzero().flatten().tolist()
        assert changed == ([1, 4] if i in plan.compressed else [])


@every_task
def test_what_is_tuned_is_float32_and_answers_are_the_whole_models(model_type: str, kind: TaskKind) -> None:
    exact, fm = small_model(model_type, kind), in_half(model_type, kind)
    inputs = small_inputs(fm, 6)
    with torch.no_grad():
        wanted = passes.logits(exact, inputs)
        tuned = Adapted(fm, kind, SPEC, seed=1)
        found = passes.logits(tuned.model, inputs).float()
    assert (found - wanted).norm() < 0.1 * wanted.norm()
    mask = inputs.get("attention_mask")
    labels = inputs["input_ids"] if kind is TaskKind.CAUSAL_LM else drawn_labels(wanted, mask, kind, 0)
    passes.loss(tuned.model, inputs, labels, kind).backward()
    groups = [p for group in tuned.parameter_groups() for p in group]
    assert (
        {p.dtype for p in groups} == {p.grad.dtype for p in groups if p.grad is not None} == {torch.float32}
    )
    assert {tensor.dtype for tensor in tuned.tensors().values()} == {torch.float32}
    frozen = [(n, p) for n, p in tuned.model.named_parameters() if not p.requires_grad]
    # peft keeps the head as it was beside the tuned one.
    assert {p.dtype for n, p in frozen if ".original_module." not in n} == {HALF}


@every_task
def test_the_gap_is_about_that_in_float32(model_type: str, kind: TaskKind) -> None:
    gaps = []
    for fm in (small_model(model_type, kind), in_half(model_type, kind)):
        plan, sub_fm = cut_from(fm, kind)
        inputs = small_inputs(fm, 6)
        batch = Batch(inputs, inputs["input_ids"] if kind is TaskKind.CAUSAL_LM else None)
        both = (Adapted(model, kind, SPEC, seed=1) for model in (fm, sub_fm))
        gaps.append(measure(*both, plan, [batch], 0, seed=5))
    exact, half = gaps
    assert half.cosine == pytest.approx(exact.cosine, abs=0.1)
    for a, b in zip(exact.layers, half.layers, strict=True):
        assert b.output_difference == pytest.approx(a.output_difference, rel=0.2, abs=0.02)
        assert b.weight_difference == pytest.approx(a.weight_difference, rel=0.1, abs=0.02)
