"""What each kind of task asks of a model."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import TaskType
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DeiTForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
    ViTConfig,
)

from common.errors import ModelError
from common.model.families import FAMILIES
from common.model.tasks import (
    IGNORED,
    auto_class,
    drawn_labels,
    from_config,
    loss,
    peft_type,
    plain,
    problem_type,
    require_task,
    tally,
    targets_of,
)
from common.records import TaskKind
from tests.families import small_config, small_inputs, small_model

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
CLASSIFIERS = (TEXT, IMAGES)

# Scores whose softmax is 1/4, 3/4 in the first row and 1/2, 1/2 in the second.
SCORES = torch.tensor([[0.0, math.log(3.0)], [5.0, 5.0]])
QUARTER, THREE_QUARTERS, HALF = -math.log(0.25), -math.log(0.75), -math.log(0.5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
@pytest.mark.parametrize(
    ("labels", "right", "total"),
    [([1, 0], 2, THREE_QUARTERS + HALF), ([0, 0], 1, QUARTER + HALF), ([0, 1], 0, QUARTER + HALF)],
)
def test_a_classifiers_loss_is_the_mean_surprise_at_the_labels(
    kind: TaskKind, labels: list[int], right: int, total: float
) -> None:
    wanted = torch.tensor(labels)
    assert loss(SCORES, wanted, kind).item() == pytest.approx(total / 2)
    # Of equal scores the first counts as the answer.
    assert tally(SCORES, wanted, kind) == (right, pytest.approx(total), 2)


def language_scores() -> Tensor:
    """[1, 4, 2]: of the tokens that follow, 0 has shares 1/4, 1/2, 3/4, and whatever at the end."""
    rows = [[0.0, math.log(3.0)], [0.0, 0.0], [math.log(3.0), 0.0], [90.0, -90.0]]
    return torch.tensor([rows])


def test_a_language_model_is_asked_at_every_token_for_the_next() -> None:
    labels = torch.tensor([[1, 1, 0, 0]])
    total = THREE_QUARTERS + HALF + THREE_QUARTERS
    assert loss(language_scores(), labels, CAUSAL).item() == pytest.approx(total / 3)
    assert tally(language_scores(), labels, CAUSAL) == (3, pytest.approx(total), 3)


def test_neither_the_first_token_nor_the_last_scores_are_asked_for() -> None:
    scores, labels = language_scores(), torch.tensor([[1, 1, 0, 0]])
    wanted = tally(scores, labels, CAUSAL)
    labels[0, 0] = 0
    scores[0, -1] = torch.tensor([-7.0, 7.0])
    assert tally(scores, labels, CAUSAL) == wanted


def test_scores_stand_beside_the_token_that_follows() -> None:
    scores, labels = torch.arange(24.0).view(2, 4, 3), torch.tensor([[0, 1, 2, 1], [2, 2, 0, IGNORED]])
    found, targets = targets_of(scores, labels, CAUSAL)
    assert found.tolist() == [*scores[0, :3].tolist(), *scores[1, :3].tolist()]
    assert targets.tolist() == [1, 2, 1, 2, 0, IGNORED]
    same_scores, same_labels = targets_of(SCORES, torch.tensor([0, 1]), TEXT)
    assert torch.equal(same_scores, SCORES) and same_labels.tolist() == [0, 1]


@given(st.integers(1, 5), st.integers(0, 2**31))
def test_padding_is_no_target(padding: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 4 + padding, 3, generator=draw)
    labels = torch.randint(3, (2, 4 + padding), generator=draw)
    labels[:, 4:] = IGNORED
    bare = loss(scores[:, :4], labels[:, :4], CAUSAL)
    assert loss(scores, labels, CAUSAL).item() == pytest.approx(bare.item())
    right, total, answers = tally(scores[:, :4], labels[:, :4], CAUSAL)
    assert tally(scores, labels, CAUSAL) == (right, pytest.approx(total), answers)
    assert answers == 6


def test_an_ignored_class_is_no_answer() -> None:
    labels = torch.tensor([1, IGNORED])
    assert loss(SCORES, labels, TEXT).item() == pytest.approx(THREE_QUARTERS)
    assert tally(SCORES, labels, TEXT) == (1, pytest.approx(THREE_QUARTERS), 1)


def test_the_mean_over_batches_of_any_size_is_the_tally_over_all() -> None:
    draw = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(7, 3, generator=draw), torch.randint(3, (7,), generator=draw)
    right, total, answers = tally(scores, labels, TEXT)
    parts = [tally(scores[part], labels[part], TEXT) for part in (slice(2), slice(2, None))]
    assert (sum(p[0] for p in parts), sum(p[2] for p in parts)) == (right, answers)
    assert sum(p[1] for p in parts) == pytest.approx(total)
    assert total / answers == pytest.approx(loss(scores, labels, TEXT).item())


def test_the_loss_is_transformers_own() -> None:
    model = small_model("gpt2", CAUSAL)
    inputs = small_inputs(model)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED)
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    assert loss(output.logits, labels, CAUSAL).item() == pytest.approx(output.loss.item(), rel=1e-5)


def test_texts_of_one_token_each_teach_nothing_and_spoil_nothing() -> None:
    scores = torch.randn(2, 1, 5, requires_grad=True)
    none = loss(scores, torch.tensor([[3], [IGNORED]]), CAUSAL)
    none.backward()
    assert none.item() == 0.0
    assert scores.grad is not None and not scores.grad.any()


def test_the_loss_has_a_gradient_and_the_tally_none() -> None:
    scores = SCORES.clone().requires_grad_()
    loss(scores, torch.tensor([0, 1]), TEXT).backward()
    assert scores.grad is not None and scores.grad.abs().max() > 0
    assert isinstance(tally(scores, torch.tensor([0, 1]), TEXT)[1], float)


# --- which families do what ---


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("kind", TaskKind)
def test_a_family_is_built_for_its_tasks_and_refused_for_others(model_type: str, kind: TaskKind) -> None:
    config = small_config(model_type)
    if kind in FAMILIES[model_type].tasks:
        require_task(config, kind)
        assert isinstance(from_config(config, kind), tuple(auto_class(kind)._model_mapping.values()))
        return
    for refused in (require_task, from_config):
        with pytest.raises(ModelError, match=f"a {model_type} model cannot do {kind}; it can do: "):
            refused(config, kind)


@pytest.mark.parametrize(
    ("config", "kind", "told"),
    [
        (
            BertConfig(),
            CAUSAL,
            "a bert model cannot do causal-lm; it can do: text-classification, text-multi-label, "
            "text-regression, token-classification",
        ),
        (ViTConfig(), TEXT, "a vit model cannot do text-classification; it can do: image-classification"),
        (
            GPT2Config(),
            IMAGES,
            "a gpt2 model cannot do image-classification; it can do: text-classification, text-multi-label, "
            "text-regression, token-classification, causal-lm",
        ),
    ],
)
def test_a_refused_task_names_those_that_can_be_done(config: BertConfig, kind: TaskKind, told: str) -> None:
    with pytest.raises(ModelError) as caught:
        require_task(config, kind)
    assert str(caught.value) == told


def test_peft_knows_texts_and_language_models_by_name_and_images_not_at_all() -> None:
    assert [peft_type(kind) for kind in (TEXT, CAUSAL, IMAGES)] == [
        TaskType.SEQ_CLS,
        TaskType.CAUSAL_LM,
        None,
    ]


# --- the class that a configuration was saved from ---


@pytest.mark.parametrize(
    ("config", "kind", "expected"),
    [
        (small_config("bert", architectures=["BertForMaskedLM"]), TEXT, BertForSequenceClassification),
        (small_config("gpt2", architectures=["GPT2DoubleHeadsModel"]), CAUSAL, GPT2LMHeadModel),
        (
            small_config("deit", architectures=["DeiTForImageClassificationWithTeacher"]),
            IMAGES,
            DeiTForImageClassification,
        ),
        (small_config("deit"), IMAGES, DeiTForImageClassification),
    ],
    ids=["bert", "gpt2", "deit with teacher", "deit without"],
)
def test_the_task_decides_on_the_class_not_the_one_saved_before(
    config: BertConfig, kind: TaskKind, expected: type
) -> None:
    assert type(from_config(config, kind)) is expected


def test_a_plain_configuration_is_a_copy_that_differs_in_the_architecture_alone() -> None:
    config = small_config("bert", architectures=[BertForMaskedLM.__name__])
    before = deepcopy(config.to_dict())
    changed = plain(config)
    assert config.to_dict() == before
    assert changed.architectures == []
    assert {k: v for k, v in changed.to_dict().items() if before.get(k) != v} == {"architectures": []}


# --- numbers, several classes, a class for every word ---

REGRESSION, SEVERAL, TOKENS = (
    TaskKind.TEXT_REGRESSION,
    TaskKind.TEXT_MULTI_LABEL,
    TaskKind.TOKEN_CLASSIFICATION,
)


@pytest.mark.parametrize("kind", [REGRESSION, SEVERAL, TOKENS])
def test_the_loss_of_texts_is_transformers_own(kind: TaskKind) -> None:
    model = small_model("bert", kind, num_labels=1 if kind is REGRESSION else 3)
    model.config.problem_type = problem_type(kind)
    inputs = small_inputs(model)
    draw = torch.Generator().manual_seed(3)
    match kind:
        case TaskKind.TEXT_REGRESSION:
            labels = torch.randn(3, generator=draw)
        case TaskKind.TEXT_MULTI_LABEL:
            labels = torch.randint(2, (3, 3), generator=draw).float()
        case _:
            labels = torch.randint(3, (3, 8), generator=draw)
            labels = labels.masked_fill(inputs["attention_mask"] == 0, IGNORED)
    with torch.no_grad():
        output = model(**inputs, labels=labels)
    assert loss(output.logits, labels, kind).item() == pytest.approx(output.loss.item(), rel=1e-6)
    # Over batches the sums make the mean of the whole.
    parts = [tally(output.logits[part], labels[part], kind) for part in (slice(1), slice(1, None))]
    mean = sum(part[1] for part in parts) / sum(part[2] for part in parts)
    assert mean == pytest.approx(output.loss.item(), rel=1e-5)


def test_a_number_is_neither_right_nor_wrong() -> None:
    right, total, answers = tally(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]), REGRESSION)
    assert math.isnan(right) and (total, answers) == (10.0, 2)
    assert loss(torch.tensor([[1.0], [4.0]]), torch.tensor([2.0, 1.0]), REGRESSION).item() == 5.0


def test_several_classes_are_right_when_each_of_them_is() -> None:
    scores = torch.tensor([[2.0, -1.0], [2.0, 1.0], [-3.0, -3.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    right, _, answers = tally(scores, labels, SEVERAL)
    assert (right, answers) == (2, 3)


def test_of_tokens_only_those_with_a_label_count() -> None:
    scores = torch.tensor([[[0.0, 3.0], [3.0, 0.0], [0.0, 3.0]]])
    assert tally(scores, torch.tensor([[1, 1, IGNORED]]), TOKENS)[::2] == (1, 2)
    none = loss(scores.requires_grad_(), torch.full((1, 3), IGNORED), TOKENS)
    none.backward()
    assert none.item() == 0.0 and scores.grad is not None and not scores.grad.any()


def test_labels_drawn_from_predictions_follow_them() -> None:
    """So that the gradient's mean over them is 0: what makes it the Fisher's."""
    count = 4000
    scores = torch.tensor([[1.0, -0.5]]).repeat(count, 1)
    several = drawn_labels(scores, None, SEVERAL, 1)
    assert torch.allclose(several.mean(0), scores[0].sigmoid(), atol=0.03)
    numbers = drawn_labels(scores[:, :1], None, REGRESSION, 1)
    assert abs(numbers.mean() - 1.0) < 0.05 and abs(numbers.var() - 0.5) < 0.05
    mask = torch.ones(2, count // 2)
    mask[:, -7:] = 0
    tags = drawn_labels(scores.view(2, -1, 2), mask, TOKENS, 1)
    assert (tags == IGNORED).sum() == 14 and (tags[:, -7:] == IGNORED).all()
    share = (tags[:, :-7] == 0).float().mean()
    assert abs(share - torch.softmax(scores[0], 0)[0]) < 0.03
    assert torch.equal(drawn_labels(scores, None, TEXT, 5), drawn_labels(scores, None, TEXT, 5))


def test_only_what_transformers_cannot_tell_stands_in_a_configuration() -> None:
    told = {kind: problem_type(kind) for kind in TaskKind if problem_type(kind)}
    assert told == {REGRESSION: "regression", SEVERAL: "multi_label_classification"}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_family_of_texts_does_what_transformers_has_a_class_for(model_type: str) -> None:
    for kind in TaskKind:
        has = CONFIG_MAPPING[model_type] in auto_class(kind)._model_mapping
        if kind is CAUSAL and has and hasattr(small_config(model_type), "is_decoder"):
            # Encoders that can be turned into decoders (GPT-NeoX says so, too): not what they are here.
            continue
        assert has == (kind in FAMILIES[model_type].tasks), kind


def test_weights_of_classes_are_those_of_the_mean() -> None:
    wanted, weights = torch.tensor([1, 0]), torch.tensor([3.0, 0.5])
    expected = (0.5 * THREE_QUARTERS + 3.0 * HALF) / 3.5
    assert loss(SCORES, wanted, TEXT, weights).item() == pytest.approx(expected)
    assert loss(SCORES, wanted, TEXT, torch.ones(2)).item() == loss(SCORES, wanted, TEXT).item()


def test_weights_of_one_of_several_classes_are_on_its_being_there() -> None:
    scores, wanted = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    weighed = loss(scores, wanted, TaskKind.TEXT_MULTI_LABEL, torch.tensor([4.0, 9.0]))
    assert weighed.item() == pytest.approx((4 * HALF + HALF) / 2)
