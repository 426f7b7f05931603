"""A language model's scores a part at a time: the same loss, gradients and counts, in less memory."""

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM

from common.model import passes, tasks
from common.model.adapter import LM_HEAD, Adapted
from common.model.families import FAMILIES
from common.model.tasks import IGNORED
from common.records import AdapterSpec, AdapterTargets, TaskKind
from tests.families import small_model

# What families do to what comes out of their heads, and one that does.
FINISHES = {"factor": "cohere2", "divisor": "granite", "bound": "gemma2"}
LANGUAGE = [name for name, family in FAMILIES.items() if TaskKind.CAUSAL_LM in family.tasks]
KIND = TaskKind.CAUSAL_LM


def texts(vocabulary: int = 64) -> tuple[dict[str, Tensor], Tensor]:
    """Five, of 7 tokens and fewer; padding has no target."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(4, vocabulary, (5, 7), generator=draw)
    mask = (torch.arange(7) < torch.tensor([[7], [5], [2], [6], [1]])).long()
    labels = ids.masked_fill(mask == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask}, labels


def whole(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    scores: Tensor = model(**inputs).logits
    return scores


@pytest.fixture(params=[3 * 64, passes.MOST_SCORES], ids=["three tokens at a time", "all at once"])
def most_scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(passes, "MOST_SCORES", request.param)
    return int(request.param)


@pytest.mark.parametrize("family", LANGUAGE)
@pytest.mark.parametrize("new", [(), (LM_HEAD,)], ids=["the head is frozen", "the head is new"])
def test_loss_and_gradients_are_those_of_all_scores(
    family: str, new: tuple[str, ...], most_scores: int
) -> None:
    model = small_model(family, KIND, **{"tie_word_embeddings": False} if new else {})
    adapted = Adapted(model, KIND, AdapterSpec(AdapterTargets.ATTENTION, 4, 8.0, 0.0), new=new)
    for parameter in (lora := adapted.parameter_groups()[0]):
        # Else B is 0, and with it A's gradient.
        nn.init.normal_(parameter, std=0.2)
    inputs, labels = texts()
    expected = tasks.loss(whole(adapted.model, inputs), labels, KIND)
    expected.backward()
    tuned = [p for group in adapted.parameter_groups() for p in group]
    assert len(tuned) > len(lora) or not new
    gradients = [p.grad for p in tuned]
    for parameter in tuned:
        parameter.grad = None
    found = passes.loss(adapted.model, inputs, labels, KIND)
    (2 * found).backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(tuned, gradients, strict=True):
        assert parameter.grad is not None and gradient is not None
        assert torch.allclose(parameter.grad, 2 * gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", FINISHES)
def test_what_a_model_does_to_its_heads_scores_is_done_to_a_part_of_them(kind: str) -> None:
    """To the bit, and not for nothing: without it the loss is another."""
    model = small_model(FINISHES[kind], KIND)
    inputs, labels = texts()
    hidden, _, head = passes._next_tokens(model, inputs, labels)
    scores = passes._finish(model)(head(hidden))
    assert torch.equal(scores, whole(model, inputs)[:, :-1][labels[:, 1:] != IGNORED])
    assert not torch.allclose(head(hidden), scores, rtol=0.1)


@pytest.mark.parametrize("family", LANGUAGE)
def test_counts_are_those_of_all_scores(family: str, most_scores: int) -> None:
    model = small_model(family, KIND).eval()
    inputs, labels = texts()
    right, total, answers = tasks.tally(whole(model, inputs), labels, KIND)
    found = passes.tally(model, inputs, labels, KIND)
    assert found[0] == right and found[2] == answers == 16 and found[3] is None
    assert found[1] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_never_more_scores_at_a_time_and_none_of_tokens_without_a_target(
    family: str, most_scores: int
) -> None:
    model = small_model(family, KIND)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda m, i, output: seen.append(output.numel()))
    inputs, labels = texts()
    passes.loss(model, inputs, labels, KIND)
    assert sum(seen) == 16 * 64 and max(seen) <= most_scores


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_texts_without_a_target_have_a_loss_of_nothing(family: str) -> None:
    model = small_model(family, KIND)
    inputs, labels = texts()
    value = passes.loss(model, inputs, torch.full_like(labels, IGNORED), KIND)
    value.backward()
    assert value.item() == 0
    assert passes.tally(model, inputs, torch.full_like(labels, IGNORED), KIND)[:3] == (0, 0.0, 0)


@pytest.mark.parametrize("kind", [KIND, TaskKind.TEXT_CLASSIFICATION])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_no_keys_and_values_are_kept(family: str, kind: TaskKind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(family, kind)
    assert model.config.use_cache
    kept = []
    model.register_forward_hook(lambda module, inputs, output: kept.append(output.get("past_key_values")))
    inputs, _ = texts()
    with torch.no_grad():
        model(**inputs)
        passes.logits(model, inputs)
    assert kept[0] is not None and kept[1] is None


@pytest.mark.parametrize("family", ["llama", "cohere2", "gpt2"])
def test_likelihoods_of_chosen_tokens_are_those_of_all_scores(family: str, most_scores: int) -> None:
    model = small_model(family, KIND).eval()
    inputs, _ = texts()
    # Not in order, some behind the same token.
    rows, places = torch.tensor([3, 0, 0, 1, 0, 2]), torch.tensor([4, 5, 1, 2, 5, 0])
    targets = torch.tensor([7, 9, 11, 4, 10, 60])
    found, first = passes.target_scores(model, inputs, (rows, places), targets)
    expected = whole(model, inputs).log_softmax(-1)[rows, places]
    assert torch.allclose(found, expected[torch.arange(6), targets], atol=1e-5)
    assert torch.equal(first, expected.argmax(-1) == targets)


def test_a_model_that_changes_its_heads_scores_forms_them_itself(most_scores: int) -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        final_logit_softcapping=1.0,
        initializer_range=0.5,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Gemma2ForCausalLM(config).eval()
    inputs, _ = texts()
    rows, places = torch.tensor([3, 0, 1, 0]), torch.tensor([4, 5, 2, 1])
    targets = torch.tensor([7, 9, 11, 4])
    found, _ = passes.target_scores(model, inputs, (rows, places), targets)
    expected = whole(model, inputs).log_softmax(-1)[rows, places, targets]
    assert torch.allclose(found, expected, atol=1e-5)
    # And its cap tells: without it they would be others.
    assert not torch.allclose(
        found, model.lm_head(hidden(model, inputs)).log_softmax(-1)[rows, places, targets]
    )


def hidden(model: Gemma2ForCausalLM, inputs: dict[str, Tensor]) -> Tensor:
    states: Tensor = model.model(**inputs).last_hidden_state
    return states
