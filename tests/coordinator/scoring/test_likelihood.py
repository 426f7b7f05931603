"""Choices by likelihood: sharing rows, padding and batches change nothing; where a choice begins."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.data.processors import load_processor
from common.data.questions import Question
from common.errors import DataError, ModelError
from common.records import TaskKind
from coordinator.scoring.likelihood import (
    Choice,
    Row,
    choices_of,
    log_likelihoods,
    score_questions,
    shared_rows,
)
from coordinator.scoring.prompts import Prompter
from tests.chats import write_chat_model
from tests.conftest import sentences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PreTrainedModel:
    found: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return found.eval()


@pytest.fixture(scope="module")
def prompter(folder: Path) -> Prompter:
    tokenizer: Any = load_processor(folder, TaskKind.CAUSAL_LM)
    return Prompter(tokenizer, 128)


def questions(count: int) -> list[Question]:
    """Choices of one token and of several, one the beginning of another; questions of many lengths."""
    texts, _ = sentences(count, seed=4)
    choices = ("rain", "rain and snow", "a", "the old cat", "x", "rain and")
    return [Question(f"q{i}", f"{text}:", choices, i % 6) for i, text in enumerate(texts)]


def prepared(prompter: Prompter, asked: list[Question]) -> tuple[list[Choice], list[Row]]:
    choices: list[Choice] = []
    rows: list[Row] = []
    for question, tokens in zip(asked, prompter.divided([(q.prompt, q.choices) for q in asked]), strict=True):
        own, cut = choices_of(tokens, prompter.first, prompter.most, question.place)
        assert not cut
        rows += [Row(r.tokens, tuple(len(choices) + i for i in r.choices)) for r in shared_rows(own)]
        choices += own
    return choices, rows


@torch.inference_mode()
def one_by_one(model: PreTrainedModel, choice: Choice) -> float:
    """As anybody would write it down."""
    scores = model(input_ids=torch.tensor([choice.tokens])).logits[0].double().log_softmax(-1)
    return sum(float(scores[i - 1, choice.tokens[i]]) for i in range(choice.start, len(choice.tokens)))


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_shared_rows_and_batches_give_what_each_choice_gives_alone(
    model: PreTrainedModel, prompter: Prompter, batch_size: int
) -> None:
    choices, rows = prepared(prompter, questions(9))
    assert len(rows) < len(choices)
    found = log_likelihoods(model, choices, rows, prompter.pad, batch_size)
    expected = [one_by_one(model, choice) for choice in choices]
    assert found == pytest.approx(expected, abs=1e-4)
    for start in range(0, len(found), 6):
        own, alone = found[start : start + 6], expected[start : start + 6]
        assert own.index(max(own)) == alone.index(max(alone))


def test_choices_of_one_token_need_one_row() -> None:
    choices = [Choice((5, 6, 7, letter), 3) for letter in (1, 2, 3)]
    assert shared_rows(choices) == [Row((5, 6, 7), (0, 1, 2))]


def test_a_row_answers_for_the_choices_that_it_begins_with_only() -> None:
    choices = [Choice((5, 1), 1), Choice((5, 1, 2, 3), 1), Choice((5, 2, 2), 1)]
    assert shared_rows(choices) == [Row((5, 1, 2), (1, 0)), Row((5, 2), (2,))]


def test_a_choice_is_what_stands_behind_the_questions_tokens(prompter: Prompter) -> None:
    [(own, wholes)] = prompter.divided([("the cat:", ["old dog"])])
    assert prompter.tokenizer.decode(own) == "the cat:"
    assert wholes == [prompter.tokenizer("the cat: old dog")["input_ids"]]
    [choice], _ = choices_of((own, wholes), 0, None, "q")
    assert prompter.tokenizer.decode(choice.tokens[choice.start :]) == " old dog"


def test_blanks_at_a_questions_end_belong_to_the_choices(prompter: Prompter) -> None:
    [with_blank, without] = prompter.divided([("the cat: ", ["dog"]), ("the cat:", ["dog"])])
    assert with_blank == without


def test_where_a_token_holds_some_of_both_all_choices_begin_before_it() -> None:
    # Of the question's tokens 1 2 3 the last grows into 9 with the first choice, and stays with the second.
    choices, _ = choices_of(([1, 2, 3], [[1, 2, 9], [1, 2, 3, 4]]), 0, None, "q")
    assert choices == [Choice((1, 2, 9), 2), Choice((1, 2, 3, 4), 2)]


def test_what_has_nothing_before_it_stands_behind_a_first_token() -> None:
    choices, _ = choices_of(([], [[4, 5], [6]]), 8, None, "q")
    assert choices == [Choice((8, 4, 5), 1), Choice((8, 6), 1)]


def test_a_long_question_is_cut_from_its_beginning() -> None:
    question = list(range(20))
    choices, cut = choices_of((question, [[*question, 30], [*question, 31, 32]]), 0, 5, "q")
    assert cut and [len(choice.read) for choice in choices] == [4, 5]
    assert choices[1] == Choice((16, 17, 18, 19, 31, 32), 4)


def test_choices_without_room_or_tokens_are_refused() -> None:
    with pytest.raises(DataError, match="q: its choices take 6 tokens, but the model reads 5; shorten them"):
        choices_of(([1, 2], [[1, 2, *range(3, 9)], [1, 2, 3]]), 0, 5, "q")
    with pytest.raises(DataError, match="q: a choice leaves no token behind the question"):
        choices_of(([1, 2], [[1, 2], [1, 2, 3]]), 0, None, "q")


@pytest.mark.slow
def test_accuracy_is_of_the_likeliest_choice_plain_and_by_its_length(
    model: PreTrainedModel, prompter: Prompter
) -> None:
    asked = questions(12)
    choices, _ = prepared(prompter, asked)
    alone = [one_by_one(model, choice) for choice in choices]
    plain = by_length = 0
    for i, question in enumerate(asked):
        own = alone[6 * i : 6 * i + 6]
        divided = [value / len(text) for value, text in zip(own, question.choices, strict=True)]
        plain += own.index(max(own)) == question.answer
        by_length += divided.index(max(divided)) == question.answer
    seen: list[tuple[int, int]] = []
    found = score_questions(model, prompter, "q", asked, 2, lambda done, whole: seen.append((done, whole)))
    assert found.figures["acc"].value == pytest.approx(plain / 12)
    assert found.figures["acc_norm"].value == pytest.approx(by_length / 12)
    assert found.examples == 12 and found.parts is None and not found.notes
    assert seen[0] == (0, 12) and seen[-1] == (12, 12)


def test_parts_are_told_with_their_macro_mean(model: PreTrainedModel, prompter: Prompter) -> None:
    asked = [Question("q", "the cat:", ("dog", "fox"), i % 2, "even" if i < 3 else "odd") for i in range(4)]
    found = score_questions(model, prompter, "q", asked, 4)
    assert found.parts is not None and set(found.parts) == {"even", "odd"}
    assert found.figures["acc_macro"].value == pytest.approx(sum(found.parts.values()) / 2)


def test_questions_that_are_cut_are_told(model: PreTrainedModel, prompter: Prompter) -> None:
    long = Question("file: line 3", "cat " * 200, ("dog", "fox"), 0)
    found = score_questions(model, prompter, "file", [long], 1)
    assert "1 question longer than the model reads" in found.notes[0] and "file: line 3" in found.notes[0]


def test_scores_that_are_no_numbers_are_an_error(folder: Path, prompter: Prompter) -> None:
    broken = AutoModelForCausalLM.from_pretrained(folder)
    broken.get_output_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="scores that are no numbers"):
        score_questions(broken, prompter, "q", questions(2), 2)


@pytest.mark.slow
def test_a_template_asks_by_a_users_message(folder: Path, prompter: Prompter) -> None:
    asked = Prompter(prompter.tokenizer, 128, by_template=True)
    [(own, wholes)] = asked.divided([("the cat?", ["dog"])])
    text = "<|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\n"
    assert asked.tokenizer.decode(own) == text and asked.tokenizer.decode(wholes[0]) == f"{text}dog"
