"""Answers alone are learned: of whom TRL's completion mask tells, by any template that can be told apart."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from common.data import chat_encoding, chat_template
from common.data.batches import ConversationDataset
from common.data.chat_encoding import NoPrefix
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples
from common.data.processors import load_processor
from common.errors import DataError, ModelError, Stopped
from common.model.tasks import IGNORED
from common.records import TaskKind
from common.runtime.stopping import stoppable
from tests.chats import END, EOS, START, conversations, message, write_chat_tokenizer, write_jsonl
from tests.conftest import sentences

CAUSAL = TaskKind.CAUSAL_LM


def loaded(folder: Path) -> PreTrainedTokenizerBase:
    processor = load_processor(folder, CAUSAL)
    assert isinstance(processor, PreTrainedTokenizerBase)
    return processor


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return loaded(write_chat_tokenizer(tmp_path_factory.mktemp("chatml")))


def with_template(folder: Path, template: Any) -> PreTrainedTokenizerBase:
    return loaded(write_chat_tokenizer(folder / "tokenizer", template))


def encoded(
    tokenizer: PreTrainedTokenizerBase, folder: Path, rows: list[Any], max_length: int = 500
) -> ConversationDataset:
    examples = read_examples(write_jsonl(folder / "x.jsonl", rows), Columns())
    data = encode(tokenizer, examples, CAUSAL, max_length, None)
    assert isinstance(data, ConversationDataset)
    return data


def masks(data: ConversationDataset) -> list[list[int]]:
    """1 for targets; a target is the token of its place."""
    for row, labels in zip(data.rows, data.labels, strict=True):
        assert all(label in (IGNORED, token) for token, label in zip(row["input_ids"], labels, strict=True))
    return [[int(label != IGNORED) for label in labels] for labels in data.labels]


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def by_hand(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]
) -> tuple[list[int], list[int]]:
    """ChatML's tokens and targets, put together turn by turn out of tokens."""
    ids: list[int] = []
    mask: list[int] = []
    for turn in messages:
        head = [tokenizer.convert_tokens_to_ids(START), *ids_of(tokenizer, turn["role"] + "\n")]
        said = ids_of(tokenizer, turn["content"])
        said += [tokenizer.convert_tokens_to_ids(END), *ids_of(tokenizer, "\n")]
        ids += head + said
        mask += [0] * len(head) + [int(turn["role"] == "assistant")] * len(said)
    return ids, mask


def test_of_100_conversations_what_assistants_say_is_learned_to_its_end(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    chats = conversations(100)
    data = encoded(tokenizer, tmp_path, [{"messages": messages} for messages in chats])
    expected = [by_hand(tokenizer, messages) for messages in chats]
    assert [row["input_ids"] for row in data.rows] == [ids for ids, _ in expected]
    assert masks(data) == [mask for _, mask in expected]
    assert sum(len(messages) > 3 for messages in chats) > 20


def test_the_targets_of_one_conversation_read_as_its_answers(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    turns = [message("user", "hi"), message("assistant", "cat!"), message("user", "and?")]
    data = encoded(tokenizer, tmp_path, [{"messages": [*turns, message("assistant", "dog"), turns[2]]}])
    learned = [label for label in data.labels[0] if label != IGNORED]
    assert tokenizer.decode(learned) == f"cat!{END}\ndog{END}\n"


def trl(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """What TRL's SFTTrainer makes of a row: its tokens and its completion mask."""
    if isinstance(row["prompt"], str):
        completion = row["completion"]
        completion += "" if completion.endswith(EOS) else EOS
        prompt = tokenizer(row["prompt"])["input_ids"]
        whole = tokenizer(row["prompt"] + completion)["input_ids"]
    else:
        options: dict[str, Any] = {"tokenize": True, "return_dict": False}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **options)
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], **options)
    assert whole[: len(prompt)] == prompt
    return list(whole), [0] * len(prompt) + [1] * (len(whole) - len(prompt))


def test_of_prompts_with_completions_the_completions_are_learned_as_trl_does(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    texts, answers = sentences(100, seed=1)[0], sentences(100, seed=2)[0]
    ends = random.Random(0).choices(["", EOS], k=100)
    plain = [
        {"prompt": text, "completion": f" {answer}{end}"}
        for text, answer, end in zip(texts, answers, ends, strict=True)
    ]
    chats = [{"prompt": m[:-1], "completion": m[-1:]} for m in conversations(100, seed=4)]
    for rows in (plain, chats):
        data = encoded(tokenizer, tmp_path, rows)
        expected = [trl(tokenizer, row) for row in rows]
        assert [row["input_ids"] for row in data.rows] == [ids for ids, _ in expected]
        assert masks(data) == [mask for _, mask in expected]


@pytest.mark.slow
def test_both_forms_may_stand_in_one_file(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    chat = conversations(1)[0]
    rows = [{"prompt": "a", "completion": " b"}, {"prompt": chat[:-1], "completion": chat[-1:]}]
    data = encoded(tokenizer, tmp_path, rows + rows[:1])
    assert masks(data) == [trl(tokenizer, row)[1] for row in rows + rows[:1]]


def test_a_completion_that_would_share_a_token_with_its_prompt_is_tokenised_apart(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = encoded(tokenizer, tmp_path, [{"prompt": "the ", "completion": "cat"}])
    expected = [*ids_of(tokenizer, "the "), *ids_of(tokenizer, "cat"), tokenizer.eos_token_id]
    assert data.rows[0]["input_ids"] == expected != [*ids_of(tokenizer, "the cat"), tokenizer.eos_token_id]
    assert (
        data.labels[0]
        == [IGNORED] * len(ids_of(tokenizer, "the ")) + expected[-len(ids_of(tokenizer, "cat")) - 1 :]
    )
    assert "1 conversation of 1 tokenised as prompt and completion apart" in data.notes[0]


@pytest.mark.slow
def test_an_answer_that_shares_a_token_with_what_invites_it_is_left_out_and_told(tmp_path: Path) -> None:
    invites = "{{ messages[0].content + ' ' }}{% if messages[1:] %}{{ messages[1].content }}{% endif %}"
    tokenizer = with_template(tmp_path, invites)
    rows = [[message("user", "the"), message("assistant", said)] for said in ("cat", "1")]
    data = encoded(tokenizer, tmp_path, [{"messages": row} for row in rows])
    assert len(data) == 1
    [note] = data.notes
    assert note.endswith(
        "x.jsonl: 1 conversation of 2 left out: a token holds the end of what is given and the beginning of "
        "an answer: line 1"
    )


def test_conversations_stay_apart_and_padding_is_no_target(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = encoded(tokenizer, tmp_path, [{"messages": messages} for messages in conversations(9)])
    assert data.lengths == [len(row["input_ids"]) for row in data.rows] and len(data) == 9
    seen = 0
    for batch in data.shuffled(4, seed=1):
        assert batch.labels is not None and batch.mask is not None
        assert batch.labels.shape == batch.inputs["input_ids"].shape and batch.labels.dtype == torch.int64
        assert bool((batch.labels[batch.mask == 0] == IGNORED).all())
        # Each begins anew: at its first place, and nowhere else but behind an end.
        assert (batch.inputs["input_ids"][:, 0] == tokenizer.convert_tokens_to_ids(START)).all()
        seen += len(batch.labels)
    assert seen == 9


def test_what_is_cut_and_what_is_left_without_an_answer_is_counted_and_told(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long, short = "the " * 40, "the"
    chats = [[message("user", ask), message("assistant", say)] for ask, say in ((long, "a"), (short, long))]
    rows = [
        {"messages": messages} for messages in [*chats, [message("user", "a"), message("assistant", "a")]]
    ]
    data = encoded(tokenizer, tmp_path, rows, max_length=32)
    assert len(data) == 2 and max(data.lengths) == 32
    path = tmp_path / "x.jsonl"
    assert data.notes == (
        f"{path}: 2 conversations of 3 reach beyond task.max_length = 32 tokens, and are cut there: "
        "line 1, line 2",
        f"{path}: 1 conversation of 3 left out: no token of an answer is left there: line 1",
    )
    assert all(note in caplog.text for note in data.notes)
    with pytest.raises(
        DataError, match=r"there is no answer to learn from within task\.max_length = 8 tokens"
    ):
        encoded(tokenizer, tmp_path, rows[:1], max_length=8)


def test_a_tokenizer_that_frames_texts_frames_prompt_and_completion_once(
    model_folder: Path, tmp_path: Path
) -> None:
    """BERT's [CLS] and [SEP]; then EOS, which is another token."""
    framing = loaded(model_folder)
    framing.eos_token = "[PAD]"
    data = encoded(framing, tmp_path, [{"prompt": "the cat", "completion": "was near"}])
    assert framing.convert_ids_to_tokens(data.rows[0]["input_ids"]) == [
        "[CLS]", "the", "cat", "was", "near", "[SEP]", "[PAD]",
    ]  # fmt: skip
    assert masks(data) == [[0, 0, 0, 1, 1, 1, 1]]


@pytest.mark.slow
def test_work_is_done_in_pieces_between_which_it_may_end(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"messages": messages} for messages in conversations(6, seed=2)]
    whole = encoded(tokenizer, tmp_path, rows)
    monkeypatch.setattr(chat_encoding, "_PIECE_TEXTS", 8)
    pieces = encoded(tokenizer, tmp_path, rows)
    assert (pieces.rows, pieces.labels) == (whole.rows, whole.labels)

    def ended() -> None:
        raise Stopped("enough")

    with pytest.raises(Stopped):
        stoppable(ended, encoded, tokenizer, tmp_path, rows)


# --- templates ---

ASK: list[Any] = [{"messages": [message("user", "a"), message("assistant", "b")]}]
TWICE: list[Any] = [{"messages": ASK[0]["messages"] * 2}]
LAST_ONLY = (
    "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}(thinks){% endif %}"
    "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.content }}", "line 1: Unexpected end of template"),
        ("{{ 'a' * 10**11 }}", "it wants more memory than a text can need"),
        *(
            pytest.param(template, told, marks=pytest.mark.slow)
            for template, told in (
                ("{{ nothing.there }}", "'nothing' is undefined"),
                ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
                ("{{ ''.__class__.__mro__ }}", "unsafe"),
                ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
                ("{{ 'abcd' * 10**6 }}", "it makes 4,000,000 characters of one conversation"),
            )
        ),
    ],
)
def test_a_template_that_cannot_be_rendered_is_told_in_one_line(
    template: str, told: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError) as caught:
        encoded(with_template(tmp_path, template), tmp_path, ASK)
    line = str(caught.value)
    assert f"x.jsonl: line 1: the chat template of model {tmp_path / 'tokenizer'} does not take it: " in line
    assert told in line and "\n" not in line


def test_a_template_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thousand = "{% for i in range(99999) %}"
    endless = with_template(tmp_path, thousand * 3 + "{% endfor %}" * 3)
    monkeypatch.setattr(chat_template, "_SECONDS", 2.0)
    with pytest.raises(ModelError, match="its chat template took more than 2 seconds"):
        encoded(endless, tmp_path, ASK)


def test_a_template_that_changes_what_it_has_rendered_is_refused_by_name(tmp_path: Path) -> None:
    """As some do that leave out what was thought before: one answer can be told, several cannot."""
    tokenizer = with_template(tmp_path, LAST_ONLY)
    assert tokenizer.decode([i for i in encoded(tokenizer, tmp_path, ASK).labels[0] if i >= 0]) == "(thinks)b"
    with pytest.raises(NoPrefix) as caught:
        encoded(tokenizer, tmp_path, [*ASK, *TWICE])
    line = str(caught.value)
    assert (
        f"x.jsonl: line 2: model {tmp_path / 'tokenizer'}: its chat template renders the first 2 messages"
        in line
    )
    assert "\n" not in line
    reverse = with_template(tmp_path / "r", "{% for m in messages|reverse %}{{ m.content }}{% endfor %}")
    with pytest.raises(NoPrefix, match="the first 1 message with the invitation to answer otherwise"):
        encoded(reverse, tmp_path, ASK)


def test_messages_without_a_template_are_refused_and_plain_completions_need_none(tmp_path: Path) -> None:
    bare = with_template(tmp_path, None)
    with pytest.raises(ModelError, match="its tokenizer has no chat template to render messages by"):
        encoded(bare, tmp_path, ASK)
    assert len(encoded(bare, tmp_path, [{"prompt": "a", "completion": " b"}])) == 1


@pytest.mark.slow
def test_of_several_templates_the_one_called_default_is_taken(tmp_path: Path) -> None:
    several = with_template(
        tmp_path, {"default": "{% for m in messages %}{{ m.content }};{% endfor %}", "x": "y"}
    )
    assert tokenizer_text(several, encoded(several, tmp_path, ASK)) == "a;b;"


def tokenizer_text(tokenizer: PreTrainedTokenizerBase, data: ConversationDataset) -> str:
    return str(tokenizer.decode(data.rows[0]["input_ids"]))


@pytest.mark.slow
def test_a_template_knows_the_tokenizers_own_tokens(tmp_path: Path) -> None:
    ends = with_template(tmp_path, "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    assert tokenizer_text(ends, encoded(ends, tmp_path, ASK)) == f"a{EOS}b{EOS}"


def test_a_text_column_is_what_is_read_where_there_is_one(tmp_path: Path) -> None:
    row = {"text": "a text", **ASK[0]}
    examples = read_examples(write_jsonl(tmp_path / "x.jsonl", [row]), Columns(label=None))
    assert examples == Examples(str(tmp_path / "x.jsonl"), ["a text"])
