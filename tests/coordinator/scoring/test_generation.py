"""Answers are generated greedily, in batches as alone, and end where the model ends them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from common.data.examples import Columns, read_examples
from common.data.processors import load_processor
from common.errors import DataError
from common.records import TaskKind
from coordinator.scoring.generation import Asked, asked_of, ends_of, generated, score_answers
from coordinator.scoring.prompts import Prompter
from tests.chats import message, write_chat_model, write_jsonl
from tests.conftest import sentences
from tests.families import small_model


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


@torch.inference_mode()
def token_by_token(model: PreTrainedModel, tokens: list[int], count: int, ends: set[int]) -> list[int]:
    """Without a cache, padding or any of transformers' generation."""
    whole = list(tokens)
    while len(whole) < len(tokens) + count:
        best = int(model(input_ids=torch.tensor([whole])).logits[0, -1].argmax())
        if best in ends:
            break
        whole.append(best)
    return whole[len(tokens) :]


def test_a_batch_says_what_each_prompt_alone_would_say(model: PreTrainedModel, prompter: Prompter) -> None:
    prompts = prompter.tokens(sentences(5, seed=8)[0])
    ends = ends_of(model, prompter)
    told = generated(model, prompter, prompts, [6, 5, 6, 3, 6], 5)
    for answer, tokens, count in zip(told, prompts, [6, 5, 6, 3, 6], strict=True):
        alone = token_by_token(model, tokens, count, ends)
        assert answer == prompter.tokenizer.decode(alone, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen2", "phi"])
def test_padding_in_front_changes_no_familys_answer(family: str, prompter: Prompter) -> None:
    model = small_model(family, TaskKind.CAUSAL_LM).eval()
    draw = torch.Generator().manual_seed(2)
    prompts = [torch.randint(4, 60, (n,), generator=draw).tolist() for n in (3, 9, 6, 1)]
    batch = generated(model, prompter, prompts, [5] * 4, 4)
    assert batch == [generated(model, prompter, [each], [5], 1)[0] for each in prompts]


def test_what_a_model_was_published_with_does_not_mix_in(folder: Path, prompter: Prompter) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = prompter.tokens(["the old cat"])
    plain = generated(model, prompter, prompts, [8], 1)
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.do_sample = True
    assert generated(model, prompter, prompts, [8], 1) == plain
    assert model.generation_config.repetition_penalty == 5.0


def test_an_answer_ends_where_the_model_ends_it(folder: Path, prompter: Prompter) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompts = prompter.tokens(["the old cat"])
    assert model.generation_config.eos_token_id == 2 and ends_of(model, prompter) == {0, 2}
    free = token_by_token(model, prompts[0], 4, set())
    model.generation_config.eos_token_id = [2, free[2]]
    expected = prompter.tokenizer.decode(free[: free.index(free[2])], skip_special_tokens=True)
    assert generated(model, prompter, prompts, [8], 1) == [expected]


def test_prompts_that_leave_no_room_are_cut_and_told(model: PreTrainedModel, prompter: Prompter) -> None:
    asked = [Asked("line 1", tuple(range(3, 53)) * 3, "rain"), Asked("line 2", (5, 6), "雨")]
    figures, notes, _ = score_answers(model, prompter, asked, 20, 2)
    assert figures["exact_match"].value == 0.0
    assert notes == (
        "1 prompt cut from the beginning, to leave room for 20 new tokens: line 1",
        "1 answer without a letter from a to z or a digit: its ROUGE-L is 0: line 2",
    )
    with pytest.raises(DataError, match="--max-new-tokens must be less than the 128 tokens"):
        score_answers(model, prompter, asked, 128, 2)


def test_figures_are_of_the_answers(model: PreTrainedModel, prompter: Prompter) -> None:
    tokens = prompter.tokens(["the old cat", "some rain"])
    said = generated(model, prompter, tokens, [6, 6], 2)
    assert all(any(letter.isalnum() for letter in answer) for answer in said)
    asked = [Asked("a", tuple(tokens[0]), f" {said[0].upper()}!"), Asked("b", tuple(tokens[1]), "zzz")]
    figures, notes, answered = score_answers(model, prompter, asked, 6, 2)
    assert [each.said for each in answered] == [each.strip() for each in said]
    assert figures["exact_match"].value == 0.5 and figures["exact_match"].error == pytest.approx(0.5)
    assert figures["rouge_l"].value == pytest.approx(0.5) and not notes


@pytest.mark.slow
def test_every_answer_is_asked_for_behind_the_true_messages_before_it(
    prompter: Prompter, tmp_path: Path
) -> None:
    said = [
        message("user", "hi"),
        message("assistant", "a cat"),
        message("user", "and"),
        message("assistant", "dog"),
    ]
    rows = [{"messages": said}, {"messages": said[:2]}]
    examples = read_examples(write_jsonl(tmp_path / "m.jsonl", rows), Columns(), TaskKind.CAUSAL_LM)
    asked = asked_of(prompter, examples)
    assert [each.wanted for each in asked] == ["a cat", "dog", "a cat"]
    first = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    second = f"{first}a cat<|im_end|>\n<|im_start|>user\nand<|im_end|>\n<|im_start|>assistant\n"
    assert [prompter.tokenizer.decode(each.tokens) for each in asked] == [first, second, first]


def test_a_prompt_that_is_text_stands_as_it_is(prompter: Prompter, tmp_path: Path) -> None:
    rows = [{"prompt": "the cat:", "completion": " dog"}, {"prompt": "", "completion": "dog"}]
    examples = read_examples(write_jsonl(tmp_path / "p.jsonl", rows), Columns(), TaskKind.CAUSAL_LM)
    asked = asked_of(prompter, examples)
    assert prompter.tokenizer.decode(asked[0].tokens) == "the cat:" and asked[0].wanted == " dog"
    # Nothing to go on from: the beginning of a text.
    assert asked[1].tokens == (prompter.tokenizer.eos_token_id,)
