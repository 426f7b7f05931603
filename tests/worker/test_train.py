"""Local fine-tuning: learns, repeats, and leaves behind exactly what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.batches import Dataset
from common.errors import Stopped
from common.model.adapter import Adapted, plus
from common.model.apoz import ZeroCounter
from common.model.families import ffns_of
from common.records import AdapterSpec, TrainingSpec
from tests.conftest import FFN
from tests.small import HEAD_ONLY, LORA, copies, load_model, load_texts, logits, same_bits
from worker.train import LocalUpdate, fine_tune

SPEC = TrainingSpec(
    epochs=2,
    batch_size=16,
    learning_rate=5e-3,
    head_learning_rate=5e-3,
    weight_decay=0.01,
    max_gradient_norm=1.0,
)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 40)


@pytest.fixture
def fresh(model_folder: Path) -> Callable[[AdapterSpec], Adapted]:
    return lambda spec: Adapted(load_model(model_folder), spec)


Fresh = Callable[[AdapterSpec], Adapted]


def tune(adapted: Adapted, texts: Dataset, seed: int = 1, **options: object) -> LocalUpdate:
    return fine_tune(adapted, adapted.tensors(), texts, SPEC, factor=1.0, seed=seed, **options)  # type: ignore[arg-type]


def base_weights(adapted: Adapted) -> dict[str, Tensor]:
    """All weights that the adapter does not hold."""
    state = adapted.base.state_dict()
    return copies({n: t for n, t in state.items() if ".lora_" not in n and "classifier" not in n})


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
def test_the_model_then_holds_start_plus_delta_bit_for_bit(
    fresh: Fresh, texts: Dataset, spec: AdapterSpec
) -> None:
    adapted = fresh(spec)
    start = adapted.tensors()
    update = tune(adapted, texts)
    assert same_bits(adapted.tensors(), plus(start, update.delta))
    assert all(update.delta[name].abs().max() > 0 for name in start)


def test_the_coordinators_model_then_computes_what_the_workers_does(fresh: Fresh, texts: Dataset) -> None:
    at_worker, at_coordinator = fresh(LORA), fresh(LORA)
    start, batch = at_worker.tensors(), texts.batch(range(8))
    update = tune(at_worker, texts)
    at_coordinator.load(plus(start, update.delta))
    assert torch.equal(logits(at_coordinator.model, batch), logits(at_worker.model, batch))


def test_training_lowers_the_loss(fresh: Fresh, texts: Dataset) -> None:
    adapted, spec = fresh(LORA), replace(SPEC, epochs=10)
    first = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1)
    second = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=2)
    assert second.loss < 0.85 * first.loss


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(fresh: Fresh, texts: Dataset) -> None:
    first, again, other = (tune(fresh(LORA), texts, seed) for seed in (1, 1, 2))
    assert same_bits(first.delta, again.delta) and first.loss == again.loss
    assert not same_bits(first.delta, other.delta)


def test_what_the_model_did_before_does_not_show(fresh: Fresh, texts: Dataset) -> None:
    """A worker that restarts in between sends the same update as one that does not."""
    used = fresh(LORA)
    start = used.tensors()
    tune(used, texts, seed=9)
    first = fine_tune(used, start, texts, SPEC, factor=1.0, seed=1)
    torch.rand(3)
    second = fine_tune(fresh(LORA), start, texts, SPEC, factor=1.0, seed=1)
    assert same_bits(first.delta, second.delta)


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
def test_only_the_adapter_is_trained(fresh: Fresh, texts: Dataset, spec: AdapterSpec) -> None:
    adapted = fresh(spec)
    before = base_weights(adapted)
    tune(adapted, texts)
    assert same_bits(base_weights(adapted), before)


def test_without_targets_the_head_is_all_that_changes(fresh: Fresh, texts: Dataset) -> None:
    adapted = fresh(HEAD_ONLY)
    before = copies(adapted.base.state_dict())
    update = tune(adapted, texts)
    after = adapted.base.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert {name.removeprefix("base_model.model.") for name in update.delta} == changed


def test_torchs_generator_is_left_as_it_was(fresh: Fresh, texts: Dataset) -> None:
    adapted = fresh(LORA)
    before = torch.get_rng_state()
    tune(adapted, texts)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_in_eval_mode(fresh: Fresh, texts: Dataset) -> None:
    adapted = fresh(LORA)
    tune(adapted, texts)
    assert not any(module.training for module in adapted.model.modules())


def test_the_rounds_factor_scales_how_far_training_goes(fresh: Fresh, texts: Dataset) -> None:
    sizes = []
    for factor in (0.1, 1.0):
        adapted = fresh(LORA)
        delta = fine_tune(adapted, adapted.tensors(), texts, SPEC, factor=factor, seed=1).delta
        sizes.append(sum(t.square().sum().item() for t in delta.values()))
    assert sizes[0] < 0.1 * sizes[1]


def test_steps_are_counted_and_reported(fresh: Fresh, texts: Dataset) -> None:
    seen: list[tuple[int, int]] = []
    update = tune(fresh(LORA), texts, on_step=lambda step, steps, loss: seen.append((step, steps)))
    # 40 texts in batches of 16 make 3 steps a pass.
    assert seen == [(i, 6) for i in range(1, 7)]
    assert update.steps == 6


def test_a_stop_in_between_leaves_a_model_that_can_be_tuned_again(fresh: Fresh, texts: Dataset) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise Stopped("another task came")

    adapted, untouched = fresh(LORA), fresh(LORA)
    start, generator = adapted.tensors(), torch.get_rng_state()
    with pytest.raises(Stopped):
        tune(adapted, texts, count_layers=(1,), on_step=stop)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(ffn.up._forward_hooks for ffn in ffns_of(adapted.base))
    after = fine_tune(adapted, start, texts, SPEC, factor=1.0, seed=1)
    assert same_bits(after.delta, tune(untouched, texts, seed=1).delta)


def test_zeros_are_counted_in_the_layers_asked_for_over_unpadded_tokens(fresh: Fresh, texts: Dataset) -> None:
    tokens = sum(len(row["input_ids"]) for row in texts.rows)
    update = tune(fresh(LORA), texts, count_layers=(1, 2))
    assert update.counts.keys() == {1, 2}
    for counts in update.counts.values():
        assert counts.tokens.item() == SPEC.epochs * tokens
        assert counts.zeros.shape == (FFN,)
        assert 0 < counts.zeros.max() <= counts.tokens
    assert tune(fresh(LORA), texts).counts == {}


def test_counting_does_not_change_the_update(fresh: Fresh, texts: Dataset) -> None:
    counted = tune(fresh(LORA), texts, count_layers=(1, 2))
    assert same_bits(counted.delta, tune(fresh(LORA), texts).delta)


def test_without_dropout_the_counts_are_those_of_a_plain_pass(fresh: Fresh, texts: Dataset) -> None:
    adapted = fresh(HEAD_ONLY)
    for module in adapted.base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with ZeroCounter({1: ffns_of(adapted.base)[1]}) as counter:
        for batch in texts.shuffled(40, seed=1):
            counter.mask = batch.mask
            logits(adapted.model, batch)
    spec = replace(SPEC, epochs=1, batch_size=40)
    update = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1, count_layers=(1,))
    assert torch.equal(update.counts[1].tokens, counter.counts[1].tokens)
    assert torch.equal(update.counts[1].zeros, counter.counts[1].zeros)
