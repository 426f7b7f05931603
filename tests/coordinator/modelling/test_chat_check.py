"""A run of conversations is known by its owner's data, and starts with a template that does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from common.config.run import RunConfig
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.data.processors import load_processor
from common.model.tasks import IGNORED, tally
from common.records import TaskKind
from coordinator.context import of_conversations, run_spec
from coordinator.modelling.evaluation import perplexity, score
from tests.chats import write_chat_model, write_chats, write_jsonl
from tests.conftest import write_table
from tests.field.test_checks import refused, run_of, start

CAUSAL, TEXT = TaskKind.CAUSAL_LM, TaskKind.TEXT_CLASSIFICATION
BROKEN = "{% for m in messages %}{{ m.content }}"


def chat_run(folder: Path, model: Path, **settings: Any) -> RunConfig:
    """A run with conversations as test data."""
    test = write_chats(folder / "test.jsonl", 8)
    return run_of(folder, model, CAUSAL, task__max_length=64, **({"data__test__path": test} | settings))


@pytest.mark.parametrize(
    ("test", "public", "expected"),
    [
        ("chats", None, True),
        ("chats", "texts", True),
        ("texts", "chats", False),
        (None, "chats", True),
        (None, "texts", False),
        (None, None, False),
        ("missing", None, False),
    ],
)
def test_a_run_is_for_conversations_by_its_owners_data(
    test: str | None, public: str | None, expected: bool, tmp_path: Path
) -> None:
    files = {
        "chats": write_chats(tmp_path / "c.jsonl", 2),
        "texts": write_table(tmp_path / "t.csv", 2),
        "missing": tmp_path / "m.csv",
    }
    given = {
        f"data__{name}__path": files[what] for name, what in (("test", test), ("public", public)) if what
    }
    settings = {"sub_fm__construction": "layer-drop"} if public is None else {}
    config = run_of(tmp_path, tmp_path, CAUSAL, **given, **settings)
    assert of_conversations(config) is run_spec(config, "r").task.conversations is expected


def test_a_classifier_is_not_for_conversations_whatever_its_columns_are_called(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b", "label": "animals"}])
    assert not of_conversations(run_of(tmp_path, tmp_path, TEXT, data__test__path=path))


def test_a_run_of_conversations_starts(tmp_path: Path) -> None:
    start(chat_run(tmp_path, write_chat_model(tmp_path / "model")))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (BROKEN, "its chat template cannot be rendered: line 1: Unexpected end of template"),
        pytest.param("x" * 70_000, "a chat template of 70,000 bytes; at most 65,536", marks=pytest.mark.slow),
        pytest.param(
            "{{ messages|length }}", "its chat template renders the first 1", marks=pytest.mark.slow
        ),
    ],
)
def test_a_template_that_does_not_do_is_refused_at_the_start_by_its_models_name(
    template: str, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_chat_model(tmp_path / "model", template)
    # These need no template: the run's workers may.
    plain = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the", "completion": " cat"}])
    line = refused(chat_run(tmp_path, model, data__test__path=plain))
    assert line.startswith(f"model {model}: ") and reason in line
    # A run of texts goes on as it did, and says so.
    start(run_of(tmp_path / "texts", model, CAUSAL, data__test__path=write_table(tmp_path / "t.csv", 9)))
    assert reason in caplog.text and "workers whose data are conversations will be refused" in caplog.text


@pytest.mark.slow
def test_a_template_for_single_answers_serves_and_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only_last = (
        "{% for m in messages %}[{{ m.role }}]{% if loop.last and m.role == 'assistant' %}(thinks){% endif %}"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    model = write_chat_model(tmp_path / "model", only_last)
    plain = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "the", "completion": " cat"}])
    start(chat_run(tmp_path, model, data__test__path=plain))
    assert "the first 2 messages" in caplog.text and "such conversations will be refused" in caplog.text


def test_scores_and_perplexity_are_of_answers_alone(tmp_path: Path) -> None:
    folder = write_chat_model(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    examples = read_examples(write_chats(tmp_path / "c.jsonl", 6), Columns())
    data = encode(load_processor(folder, CAUSAL), examples, CAUSAL, 64, None)
    right = loss = targets = 0.0
    with torch.no_grad():
        for i in range(len(data)):
            batch = data.batch([i])
            assert batch.labels is not None
            [logits], [labels] = model(**batch.inputs).logits.log_softmax(-1), batch.labels
            for place in range(1, len(labels)):
                if labels[place] != IGNORED:
                    targets += 1
                    right += int(logits[place - 1].argmax() == labels[place])
                    loss -= float(logits[place - 1, labels[place]])
        batch = data.batch(range(6))
        assert (
            batch.labels is not None
            and tally(model(**batch.inputs).logits, batch.labels, CAUSAL)[2] == targets
        )
    accuracy, mean, _ = score(model, data, CAUSAL, ())
    assert accuracy == right / targets and mean == pytest.approx(loss / targets, rel=1e-5)
    assert perplexity(model, data.in_order(4)) == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-4)
