"""How neurons are ranked."""

from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from common.config.choices import Saliency
from common.data.batches import Batch
from common.errors import DataError, Stopped
from common.model.families import FAMILIES, family_of, sizes_of
from common.model.ffn import Ffn, Projection, ffns_of
from common.model.layers import encoder_of, layer_outputs, tokens_of
from coordinator.algorithms.activation_capture import attention_received
from coordinator.algorithms.saliency import integrated_gradients, l2_norm, score_layers, top_k
from tests.families import FFN, LAYERS, TEXT_FAMILIES, small_inputs, small_model

SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=30)
ON_DATA = (Saliency.ACTIVATION, Saliency.INTEGRATED_GRADIENTS, Saliency.ATTENTION)
# Where the FFN's output is added as it is.
ADDED = tuple(n for n, family in FAMILIES.items() if not family.post_norm and not family.ffn_post_norm)


def batches_for(model: PreTrainedModel, count: int = 2) -> list[Batch]:
    return [Batch(small_inputs(model, count=4, seed=seed)) for seed in range(count)]


def state_of(model: PreTrainedModel) -> dict[str, object]:
    """Everything about a model that someone else might have set."""
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    return {
        "training": [module.training for module in model.modules()],
        "trainable": [parameter.requires_grad for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.tolist() for p in model.parameters()],
        "values": [parameter.detach().tolist() for parameter in model.parameters()],
        "attention": encoder_of(model).config._attn_implementation,
        "hooks": hooks,
    }


def activations(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Every layer's neurons at unpadded tokens [N, K], by the FFN's formula from its input."""
    ffns, seen = ffns_of(model), []
    act = ACT2FN[getattr(sizes_of(model.config), family_of(model.config).activation)]
    hooks = [f.ins[0].site.register_forward_hook(lambda m, x, y: seen.append(x[0])) for f in ffns]
    with torch.no_grad():
        encoder_of(model)(**batch.inputs)
        for hook in hooks:
            hook.remove()
        found = []
        for ffn, x in zip(ffns, seen, strict=True):
            a, *up = [one.outputs(one.site(x)) for one in ffn.ins]
            found.append(tokens_of(act(a) * up[0] if up else act(a), batch.mask))
    return found


# --- choosing by score ---


@given(SCORES, st.data())
def test_the_chosen_are_the_highest_in_ascending_order(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    chosen = top_k(torch.tensor(scores, dtype=torch.float32), k).tolist()
    assert chosen == sorted(set(chosen)) and len(chosen) == k
    left = set(range(len(scores))) - set(chosen)
    assert all(scores[i] >= scores[j] for i in chosen for j in left)


@given(SCORES, st.data())
def test_of_equals_the_first_are_chosen(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert top_k(torch.tensor(scores, dtype=torch.float32), k).tolist() == sorted(ranked[:k])


# --- L2 norm ---


def ffn_of(*maps: nn.Module) -> Ffn:
    *ins, out = map(Projection, maps)
    return Ffn(tuple(ins), out, nn.LayerNorm(2), nn.Identity(), post_norm=True, out_norm=None, scale=None)


def linear(rows: list[list[float]]) -> nn.Linear:
    weight = torch.tensor(rows)
    made = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        made.weight.copy_(weight)
    return made


def test_the_norm_is_that_of_incoming_and_outgoing_weights() -> None:
    ffn = ffn_of(linear([[2.0, 0.0], [0.0, 0.0], [1.0, 2.0]]), linear([[1.0, 0.0, 2.0], [2.0, 5.0, 4.0]]))
    # sqrt(4 + 1 + 4), sqrt(25), sqrt(1 + 4 + 4 + 16); biases do not count.
    assert l2_norm(ffn).tolist() == [3.0, 5.0, 5.0]


def test_the_norm_counts_the_gate_and_the_up_row() -> None:
    ffn = ffn_of(linear([[2.0, 0.0]]), linear([[1.0, 2.0]]), linear([[4.0], [0.0]]))
    assert l2_norm(ffn).tolist() == [5.0]


def test_the_norm_asks_for_no_gradient() -> None:
    assert not l2_norm(ffn_of(nn.Linear(2, 3), nn.Linear(3, 2))).requires_grad


# --- what holds for every metric ---


@pytest.mark.parametrize("metric", Saliency)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_metric_scores_every_neuron_of_every_family(family: str, metric: Saliency) -> None:
    model = small_model(family)
    scores = score_layers(model, metric, batches_for(model), seed=0)
    assert [score.shape for score in scores] == [(FFN,)] * LAYERS
    assert all(score.dtype == torch.float32 and not score.requires_grad for score in scores)
    assert all(score.isfinite().all() and (score >= 0).all() and score.std() > 0 for score in scores)
    assert not torch.equal(scores[0], scores[1])


@pytest.mark.parametrize("metric", ON_DATA)
@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_leaves_the_model_as_found(family: str, metric: Saliency) -> None:
    model = small_model(family).train()
    ffns = ffns_of(model)
    ffns[0].layer.eval()
    ffns[1].out.module.requires_grad_(False)
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = state_of(model)
    score_layers(model, metric, batches_for(model, 1), seed=0)
    assert state_of(model) == before


@pytest.mark.parametrize("metric", ON_DATA)
def test_dropout_is_off_while_a_model_in_training_is_scored(metric: Saliency) -> None:
    model = small_model("bert")
    batches = batches_for(model, 1)
    quiet = score_layers(model, metric, batches, seed=0)
    loud = score_layers(model.train(), metric, batches, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(quiet, loud, strict=True))


@pytest.mark.parametrize("metric", ON_DATA)
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_stands_in_the_padding_changes_nothing(family: str, metric: Saliency) -> None:
    model = small_model(family)
    batch = batches_for(model, 1)[0]
    assert batch.mask is not None
    garbage = {**batch.inputs, "input_ids": batch.inputs["input_ids"].where(batch.mask.bool(), 7)}
    scores = score_layers(model, metric, [batch], seed=0)
    again = score_layers(model, metric, [Batch(garbage)], seed=0)
    assert all(torch.equal(a, b) for a, b in zip(scores, again, strict=True))


@pytest.mark.parametrize("metric", ON_DATA)
@pytest.mark.parametrize("family", FAMILIES)
def test_how_data_are_batched_changes_nothing(family: str, metric: Saliency) -> None:
    model = small_model(family)
    whole = batches_for(model, 1)[0]
    single = []
    for row in range(4):
        length = None if whole.mask is None else int(whole.mask[row].sum())
        cut = {name: t[row : row + 1] for name, t in whole.inputs.items()}
        single.append(Batch(cut if length is None else {name: t[:, :length] for name, t in cut.items()}))
    together = score_layers(model, metric, [whole], seed=0)
    apart = score_layers(model, metric, single, seed=0)
    torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("metric", ON_DATA)
def test_progress_runs_to_its_end_and_stops_where_it_raises(metric: Saliency) -> None:
    model = small_model("bert")
    batches = batches_for(model)
    seen: list[tuple[int, int]] = []
    score_layers(model, metric, batches, 0, lambda done, total: seen.append((done, total)))
    total = len(seen)
    assert total >= len(batches) and seen == [(i + 1, total) for i in range(total)]

    def stop(done: int, total: int) -> None:
        raise Stopped

    before = state_of(model)
    with pytest.raises(Stopped):
        score_layers(model, metric, batches, 0, stop)
    assert state_of(model) == before


@pytest.mark.parametrize("metric", ON_DATA)
def test_a_metric_that_needs_tokens_says_so(metric: Saliency) -> None:
    model = small_model("bert")
    padding = {name: torch.zeros_like(t) for name, t in small_inputs(model).items()}
    for nothing in ([], [Batch(padding)]):
        with pytest.raises(DataError, match=f"{metric}.*not one token"):
            score_layers(model, metric, nothing, seed=0)


@pytest.mark.parametrize("metric", [Saliency.L2, Saliency.RANDOM])
def test_a_metric_that_looks_at_no_data_needs_none(metric: Saliency) -> None:
    model = small_model("bert")
    assert torch.equal(
        score_layers(model, metric, [], 0)[1], score_layers(model, metric, batches_for(model), 0)[1]
    )


# --- activation-aware ---


@pytest.mark.parametrize("family", FAMILIES)
def test_activation_aware_is_the_rms_activation_times_the_outgoing_norm(family: str) -> None:
    model = small_model(family)
    batches = batches_for(model)
    scores = score_layers(model, Saliency.ACTIVATION, batches, seed=0)
    found = [activations(model, batch) for batch in batches]
    for i, ffn in enumerate(ffns_of(model)):
        tokens = torch.cat([layers[i] for layers in found])
        expected = tokens.square().mean(0).sqrt() * ffn.out.weight.detach().norm(dim=0)
        torch.testing.assert_close(scores[i], expected, rtol=1e-4, atol=1e-6)


# --- attention-based ---


def test_attention_received_is_a_mean_over_heads_and_unpadded_queries() -> None:
    heads = torch.tensor([[[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]] * 3])
    assert attention_received(heads[None], torch.tensor([[1, 1, 0]])).tolist() == [[0.375, 0.625, 0.0]]
    assert attention_received(heads[None], torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(
        attention_received(heads[None], None), torch.tensor([[0.25, (0.5 + 3) / 6, 1 / 6]])
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_based_weighs_tokens_by_the_attention_that_the_model_reports(family: str) -> None:
    model = small_model(family)
    batches = batches_for(model)
    scores = score_layers(model, Saliency.ATTENTION, batches, seed=0)
    reporting = deepcopy(model)
    reporting.set_attn_implementation("eager")
    weighted, weights = [torch.zeros(FFN) for _ in range(LAYERS)], [0.0] * LAYERS
    for batch in batches:
        found = activations(model, batch)
        reported = encoder_of(reporting)(**batch.inputs, output_attentions=True).attentions
        for i in range(LAYERS):
            w = tokens_of(attention_received(reported[i].detach(), batch.mask), batch.mask)
            weighted[i] += (w[:, None] * found[i].abs()).sum(0)
            weights[i] += float(w.sum())
    for i, ffn in enumerate(ffns_of(model)):
        expected = weighted[i] / weights[i] * ffn.out.weight.detach().norm(dim=0)
        torch.testing.assert_close(scores[i], expected, rtol=1e-3, atol=1e-5)


# --- Integrated Gradients ---


def damage_without(model: PreTrainedModel, layer: int, batches: list[Batch]) -> float:
    """F(0): the last layer's relative squared change where the neurons of `layer` say nothing."""
    silent = deepcopy(model)
    with torch.no_grad():
        ffns_of(silent)[layer].out.weight.zero_()
        changed, power = 0.0, 0.0
        for batch in batches:
            h = tokens_of(layer_outputs(model, batch.inputs)[-1], batch.mask)
            without = tokens_of(layer_outputs(silent, batch.inputs)[-1], batch.mask)
            changed += float((without - h).square().sum())
            power += float(h.square().sum())
    return changed / power


def test_attributions_sum_to_the_damage_where_the_output_is_normalised() -> None:
    model = small_model("olmo2", num_hidden_layers=1)
    batches = batches_for(model, 1)
    (attribution,) = integrated_gradients(model, batches, steps=16)
    assert float(attribution.sum()) == pytest.approx(-damage_without(model, 0, batches), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_attributions_sum_to_the_damage_of_losing_the_layer(family: str) -> None:
    model = small_model(family)
    batches = batches_for(model)
    attributions = integrated_gradients(model, batches, steps=32)
    for i in range(LAYERS):
        assert float(attributions[i].sum()) == pytest.approx(-damage_without(model, i, batches), rel=0.02)


@pytest.mark.parametrize("family", ADDED)
def test_the_last_layers_attributions_have_the_value_that_calculus_gives(family: str) -> None:
    # There F is |(alpha - 1) W2 a|^2 along the path, whose slope is a line: the midpoint rule is exact.
    model = small_model(family)
    batch = batches_for(model, 1)[0]
    attribution = integrated_gradients(model, [batch], steps=1)[-1]
    a, ffn = activations(model, batch)[-1], ffns_of(model)[-1]
    with torch.no_grad():
        h = tokens_of(layer_outputs(model, batch.inputs)[-1], batch.mask)
        W2 = ffn.out.weight if ffn.scale is None else ffn.scale[..., None].to(ffn.out.weight) * ffn.out.weight
        expected = -(a * (a @ W2.T @ W2)).sum(0) / h.square().sum()
    torch.testing.assert_close(attribution, expected, rtol=1e-3, atol=1e-6)


def test_scores_are_the_attributions_sizes_at_eight_steps() -> None:
    model = small_model("bert")
    batches = batches_for(model)
    signed = integrated_gradients(model, batches, steps=8)
    scores = score_layers(model, Saliency.INTEGRATED_GRADIENTS, batches, seed=0)
    assert any((attribution < 0).any() for attribution in signed)
    assert all(torch.equal(s, a.abs()) for s, a in zip(scores, signed, strict=True))


@pytest.mark.parametrize("metric", ON_DATA)
def test_a_neuron_without_outgoing_weights_is_worth_nothing(metric: Saliency) -> None:
    model = small_model("llama")
    with torch.no_grad():
        ffns_of(model)[1].out.weight[:, 5] = 0
    score = score_layers(model, metric, batches_for(model), seed=0)[1]
    assert score[5] == 0 and (score > 0).sum() == FFN - 1


# --- random ---


def test_random_scores_follow_the_seed_and_nothing_else() -> None:
    model = small_model("bert")

    def draw(seed: int) -> Tensor:
        return torch.stack(score_layers(model, Saliency.RANDOM, [], seed))

    before = torch.get_rng_state()
    first = draw(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(draw(1), first) and not torch.equal(draw(2), first)
