"""Private training: each example's gradient by itself, clipped, with noise of the size that is paid for."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from common.data.batches import Batch, Dataset, TextDataset
from common.errors import ModelError
from common.model import passes, tasks
from common.model.adapter import Adapted
from common.model.families import FAMILIES
from common.privacy.accounting import PrivateSteps
from common.privacy.noise import SecretDraws
from common.records import AdapterSpec, AdapterTargets, LocalOptimizer, TaskKind, TrainingSpec
from common.task_forms import FORMS, Answer
from tests.common.privacy.test_noise import KEY, variance_is_likely
from tests.families import small_inputs, small_model
from tests.small import HEAD_ONLY, LORA, TEXT, load_model, load_texts, same_bits
from worker.private_training import (
    Mechanism,
    clipped_sum,
    fine_tune_privately,
    per_example_gradients,
)
from worker.train import LocalUpdate

SGD = TrainingSpec(1, 3, 0.5, 0.5, 0.0, 1.0, optimizer=LocalOptimizer.SGD)
CLIP = 0.05
FFN_TOO = replace(LORA, targets=AdapterTargets.ATTENTION_FFN)


class Rows(Dataset):
    """A batch, row by row."""

    def __init__(self, whole: Batch) -> None:
        self.whole = whole

    def __len__(self) -> int:
        return len(next(iter(self.whole.inputs.values())))

    def batch(self, indices: object) -> Batch:
        rows = list(indices)  # type: ignore[call-overload]
        assert self.whole.labels is not None
        return Batch({n: t[rows] for n, t in self.whole.inputs.items()}, self.whole.labels[rows])


def adapted_of(family: str, kind: TaskKind, spec: AdapterSpec) -> tuple[Adapted, Rows]:
    """A small model with an adapter that does something, and five rows with labels of its own drawing."""
    adapted = Adapted(small_model(family, kind), kind, spec)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameter_groups().all:
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    inputs = small_inputs(adapted.base, 5)
    if FORMS[kind].answer is Answer.NEXT_TOKEN:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, tasks.IGNORED)
    else:
        with torch.no_grad():
            scores = passes.logits(adapted.model, inputs)
        labels = tasks.drawn_labels(scores, inputs.get("attention_mask"), kind, 1)
    return adapted, Rows(Batch(inputs, labels))


def length(tensors: list[Tensor]) -> float:
    return float(torch.cat([t.double().flatten() for t in tensors]).norm())


EVERY = [
    pytest.param(family, kind, marks=[] if (family, kind) == ("bert", TEXT) else [pytest.mark.slow])
    for family, known in FAMILIES.items()
    for kind in known.tasks
]


# A head with a normalisation; rows that layers flatten; modules that see relative positions, too.
REFUSED = ("modernbert", "opt", "deberta-v2")


@pytest.mark.slow
@pytest.mark.parametrize("family", REFUSED)
def test_where_an_example_cannot_be_bounded_nothing_is_trained(family: str) -> None:
    with pytest.raises(ModelError, match=r"privacy\.dp"):
        adapted, rows = adapted_of(family, TEXT, FFN_TOO)
        with per_example_gradients(adapted):
            clipped_sum(adapted, rows, range(5), CLIP, SGD)


@pytest.mark.parametrize(("family", "kind"), [e for e in EVERY if e.values[0] not in REFUSED])
def test_one_example_more_moves_the_sum_by_the_clip_at_most(family: str, kind: TaskKind) -> None:
    adapted, rows = adapted_of(family, kind, FFN_TOO)
    with per_example_gradients(adapted):
        whole = clipped_sum(adapted, rows, range(5), CLIP, SGD)
        moved = []
        for left in range(5):
            others = clipped_sum(adapted, rows, [i for i in range(5) if i != left], CLIP, SGD)
            moved.append(length([a - b for a, b in zip(whole, others, strict=True)]))
        unclipped = clipped_sum(adapted, rows, range(5), 1e9, SGD)
    assert max(moved) <= CLIP * (1 + 1e-4)
    # And it is reached: gradients are larger than the clip here.
    assert max(moved) == pytest.approx(CLIP, rel=1e-3)
    # Without a clip it is the gradient as everywhere else, one example after the other.
    tuned = adapted.parameter_groups().all
    plain = [torch.zeros_like(p) for p in tuned]
    for i in range(5):
        one = rows.batch([i])
        assert one.labels is not None
        value = passes.loss(adapted.model, one.inputs, one.labels, kind)
        for total, gradient in zip(plain, torch.autograd.grad(value, tuned, allow_unused=True), strict=True):
            total += 0 if gradient is None else gradient
    scale = max(float(t.abs().max()) for t in plain)
    for ours, theirs in zip(unclipped, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5 * scale, rtol=1e-4)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> TextDataset:
    return load_texts(model_folder, 40)


@pytest.fixture
def fresh(model_folder: Path) -> Callable[[AdapterSpec], Adapted]:
    return lambda spec: Adapted(load_model(model_folder), TEXT, spec)


Fresh = Callable[[AdapterSpec], Adapted]


def tune(adapted: Adapted, texts: Dataset, noise: float, steps: int = 1, **options: object) -> LocalUpdate:
    spec = options.pop("spec", SGD)
    mechanism = Mechanism(PrivateSteps(steps, 0.5, noise), CLIP, 20)
    draws = SecretDraws(KEY)
    return fine_tune_privately(
        adapted,
        adapted.tensors(),
        texts,
        spec,  # type: ignore[arg-type]
        mechanism,
        factor=1.0,
        draws=draws,
        **options,  # type: ignore[arg-type]
    )


def noise_in(fresh: Fresh, texts: Dataset, spec: AdapterSpec) -> np.ndarray:
    """What is in an update beside the same examples' gradients, in units of what is due there."""
    noise = 50.0
    noised, plain = tune(fresh(spec), texts, noise).delta, tune(fresh(spec), texts, 0.0).delta
    found = torch.cat([(noised[name] - plain[name]).flatten() for name in sorted(plain)])
    # A step of SGD: the rate, times noise times clip, over the expected batch.
    return (found.double() / (SGD.learning_rate * noise * CLIP / 20)).numpy()


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["LoRA and head", "head"])
def test_the_noise_is_what_is_paid_for(fresh: Fresh, texts: TextDataset, spec: AdapterSpec) -> None:
    found = noise_in(fresh, texts, spec)
    assert variance_is_likely(found, 1.0)


def test_noise_smaller_by_the_root_of_two_would_show(
    fresh: Fresh, texts: TextDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = SecretDraws.normals
    monkeypatch.setattr(SecretDraws, "normals", lambda self, shape: right(self, shape) / math.sqrt(2))
    assert not variance_is_likely(noise_in(fresh, texts, LORA), 1.0)


@pytest.mark.slow
def test_it_learns_and_leaves_behind_what_it_says(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    start = adapted.tensors()
    learning = TrainingSpec(1, 40, 5e-3, 5e-3, 0.01, 1.0)
    update = tune(adapted, texts, 0.01, steps=30, spec=learning)
    assert same_bits(adapted.tensors(), {n: v + update.delta.get(n, 0) for n, v in start.items()})
    assert update.steps == 30 and update.loss == 0.0 and not update.counts
    batch = texts.batch(range(40))
    assert batch.labels is not None
    with torch.no_grad():
        right = (passes.logits(adapted.model, batch.inputs).argmax(-1) == batch.labels).float().mean()
    assert right > 0.8


def test_nothing_of_it_stays_in_the_model(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    for _ in range(2):
        tune(adapted, texts, 1.0)
    assert not any(module._forward_hooks or module._backward_hooks for module in adapted.model.modules())
    assert not any(hasattr(p, "grad_sample") or p.grad is not None for p in adapted.model.parameters())
    assert not any(module.training for module in adapted.model.modules())


def test_an_empty_batch_is_noise_alone(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(HEAD_ONLY)
    with per_example_gradients(adapted):
        assert length(clipped_sum(adapted, texts, [], CLIP, SGD)) == 0.0


def test_an_example_without_a_finite_gradient_adds_nothing(fresh: Fresh) -> None:
    adapted, rows = adapted_of("vit", TaskKind.IMAGE_CLASSIFICATION, HEAD_ONLY)
    rows.whole.inputs["pixel_values"][2] = torch.nan
    with per_example_gradients(adapted):
        with_it = clipped_sum(adapted, rows, range(5), CLIP, replace(SGD, batch_size=1))
        without = clipped_sum(adapted, rows, [0, 1, 3, 4], CLIP, replace(SGD, batch_size=1))
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))


@pytest.mark.slow
def test_how_many_are_computed_with_at_a_time_changes_no_sum(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    with per_example_gradients(adapted):
        sums = [
            clipped_sum(
                adapted, texts, range(17), CLIP, replace(SGD, batch_size=size, tokens_per_step=tokens)
            )
            for size, tokens in ((17, 0), (4, 0), (17, 20))
        ]
    for other in sums[1:]:
        for a, b in zip(sums[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_what_has_no_gradient_of_each_example_is_refused(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    norm = next(module for module in adapted.model.modules() if isinstance(module, nn.LayerNorm))
    norm.weight.requires_grad_(True)
    with pytest.raises(ModelError, match="linear maps alone, and there is a LayerNorm"):
        tune(adapted, texts, 1.0)


@pytest.mark.slow
def test_fedprox_pulls_back_without_looking_at_the_data(fresh: Fresh, texts: TextDataset) -> None:
    free = tune(fresh(HEAD_ONLY), texts, 1.0, steps=10).delta
    held = tune(fresh(HEAD_ONLY), texts, 1.0, steps=10, spec=replace(SGD, proximal=1.0)).delta
    assert length(list(held.values())) < length(list(free.values()))
