"""Real processes learn to answer: the answers' loss falls, and the export answers in the form of its data."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from typer.testing import CliRunner

from cli.main import app
from common.data.chat_encoding import encode_conversations
from common.data.examples import Columns, read_examples
from common.data.processors import load_processor
from common.model.tasks import IGNORED
from common.records import TaskKind
from experiments.smollm2 import smollm2
from tests.chats import END, conversations, message, write_chat_model, write_jsonl
from tests.conftest import sentences
from tests.integration.federation import Federation

CAUSAL = TaskKind.CAUSAL_LM
FORMS = {"animals": "of animals", "weather": "of weather"}


class OnQuestions(Federation):
    """Every data file holds questions of its own, what a text is of, and the answers."""

    def write_data(self, name: str, count: int, seed: int, labelled: bool = True) -> Path:
        texts, labels = sentences(count, seed)
        rows = [
            {"messages": [message("user", text), message("assistant", FORMS[label])]}
            for text, label in zip(texts, labels, strict=True)
        ]
        return write_jsonl(self.folder / f"{name}.jsonl", rows)


@pytest.mark.slow
def test_answers_are_learned_and_the_export_gives_them(tmp_path: Path) -> None:
    model = write_chat_model(tmp_path / "model", hidden=128)
    settings: dict[str, Any] = {
        "task.max_length": 64,
        "rounds.workers": 2,
        "rounds.minimum": 2,
        "gradient_gap.batches": 1,
        "adapter.targets": "attention+ffn",
        "adapter.rank": 16,
        "adapter.alpha": 32.0,
        "training.epochs": 8,
        "training.batch_size": 4,
        "training.learning_rate": 3e-3,
        "sub_fm.drop_ratio": 0.25,
    }
    running = OnQuestions(tmp_path, model, settings, CAUSAL)
    try:
        address = running.start_coordinator()["address"]
        for number in (1, 2):
            running.start_worker(number, address)
        running.wait()
    finally:
        running.end()
    losses = [e.loss for e in running.status().evaluations if e.model == "fm"]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.3 * losses[0]
    out = tmp_path / "merged"
    assert CliRunner().invoke(app, ["export", str(running.run), "--out", str(out), "--merge"]).exit_code == 0
    tokenizer, tuned = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out).eval()
    answers = []
    for text in sentences(10, seed=77)[0]:
        asked = tokenizer.apply_chat_template(
            [message("user", text)], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        said = tuned.generate(**asked, max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(said[0, asked["input_ids"].shape[1] :]))
    assert all(answer.removesuffix(END) in FORMS.values() for answer in answers), answers
    scores_of_the_exports(running, model, out)


def scores_of_the_exports(running: OnQuestions, model: Path, merged: Path) -> None:
    """`fedpft score`: what the FM has learnt shows, whichever way it was exported; bytes beside it."""
    asked = running.write_data("asked", 16, 77)
    adapter = running.folder / "adapter"
    assert CliRunner().invoke(app, ["export", str(running.run), "--out", str(adapter)]).exit_code == 0
    found = []
    for arguments in ([merged], [adapter], [adapter, "--base", model], [model]):
        command = ["score", *map(str, arguments), str(asked), "--json", "--run", str(running.run)]
        result = CliRunner().invoke(app, [*command, "--max-new-tokens", "12"])
        assert result.exit_code == 0, result.output
        found.append(json.loads(result.stdout))
    values = [{n: f["value"] for n, f in each["scores"][0]["figures"].items()} for each in found]
    assert values[0] == pytest.approx(values[1], rel=1e-3) and values[1] == values[2]
    assert values[0]["exact_match"] > 0.6 and values[0]["rouge_l"] > 0.8
    assert values[3]["exact_match"] == 0.0 and values[3]["loss"] > 2 * values[0]["loss"]
    traffic = [t for worker in running.status().workers for t in worker.traffic]
    assert found[0]["bytes"] == {
        "to_workers": sum(t.bytes_down for t in traffic),
        "from_workers": sum(t.bytes_up for t in traffic),
    }
    assert found[0]["bytes"]["from_workers"] > 0


@pytest.mark.slow
@pytest.mark.packaged
def test_smollm2s_own_template_is_marked_as_trl_marks_completions(tmp_path: Path) -> None:
    tokenizer = load_processor(smollm2(tmp_path / "smollm2"), CAUSAL)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    draw = random.Random(5)
    chats = conversations(100, seed=8)
    for messages in chats:
        # What stands in answers: blanks and line ends at their ends, signs of several bytes, marks of turns.
        messages[-1]["content"] = draw.choice(["", " ", "\n"]) + draw.choice(["naïve 😀", "1.\n\n2.", "a\t"])
    options: dict[str, Any] = {"tokenize": True, "return_dict": False}
    for form in ("prompts", "messages"):
        rows = [
            {"prompt": m[:-1], "completion": m[-1:]} if form == "prompts" else {"messages": m} for m in chats
        ]
        examples = read_examples(write_jsonl(tmp_path / "x.jsonl", rows), Columns())
        data = encode_conversations(tokenizer, examples, 500)
        assert len(data) == 100 and not data.notes
        for row, labels, messages in zip(data.rows, data.labels, chats, strict=True):
            whole = tokenizer.apply_chat_template(messages, **options)
            assert row["input_ids"] == whole
            mask = [0] * len(whole)
            for i, turn in enumerate(messages):
                if turn["role"] == "assistant" and (form == "messages" or i == len(messages) - 1):
                    given = tokenizer.apply_chat_template(messages[:i], add_generation_prompt=True, **options)
                    done = tokenizer.apply_chat_template(messages[: i + 1], **options)
                    assert whole[: len(given)] == given and whole[: len(done)] == done
                    mask[len(given) : len(done)] = [1] * (len(done) - len(given))
            assert [int(label != IGNORED) for label in labels] == mask
            assert [label for label in labels if label != IGNORED] == [
                token for token, there in zip(whole, mask, strict=True) if there
            ]
