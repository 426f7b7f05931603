"""Conversations at the doctor's, and in an export: what is looked at, and what is kept."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config.file import parse_config
from common.data.examples import Columns, read_examples
from common.records import TaskKind
from coordinator.owner.export import export
from experiments.simulation import simulate
from tests.chats import write_chat_model, write_chats, write_jsonl
from tests.conftest import write_table
from tests.field.test_doctor import configured, coordinator, examine, examined, told

CAUSAL = TaskKind.CAUSAL_LM


async def test_the_doctor_looks_at_conversations(tmp_path: Path) -> None:
    test = write_chats(tmp_path / "test.jsonl", 4)
    async with coordinator(tmp_path, task__kind="causal-lm", task__labels=(), data__test__path=test) as (
        address,
        _,
        _,
    ):
        done = await examined(address, tmp_path, "--data", write_chats(tmp_path / "c.jsonl", 5))
        assert told(done, "private data")[0] == "ok private data 5 examples"
        assert "their form and labels are the run's" in told(done, "data for the run")[0]
        done = await examined(address, tmp_path, "--data", write_table(tmp_path / "t.csv", 5))
        assert "the run is for conversations: a column 'messages'" in told(done, "data for the run")[0]
        done = await examined(
            address, tmp_path, "--data", write_jsonl(tmp_path / "w.jsonl", [{"messages": []}])
        )
        assert "w.jsonl: line 1: 'messages' holds no message" in told(done, "private data")[0]


def test_the_doctor_tells_of_conversations_that_are_cut(tmp_path: Path) -> None:
    model = write_chat_model(tmp_path / "model")
    long = {"prompt": "the " * 90, "completion": "cat"}
    test = write_jsonl(tmp_path / "test.jsonl", [long, {"prompt": "the", "completion": " cat"}])
    settings = {"task__kind": "causal-lm", "task__labels": (), "data__test__path": test}
    done = examine("--config", configured(tmp_path, model, **settings))
    assert any(
        "left out: no token of an answer is left there: line 1" in line for line in told(done, "tokenizer")
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one round and two clients with conversations."""
    folder = tmp_path_factory.mktemp("chats")
    model = write_chat_model(folder / "model")
    (model / "generation_config.json").write_text(
        '{"temperature": 0.6, "do_sample": true, "eos_token_id": 2}'
    )
    given = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.kind": "causal-lm",
        "task.max_length": 96,
        "data.public.path": write_chats(folder / "public.jsonl", 32, 90),
        "data.test.path": write_chats(folder / "test.jsonl", 16, 91),
        "alignment.steps": 2,
        "gradient_gap.batches": 1,
        "rounds.count": 1,
        "rounds.workers": 2,
        "rounds.minimum": 2,
        "compute.threads": 1,
    }
    files = {f"client-{n}": write_chats(folder / f"client-{n}.jsonl", 24, n) for n in (1, 2)}
    clients = {name: read_examples(path, Columns(), CAUSAL) for name, path in files.items()}
    outcome = simulate(parse_config(given, "a test"), clients)
    assert outcome.evaluations
    return folder


@pytest.mark.parametrize("merge", [True, False])
def test_an_export_keeps_the_template_and_how_texts_are_drawn(finished: Path, merge: bool) -> None:
    out = finished / ("merged" if merge else "adapter")
    export(finished / "run", out, merge)
    for name in ("chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (out / name).read_bytes() == (finished / "model" / name).read_bytes()
    tokenizer = AutoTokenizer.from_pretrained(out)
    messages = [{"role": "user", "content": "the"}]
    asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert asked == "<|im_start|>user\nthe<|im_end|>\n<|im_start|>assistant\n"
    if not merge:
        return
    # As vLLM finds a model: what it is, weights by its own names, tokenizer and template.
    fields = json.loads((out / "config.json").read_text())
    assert fields["architectures"] == ["LlamaForCausalLM"] and fields["model_type"] == "llama"
    with safe_open(out / "model.safetensors", "pt") as weights:
        assert {"model.embed_tokens.weight", "model.layers.0.mlp.down_proj.weight"} <= set(weights.keys())
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    assert model.generation_config.temperature == 0.6
    inputs = tokenizer(asked, add_special_tokens=False, return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert said.shape[1] > inputs["input_ids"].shape[1]
