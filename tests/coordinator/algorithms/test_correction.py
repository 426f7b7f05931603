"""Correction: the FM comes to its teacher's predictions, by LoRA and head alone, always to the same bits."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import pytest
import torch
from torch import Tensor

from common.data.batches import Batch
from common.errors import Stopped, StoreError
from common.model.adapter import RESIDUAL, Adapted
from common.model.families import FAMILIES
from common.records import AdapterSpec, AdapterTargets, TaskKind
from coordinator.algorithms.correction import (
    Settings,
    as_now,
    correct,
    distance,
    divergence,
    mean_of,
    predictions,
)
from tests.coordinator.algorithms.pairs import batches, pair
from tests.small import copies, same_bits

SETTINGS = Settings(steps=12, learning_rate=3e-3, head_learning_rate=5e-3, warmup=0.2)
SPEC = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=4, alpha=8.0, dropout=0.5)
# The others are in the slow tier.
FAST = ("llama",)
NEURONS = AdapterSpec(AdapterTargets.ATTENTION_NEURONS, rank=4, alpha=8.0, dropout=0.5)
HEAD_ONLY = AdapterSpec(AdapterTargets.NONE, rank=4, alpha=8.0, dropout=0.5)


def kind_of(family: str) -> TaskKind:
    return FAMILIES[family].tasks[-1]


def tuned(family: str, seed: int, spec: AdapterSpec = SPEC) -> Adapted:
    """A small FM of this family with an adapter that has been trained to something."""
    fm, _ = pair(family)
    adapted = Adapted(fm, FAMILIES[family].tasks[0], spec)
    draw = torch.Generator().manual_seed(seed)
    moved = {n: t + 0.3 * torch.randn(t.shape, generator=draw) for n, t in adapted.tensors().items()}
    adapted.load(moved)
    return adapted


def some(adapted: Adapted, seed: int = 0) -> Iterator[Batch]:
    return batches(adapted.base, seed)


# The next where a small random model runs away at one.
RATES = (1e-2, 1e-3)


@pytest.mark.parametrize(
    "family", [f if f in FAST else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_the_fm_comes_to_the_teachers_predictions_and_nothing_but_its_adapter_moves(family: str) -> None:
    other = tuned(family, 2)
    for rate in RATES:
        student = tuned(family, 1)
        teacher = mean_of(as_now(student), partial(predictions, other.model, kind=other.kind))
        taught = list(islice(some(student, 9), 4))
        before = distance(student.model, teacher, taught, student.kind)
        base = {n: p.detach().clone() for n, p in student.model.named_parameters() if not p.requires_grad}
        losses: list[float] = []
        settings = Settings(steps=150, learning_rate=rate, head_learning_rate=rate, warmup=0.1)
        correct(student, teacher, cycle(taught), settings, on_step=lambda s, n, v, to=losses: to.append(v))
        assert len(losses) == 150
        assert same_bits(
            base, {n: p.detach().clone() for n, p in student.model.named_parameters() if not p.requires_grad}
        )
        assert all(p.grad is None for p in student.model.parameters())
        if (after := distance(student.model, teacher, taught, student.kind)) < 0.8 * before:
            break
    assert after < 0.8 * before


def test_a_head_alone_is_corrected_too() -> None:
    student, other = tuned("bert", 1, HEAD_ONLY), tuned("bert", 2, HEAD_ONLY)
    teacher = partial(predictions, other.model, kind=other.kind)
    held = list(islice(some(student, 9), 4))
    before = distance(student.model, teacher, held, student.kind)
    correct(student, teacher, some(student), SETTINGS)
    assert distance(student.model, teacher, held, student.kind) < before


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_neurons_in_full_are_corrected_at_a_rate_of_their_own(family: str) -> None:
    student, other = tuned(family, 1, NEURONS), tuned(family, 2, NEURONS)
    teacher = partial(predictions, other.model, kind=other.kind)
    held, before = list(islice(some(student, 9), 4)), student.tensors()
    far = distance(student.model, teacher, held, student.kind)
    correct(student, teacher, some(student), replace(SETTINGS, neuron_learning_rate=1e-3))
    assert distance(student.model, teacher, held, student.kind) < far
    after = student.tensors()
    moved = {n: float((after[n] - before[n]).abs().max()) for n in before if n.endswith(RESIDUAL)}
    # AdamW's steps are of its rate's size.
    assert moved and all(0 < way < 12.5 * 1e-3 for way in moved.values())


def test_a_teacher_stays_what_it_was_while_its_model_learns() -> None:
    student, other = tuned("bert", 1), tuned("bert", 2)
    teacher, batch = as_now(student), next(some(student, 5))
    before = teacher(batch)
    correct(student, partial(predictions, other.model, kind=other.kind), some(student), SETTINGS)
    assert torch.equal(teacher(batch), before)
    assert not torch.allclose(predictions(student.model, batch, student.kind), before)


def test_divergence_is_torchs_and_does_not_look_at_padding() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(3, 5, 7, generator=draw) for _ in range(2))
    targets = other.softmax(-1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    chosen = mask.bool()
    wanted = torch.nn.functional.kl_div(
        logits[chosen].log_softmax(-1), targets[chosen], reduction="batchmean"
    )
    found = divergence(logits, targets, mask, TaskKind.CAUSAL_LM)
    assert torch.allclose(found, wanted)
    logits[~chosen] += 100.0
    assert torch.equal(divergence(logits, targets, mask, TaskKind.CAUSAL_LM), found)
    assert divergence(other, targets, mask, TaskKind.CAUSAL_LM).abs() < 1e-6


def test_the_mean_of_teachers_is_of_their_probabilities() -> None:
    one, two = torch.tensor([[0.9, 0.1]]), torch.tensor([[0.1, 0.9]])
    assert torch.equal(mean_of(lambda _: one, lambda _: two)(Batch({})), torch.tensor([[0.5, 0.5]]))


def corrected(**options: Any) -> dict[str, Tensor]:
    student, other = tuned("bert", 1), tuned("bert", 2)
    teacher = mean_of(as_now(student), partial(predictions, other.model, kind=other.kind))
    correct(student, teacher, some(student), SETTINGS, checkpoint_every=4, **options)
    return student.tensors()


@pytest.mark.parametrize("at", [4, 7, 11])
def test_broken_off_it_goes_on_to_the_same_bits(at: int) -> None:
    kept: list[dict[str, Tensor]] = []

    def stop(step: int, steps: int, loss: float) -> None:
        if step == at:
            raise Stopped("stopped")

    with pytest.raises(Stopped):
        corrected(on_step=stop, on_checkpoint=lambda state: kept.append(copies(state)))
    assert int(kept[-1]["step"]) == at // 4 * 4
    assert same_bits(corrected(resume=kept[-1]), corrected())


def test_a_checkpoint_of_another_correction_is_refused() -> None:
    kept: list[dict[str, Tensor]] = []
    corrected(on_checkpoint=lambda state: kept.append(copies(state)))
    student = tuned("bert", 1)
    before = student.tensors()
    other = Settings(steps=20, learning_rate=1e-3, head_learning_rate=5e-3, warmup=0.2)
    with pytest.raises(StoreError, match="does not fit"):
        correct(student, as_now(student), some(student), other, resume=kept[0])
    assert same_bits(student.tensors(), before)
