"""Local fine-tuning: learns, repeats, and leaves behind exactly what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from common.data.batches import CausalDataset, Dataset, TextDataset
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.data.processors import load_processor
from common.errors import Stopped
from common.model import tasks
from common.model.adapter import PEFT_PREFIX, RESIDUAL, Adapted, plus, trained
from common.model.apoz import ZeroCounter
from common.model.ffn import Projection, ffns_of
from common.records import AdapterSpec, AdapterTargets, LocalOptimizer, TaskKind, TrainingSpec, ZeroRule
from tests.conftest import FFN, HIDDEN, LABELS, VOCABULARY, write_pictures, write_table
from tests.families import small_model, write_family
from tests.small import HEAD_ONLY, LORA, TEXT, copies, load_model, load_texts, logits, same_bits
from worker.train import Diverged, LocalUpdate, fine_tune

SPEC = TrainingSpec(
    epochs=2,
    batch_size=16,
    learning_rate=5e-3,
    head_learning_rate=5e-3,
    weight_decay=0.01,
    max_gradient_norm=1.0,
    neuron_learning_rate=1e-3,
)
FROZEN_A = replace(LORA, freeze_a=True)
FFN_TOO = replace(LORA, targets=AdapterTargets.ATTENTION_FFN)
CALM = replace(LORA, dropout=0.0)
CALM_TOO = replace(CALM, targets=AdapterTargets.ATTENTION_NEURONS)
NEURONS = replace(LORA, targets=AdapterTargets.NEURONS)
BOTH = replace(LORA, targets=AdapterTargets.ATTENTION_NEURONS)
every_spec = pytest.mark.parametrize(
    "spec",
    [LORA, FFN_TOO, HEAD_ONLY, FROZEN_A, NEURONS, BOTH],
    ids=["attention", "ffn", "none", "frozen A", "neurons", "attention and neurons"],
)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> TextDataset:
    return load_texts(model_folder, 40)


@pytest.fixture
def fresh(model_folder: Path) -> Callable[[AdapterSpec], Adapted]:
    return lambda spec: Adapted(load_model(model_folder), TEXT, spec)


Fresh = Callable[[AdapterSpec], Adapted]


def tune(adapted: Adapted, texts: Dataset, seed: int = 1, **options: object) -> LocalUpdate:
    return fine_tune(adapted, adapted.tensors(), texts, SPEC, factor=1.0, seed=seed, **options)  # type: ignore[arg-type]


def counter(adapted: Adapted, *layers: int, rule: ZeroRule = ZeroRule.PRE_ACTIVATION) -> ZeroCounter:
    ffns = ffns_of(adapted.base)
    return ZeroCounter({layer: ffns[layer] for layer in layers}, rule)


def base_weights(adapted: Adapted) -> dict[str, Tensor]:
    """All weights that the adapter does not hold."""
    state = adapted.base.state_dict()
    held = (".lora_", ".residual.", "classifier")
    return copies({n: t for n, t in state.items() if not any(part in n for part in held)})


def test_of_a_language_model_the_target_tokens_of_a_pass_are_told(texts: TextDataset) -> None:
    """Of row i all tokens but the first, and but the padding, have one before them."""
    adapted = Adapted(
        small_model("gpt2", TaskKind.CAUSAL_LM, vocabulary=len(VOCABULARY)), TaskKind.CAUSAL_LM, LORA
    )
    rows = [{key: row[key] for key in ("input_ids", "attention_mask")} for row in texts.rows]
    expected = sum(len(row["input_ids"]) - 1 for row in rows)
    for epochs in (1, 2):
        told = fine_tune(
            adapted,
            adapted.tensors(),
            CausalDataset(rows, texts.tokenizer),
            replace(SPEC, epochs=epochs, tokens_per_step=20),
            factor=1.0,
            seed=1,
        )
        assert told.targets == expected


def test_a_classifier_has_no_target_tokens(fresh: Fresh, texts: TextDataset) -> None:
    assert tune(fresh(HEAD_ONLY), texts).targets == 0


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_a_loss_that_is_no_number_ends_the_training_at_its_step(
    fresh: Fresh, texts: TextDataset, monkeypatch: pytest.MonkeyPatch, odd: float
) -> None:
    right, told = tasks.loss, list[int]()
    monkeypatch.setattr(tasks, "loss", lambda *a: right(*a) * (odd if len(told) == 2 else 1.0))
    with pytest.raises(Diverged, match=rf"the loss is {odd} in step 3 of 6; lower training\.learning_rate"):
        tune(fresh(LORA), texts, on_step=lambda step, steps, loss: told.append(step))
    assert told == [1, 2]


def test_a_change_that_is_not_finite_is_no_update(fresh: Fresh, texts: TextDataset) -> None:
    """The last step's loss is from before it: what that step did shows in the weights only."""
    adapted = fresh(LORA)
    one = replace(SPEC, epochs=1, batch_size=len(texts), learning_rate=1e30, weight_decay=1e30)
    with pytest.raises(Diverged, match="after 1 steps"):
        fine_tune(adapted, adapted.tensors(), texts, one, factor=1.0, seed=1)


def test_training_begins_anew_after_it_diverged(fresh: Fresh, texts: TextDataset) -> None:
    """Nothing of it stays in the model."""
    adapted, other = fresh(LORA), fresh(LORA)
    start = other.tensors()
    with pytest.raises(Diverged):
        fine_tune(adapted, start, texts, replace(SPEC, learning_rate=1e20), factor=1.0, seed=1)
    again = fine_tune(adapted, start, texts, SPEC, factor=1.0, seed=1)
    assert same_bits(again.delta, fine_tune(other, start, texts, SPEC, factor=1.0, seed=1).delta)


@every_spec
def test_the_model_then_holds_start_plus_delta_bit_for_bit(
    fresh: Fresh, texts: TextDataset, spec: AdapterSpec
) -> None:
    adapted = fresh(spec)
    start = adapted.tensors()
    update = tune(adapted, texts)
    assert same_bits(adapted.tensors(), plus(start, update.delta))
    assert update.delta.keys() == {name for name in start if trained(name, spec)}
    assert all(change.abs().max() > 0 for change in update.delta.values())


def test_the_coordinators_model_then_computes_what_the_workers_does(fresh: Fresh, texts: TextDataset) -> None:
    at_worker, at_coordinator = fresh(LORA), fresh(LORA)
    start, batch = at_worker.tensors(), texts.batch(range(8))
    update = tune(at_worker, texts)
    at_coordinator.load(plus(start, update.delta))
    assert torch.equal(logits(at_coordinator.model, batch), logits(at_worker.model, batch))


def test_training_lowers_the_loss(fresh: Fresh, texts: TextDataset) -> None:
    adapted, spec = fresh(LORA), replace(SPEC, epochs=10)
    first = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1)
    second = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=2)
    assert second.loss < 0.85 * first.loss


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(fresh: Fresh, texts: TextDataset) -> None:
    first, again, other = (tune(fresh(LORA), texts, seed) for seed in (1, 1, 2))
    assert same_bits(first.delta, again.delta) and first.loss == again.loss
    assert not same_bits(first.delta, other.delta)


def test_what_the_model_did_before_does_not_show(fresh: Fresh, texts: TextDataset) -> None:
    """A worker that restarts in between sends the same update as one that does not."""
    used = fresh(LORA)
    start = used.tensors()
    tune(used, texts, seed=9)
    first = fine_tune(used, start, texts, SPEC, factor=1.0, seed=1)
    torch.rand(3)
    second = fine_tune(fresh(LORA), start, texts, SPEC, factor=1.0, seed=1)
    assert same_bits(first.delta, second.delta)


@every_spec
def test_only_the_adapter_is_trained(fresh: Fresh, texts: TextDataset, spec: AdapterSpec) -> None:
    adapted = fresh(spec)
    before = base_weights(adapted)
    tune(adapted, texts)
    assert same_bits(base_weights(adapted), before)


def test_without_targets_the_head_is_all_that_changes(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(HEAD_ONLY)
    before = copies(adapted.base.state_dict())
    update = tune(adapted, texts)
    after = adapted.base.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    assert {name.removeprefix("base_model.model.") for name in update.delta} == changed


def test_torchs_generator_is_left_as_it_was(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    before = torch.get_rng_state()
    tune(adapted, texts)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_is_left_in_eval_mode(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    tune(adapted, texts)
    assert not any(module.training for module in adapted.model.modules())


def test_the_rounds_factor_scales_how_far_training_goes(fresh: Fresh, texts: TextDataset) -> None:
    sizes = []
    for factor in (0.1, 1.0):
        adapted = fresh(LORA)
        delta = fine_tune(adapted, adapted.tensors(), texts, SPEC, factor=factor, seed=1).delta
        sizes.append(sum(t.square().sum().item() for t in delta.values()))
    assert sizes[0] < 0.1 * sizes[1]


def test_steps_are_counted_and_reported(fresh: Fresh, texts: TextDataset) -> None:
    seen: list[tuple[int, int]] = []
    update = tune(fresh(LORA), texts, on_step=lambda step, steps, loss: seen.append((step, steps)))
    # 40 texts in batches of 16 make 3 steps a pass.
    assert seen == [(i, 6) for i in range(1, 7)]
    assert update.steps == 6


def test_a_stop_in_between_leaves_a_model_that_can_be_tuned_again(fresh: Fresh, texts: TextDataset) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise Stopped("another task came")

    adapted, untouched = fresh(LORA), fresh(LORA)
    start, generator = adapted.tensors(), torch.get_rng_state()
    with pytest.raises(Stopped):
        tune(adapted, texts, counter=counter(adapted, 1), on_step=stop)
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in adapted.base.modules())
    after = fine_tune(adapted, start, texts, SPEC, factor=1.0, seed=1)
    assert same_bits(after.delta, tune(untouched, texts, seed=1).delta)


# --- what is counted ---


@pytest.mark.parametrize("rule", ZeroRule)
def test_zeros_are_counted_in_the_layers_asked_for_over_unpadded_tokens(
    fresh: Fresh, texts: TextDataset, rule: ZeroRule
) -> None:
    tokens = sum(len(row["input_ids"]) for row in texts.rows)
    adapted = fresh(LORA)
    update = tune(adapted, texts, counter=replace(counter(adapted, 1, 2, rule=rule), threshold=0.1))
    assert update.counts.keys() == {1, 2}
    for counts in update.counts.values():
        assert counts.tokens.item() == SPEC.epochs * tokens
        assert counts.zeros.shape == (FFN,)
        assert 0 < counts.zeros.max() <= counts.tokens
    assert tune(fresh(LORA), texts).counts == {}


def test_counting_does_not_change_the_update(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    counted = tune(adapted, texts, counter=counter(adapted, 1, 2))
    assert same_bits(counted.delta, tune(fresh(LORA), texts).delta)


@pytest.mark.parametrize("rule", ZeroRule)
def test_without_dropout_the_counts_are_those_of_a_plain_pass(
    fresh: Fresh, texts: TextDataset, rule: ZeroRule
) -> None:
    adapted = fresh(HEAD_ONLY)
    without_dropout(adapted)
    with ZeroCounter({1: ffns_of(adapted.base)[1]}, rule, 0.1) as plain:
        for batch in texts.shuffled(40, seed=1):
            plain.mask = batch.mask
            logits(adapted.model, batch)
    spec = replace(SPEC, epochs=1, batch_size=40)
    counting = ZeroCounter({1: ffns_of(adapted.base)[1]}, rule, 0.1)
    update = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1, counter=counting)
    assert torch.equal(update.counts[1].tokens, plain.counts[1].tokens)
    assert torch.equal(update.counts[1].zeros, plain.counts[1].zeros)


def without_dropout(adapted: Adapted) -> None:
    for module in adapted.base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


# --- what is trained ---


def test_a_frozen_a_stays_to_the_bit(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(FROZEN_A)
    start = adapted.tensors()
    tune(adapted, texts)
    after = adapted.tensors()
    moved = {name for name in start if not torch.equal(start[name], after[name])}
    assert moved == {name for name in start if not name.endswith(".lora_A.weight")}


def test_residuals_are_trained_upon_but_not_trained(fresh: Fresh, texts: TextDataset) -> None:
    adapted = fresh(LORA)
    path = "bert.encoder.layer.1.attention.output.dense"
    residual = 0.5 * torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(2))
    start = adapted.tensors() | {f"{PEFT_PREFIX}{path}{RESIDUAL}": residual}
    before = Projection(adapted.base.get_submodule(path)).weight.clone()
    update = fine_tune(adapted, start, texts, SPEC, factor=1.0, seed=1)
    assert not any(name.endswith(RESIDUAL) for name in update.delta)
    assert same_bits(adapted.tensors(), plus(start, update.delta))
    assert torch.equal(Projection(adapted.base.get_submodule(path)).weight, before + residual)
    assert not same_bits(update.delta, tune(fresh(LORA), texts).delta)


# --- FedProx ---


def distance(delta: dict[str, Tensor]) -> float:
    return sum(t.square().sum().item() for t in delta.values()) ** 0.5


def test_the_proximal_term_keeps_training_nearer_to_the_start(fresh: Fresh, texts: TextDataset) -> None:
    lengths = []
    for proximal in (0.0, 1.0, 100.0):
        adapted, spec = fresh(CALM), replace(SPEC, epochs=8, proximal=proximal)
        update = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1)
        lengths.append(distance(update.delta))
    assert lengths[0] > lengths[1] > lengths[2] > 0


@pytest.mark.parametrize("proximal", [0.0, 0.7])
@pytest.mark.parametrize("largest", [1e9, 0.5], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("tuned", [CALM, CALM_TOO], ids=["attention", "attention and neurons"])
def test_steps_are_those_taken_by_hand(
    fresh: Fresh, texts: TextDataset, proximal: float, largest: float, tuned: AdapterSpec
) -> None:
    """AdamW's formula over the loss's gradient plus mu times the way from the start."""
    spec = replace(
        SPEC, epochs=3, batch_size=40, proximal=proximal, max_gradient_norm=largest, head_learning_rate=2e-3
    )
    adapted, by_hand = fresh(tuned), fresh(tuned)
    for one in (adapted, by_hand):
        without_dropout(one)
    start = adapted.tensors()
    update = fine_tune(adapted, start, texts, spec, factor=0.5, seed=4)

    lora, neurons, head = by_hand.parameter_groups()
    parameters = [*lora, *neurons, *head]
    rates = [2.5e-3] * len(lora) + [5e-4] * len(neurons) + [1e-3] * len(head)
    anchors = [p.detach().clone() for p in parameters]
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    for step in range(1, 4):
        (batch,) = texts.shuffled(40, seed=4 + step - 1)
        value = tasks.loss(by_hand.model(**batch.inputs).logits, batch.labels, TEXT)
        found = torch.autograd.grad(value, parameters)
        with torch.no_grad():
            slopes = [g + proximal * (p - a) for g, p, a in zip(found, parameters, anchors, strict=True)]
            norm = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
            slopes = [g * min(1.0, largest / (float(norm) + 1e-6)) for g in slopes]
            for p, g, m, v, rate in zip(parameters, slopes, first, second, rates, strict=True):
                m.mul_(0.9).add_(0.1 * g)
                v.mul_(0.999).add_(0.001 * g * g)
                p.mul_(1 - rate * spec.weight_decay)
                way = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
                p.sub_(rate * way)
    for name, value in by_hand.tensors().items():
        # Where a gradient is next to nothing, Adam's steps follow its rounding.
        assert torch.allclose(value, plus(start, update.delta)[name], atol=1e-4), name


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_of_sgd_are_those_taken_by_hand(fresh: Fresh, texts: TextDataset, momentum: float) -> None:
    spec = replace(
        SPEC,
        epochs=3,
        batch_size=40,
        optimizer=LocalOptimizer.SGD,
        learning_rate=0.2,
        head_learning_rate=2.0,
        momentum=momentum,
        weight_decay=0.1,
    )
    adapted, by_hand = fresh(CALM), fresh(CALM)
    for one in (adapted, by_hand):
        without_dropout(one)
    start = adapted.tensors()
    update = fine_tune(adapted, start, texts, spec, factor=0.5, seed=4)

    lora, _, head = by_hand.parameter_groups()
    parameters, rates = [*lora, *head], [0.1] * len(lora) + [1.0] * len(head)
    moving = [torch.zeros_like(p) for p in parameters]
    for step in range(3):
        (batch,) = texts.shuffled(40, seed=4 + step)
        value = tasks.loss(by_hand.model(**batch.inputs).logits, batch.labels, TEXT)
        slopes = torch.autograd.grad(value, parameters)
        norm = torch.stack([g.square().sum() for g in slopes]).sum().sqrt()
        with torch.no_grad():
            for p, g, m, rate in zip(parameters, slopes, moving, rates, strict=True):
                m.mul_(momentum).add_(g * min(1.0, 1.0 / (float(norm) + 1e-6)))
                p.mul_(1 - 0.1 * rate).sub_(rate * m)
    for name, value in by_hand.tensors().items():
        assert torch.allclose(value, plus(start, update.delta)[name], atol=1e-5), name


def test_the_first_step_does_not_feel_the_proximal_term_and_the_second_does(
    fresh: Fresh, texts: TextDataset
) -> None:
    deltas = {}
    for epochs in (1, 2):
        for proximal in (0.0, 10.0):
            adapted = fresh(LORA)
            spec = replace(SPEC, epochs=epochs, batch_size=40, proximal=proximal)
            update = fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1)
            deltas[epochs, proximal] = update.delta
    assert all(
        torch.allclose(deltas[1, 0.0][name], deltas[1, 10.0][name], atol=1e-6) for name in deltas[1, 0.0]
    )
    assert distance(deltas[2, 10.0]) < distance(deltas[2, 0.0])


def test_the_loss_told_is_without_the_proximal_term(fresh: Fresh, texts: TextDataset) -> None:
    losses = []
    for proximal in (0.0, 1e6):
        adapted, spec = fresh(CALM), replace(SPEC, epochs=1, batch_size=20, proximal=proximal)
        without_dropout(adapted)
        losses.append(fine_tune(adapted, adapted.tensors(), texts, spec, factor=1.0, seed=1).loss)
    # Two steps, each small: the losses are alike, however large the term is.
    assert losses[1] == pytest.approx(losses[0], abs=0.1)


# --- other kinds of tasks ---


def dataset(folder: Path, tmp_path: Path, kind: TaskKind) -> Dataset:
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        data = write_pictures(tmp_path / "data.parquet", 40)
    else:
        data = write_table(tmp_path / "data.csv", 60)
    labels = None if kind is TaskKind.CAUSAL_LM else LABELS
    return encode(load_processor(folder, kind), read_examples(data, Columns(), kind), kind, 16, labels)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("gpt2", TaskKind.CAUSAL_LM),
        ("qwen2", TaskKind.CAUSAL_LM),
        ("vit", TaskKind.IMAGE_CLASSIFICATION),
        ("dinov2", TaskKind.IMAGE_CLASSIFICATION),
        ("llama", TEXT),
    ],
)
def test_other_tasks_train_count_and_end_at_what_they_say(
    tmp_path: Path, model_type: str, kind: TaskKind
) -> None:
    folder = write_family(tmp_path / "model", model_type, kind)
    data = dataset(folder, tmp_path, kind)
    vocabulary = {} if kind is TaskKind.IMAGE_CLASSIFICATION else {"vocabulary": len(VOCABULARY)}
    adapted = Adapted(small_model(model_type, kind, **vocabulary), kind, FFN_TOO, seed=1)
    before, start = copies(dict(adapted.base.named_parameters())), adapted.tensors()
    spec = replace(SPEC, epochs=6)
    first = fine_tune(adapted, start, data, spec, factor=1.0, seed=1, counter=counter(adapted, 1))
    after = adapted.tensors()
    assert same_bits(after, plus(start, first.delta))
    tokens = first.counts[1].tokens.item()
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        assert tokens == 6 * 40 * 17
    else:
        assert tokens == 6 * sum(len(row["input_ids"]) for row in data.rows)  # type: ignore[attr-defined]
    second = fine_tune(adapted, after, data, spec, factor=1.0, seed=2)
    assert second.loss < 0.95 * first.loss
    heads = adapted.family.head
    for name, parameter in adapted.base.named_parameters():
        if ".lora_" not in name and not any(head in name for head in heads):
            assert torch.equal(parameter, before[name]), name


def test_a_language_models_loss_is_that_of_its_next_tokens(tmp_path: Path) -> None:
    kind = TaskKind.CAUSAL_LM
    folder = write_family(tmp_path / "model", "gpt2", kind)
    data = dataset(folder, tmp_path, kind)
    adapted = Adapted(small_model("gpt2", kind, vocabulary=len(VOCABULARY)), kind, CALM)
    without_dropout(adapted)
    (batch,) = data.shuffled(len(data), seed=1)
    with torch.no_grad():
        wanted = adapted.model(**batch.inputs, labels=batch.labels).loss.item()
    spec = replace(SPEC, epochs=1, batch_size=len(data))
    update = fine_tune(adapted, adapted.tensors(), data, spec, factor=1.0, seed=1)
    assert update.loss == pytest.approx(wanted, rel=1e-5)
