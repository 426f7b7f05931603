"""`fedpft score` on small real models: files, adapters, groups, bytes; what is wrong in a line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.run_status import Traffic
from coordinator.scoring.flowertune import GROUPS
from coordinator.storage.store import Store
from tests.chats import message, write_chat_model, write_jsonl
from tests.conftest import LABELS, sentences, write_model, write_table
from tests.coordinator.scoring.test_flowertune import finance, medical, mmlu

pytestmark = pytest.mark.slow


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)], env={"COLUMNS": "120"})


def told(*arguments: object) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def figures(*arguments: object) -> dict[str, Any]:
    [scores] = told(*arguments)["scores"]
    return {name: figure["value"] for name, figure in scores["figures"].items()}


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("model"))


def questions(path: Path, count: int = 9) -> Path:
    texts, labels = sentences(count, seed=6)
    return write_jsonl(
        path,
        [
            {"question": f"{text}:", "choices": ["animals", "weather", "x"], "answer": label}
            for text, label in zip(texts, labels, strict=True)
        ],
    )


def completions(path: Path, count: int = 6) -> Path:
    texts, labels = sentences(count, seed=6)
    rows = [{"prompt": f"{t}:", "completion": f" {label}"} for t, label in zip(texts, labels, strict=True)]
    return write_jsonl(path, rows)


@pytest.fixture
def adapter(chat_model: Path, tmp_path: Path) -> Path:
    """Its weights are far from nothing, and it names a folder that is gone."""
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(chat_model),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], init_lora_weights=False),
    )
    tuned.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/model"}))
    tuned.merge_and_unload().save_pretrained(tmp_path / "merged")
    for file in chat_model.glob("tokenizer*"):
        (tmp_path / "merged" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "adapter"


def test_every_form_of_file_has_its_figures(chat_model: Path, tmp_path: Path) -> None:
    said = [message("user", "hi there"), message("assistant", "the cat")]
    files = [
        questions(tmp_path / "q.jsonl"),
        completions(tmp_path / "c.jsonl"),
        write_jsonl(tmp_path / "m.jsonl", [{"messages": said}]),
        write_table(tmp_path / "t.csv", 12, labelled=False),
    ]
    found = told(chat_model, *files, "--max-new-tokens", 5)["scores"]
    assert [each["form"] for each in found] == ["multiple choice", "answers", "answers", "text"]
    assert [each["examples"] for each in found] == [9, 6, 1, 12]
    tokens = {"loss", "perplexity", "token_accuracy", "tokens"}
    assert [set(each["figures"]) for each in found] == [
        {"acc", "acc_norm"},
        {"exact_match", "rouge_l"} | tokens,
        {"exact_match", "rouge_l"} | tokens,
        tokens,
    ]
    # Of a single example there is no error.
    assert found[2]["figures"]["loss"]["stderr"] is None and found[1]["figures"]["loss"]["stderr"] > 0


def test_the_table_holds_what_json_holds(chat_model: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "q.jsonl")
    shown = run(chat_model, path)
    assert shown.exit_code == 0, shown.output
    [scores] = told(chat_model, path)["scores"]
    line = next(line for line in shown.stdout.splitlines() if " acc " in line)
    value = scores["figures"]["acc"]
    assert "q.jsonl" in line and " 9 " in line
    assert f"{value['value']:.4f}" in line and f"{value['stderr']:.4f}" in line


def test_batches_and_limits(chat_model: Path, tmp_path: Path) -> None:
    path = completions(tmp_path / "c.jsonl", 7)
    one, many = (figures(chat_model, path, "--batch-size", size, "--max-new-tokens", 4) for size in (1, 5))
    assert one == pytest.approx(many, abs=1e-4)
    assert told(chat_model, path, "--limit", 2, "--no-generation")["scores"][0]["examples"] == 2


def test_an_adapter_scores_what_it_scores_merged(adapter: Path, chat_model: Path, tmp_path: Path) -> None:
    path = completions(tmp_path / "c.jsonl")
    on_base = figures(adapter, path, "--base", chat_model, "--max-new-tokens", 4)
    assert on_base == pytest.approx(figures(adapter.parent / "merged", path, "--max-new-tokens", 4), rel=1e-4)
    assert on_base["loss"] != pytest.approx(figures(chat_model, path, "--no-generation")["loss"], abs=1e-2)


def test_texts_go_through_the_template_when_asked(chat_model: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "hi there", "completion": "the cat"}]
    said = [message("user", "hi there"), message("assistant", "the cat")]
    plain, messages = (
        write_jsonl(tmp_path / "p.jsonl", rows),
        write_jsonl(tmp_path / "m.jsonl", [{"messages": said}]),
    )
    by_messages = figures(chat_model, messages, "--max-new-tokens", 4)
    assert figures(chat_model, plain, "--template", "on", "--max-new-tokens", 4) == by_messages
    assert figures(chat_model, plain, "--max-new-tokens", 4) != by_messages
    choices = questions(tmp_path / "q.jsonl")
    on, off = (told(chat_model, choices, "--template", use)["scores"] for use in ("on", "off"))
    assert on[0]["figures"].keys() == off[0]["figures"].keys()


def test_classifiers_have_their_tasks_metrics(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.config.id2label = dict(enumerate(LABELS))
    model.save_pretrained(tmp_path / "named")
    for file in folder.glob("*token*"):
        (tmp_path / "named" / file.name).write_bytes(file.read_bytes())
    [scores] = told(tmp_path / "named", write_table(tmp_path / "t.csv", 40))["scores"]
    assert scores["form"] == "text-classification" and scores["examples"] == 40
    assert {"accuracy", "loss", "macro_f1", "auc"} <= scores["figures"].keys()
    accuracy = scores["figures"]["accuracy"]
    share = accuracy["value"]
    assert accuracy["stderr"] == pytest.approx((share * (1 - share) / 39) ** 0.5)


def test_flowertunes_groups_are_scored_with_their_means(chat_model: Path, tmp_path: Path) -> None:
    for fill in (mmlu, medical, finance):
        fill(tmp_path / "hub")
    wanted = tmp_path / "answers.jsonl"
    found = told(
        chat_model, *GROUPS, "--data-root", tmp_path / "hub", "--max-new-tokens", 3, "--answers", wanted
    )
    assert [each["source"] for each in found["scores"]] == [n for group in GROUPS.values() for n in group]
    assert found["means"].keys() == GROUPS.keys()
    stem, *rest = found["scores"][:3]
    assert stem["examples"] == 38 and len(stem["parts"]) == 19
    assert stem["figures"].keys() == {"answered_right", "acc", "acc_norm", "acc_macro"}
    three = [each["figures"]["answered_right"]["value"] for each in (stem, *rest)]
    assert found["means"]["general-nlp"]["answered_right"]["value"] == pytest.approx(sum(three) / 3)
    few = told(chat_model, "mmlu-stem", "--data-root", tmp_path / "hub", "--limit", 1, "--no-generation")
    assert few["scores"][0]["examples"] == 19 and "means" not in few
    rows = [json.loads(line) for line in wanted.read_text().splitlines()]
    assert len(rows) == sum(each["examples"] for each in found["scores"])
    assert rows[0].keys() == {"source", "place", "wanted", "said"} and rows[0]["wanted"] == "A"


def test_a_runs_bytes_stand_beside_the_scores(chat_model: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    config = parse_config({"model.path": "m", "data.public.path": "p.csv", "task.labels": LABELS}, "test")
    store.open_run("the-run", config.model_dump_json())
    store.traffic.save(
        [("a", Traffic(0, "sub_model", 2_000_000, 0)), ("b", Traffic(1, "adapter", 10, 500_000))]
    )
    store.close()
    path = questions(tmp_path / "q.jsonl", 3)
    assert told(chat_model, path, "--run", tmp_path / "run")["bytes"] == {
        "to_workers": 2_000_010,
        "from_workers": 500_000,
    }
    shown = run(chat_model, path, "--run", tmp_path / "run").stdout
    assert "bytes of the run: 2.00 MB to workers, 0.50 MB from them, 2.50 MB in all" in shown


def test_long_texts_are_cut_and_told(chat_model: Path, tmp_path: Path) -> None:
    long = {"question": "the old cat " * 100, "choices": ["dog", "fox"], "answer": 0}
    shown = run(chat_model, write_jsonl(tmp_path / "q.jsonl", [long]))
    assert shown.exit_code == 0 and "note: " in shown.stdout
    assert "1 question longer than the model reads, the beginning of each left out" in shown.stdout
    rows = [
        {"prompt": "the old cat " * 100, "completion": " dog"},
        {"prompt": "a", "completion": " dog" * 200},
    ]
    path = write_jsonl(tmp_path / "c.jsonl", rows)
    shown = run(chat_model, path, "--max-new-tokens", 4)
    assert shown.exit_code == 0, shown.output
    assert "2 conversations of 2 reach beyond --max-length = 128 tokens, and are cut there" in shown.stdout
    assert "1 prompt cut from the beginning, to leave room for 4 new tokens" in shown.stdout


def wrong(*arguments: object) -> str:
    """What is said of it: one line on standard error, and exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.output
    line: str = result.stderr
    return line


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("", (), "bad.jsonl is empty"),
        ('{"title": "a"}\n', (), "has no columns that a language model is scored on: question, choices and"),
        (
            '{"question": "a", "choices": ["b", "c"]}\n',
            (),
            "has no column 'answer'; its columns are: question, choices",
        ),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": 2}\n',
            (),
            "line 1: 'answer' is '2', outside of the choices",
        ),
        ('{"prompt": "a", "completion": 3}\n', (), "must both be texts, or both be lists of messages"),
        (
            '{"text": "a"}\n',
            ("--max-length", 500),
            "--max-length must be at most 128, the model's positions, got 500",
        ),
        (
            '{"prompt": "a", "completion": "b"}\n',
            ("--max-new-tokens", 128),
            "--max-new-tokens must be less than the 128",
        ),
        ('{"text": "a"}\n', ("--device", "abacus"), "--device abacus cannot be used"),
        (
            '{"text": "a"}\n',
            ("--dtype", "int8"),
            "--dtype must be auto, float32, bfloat16, float16, got int8",
        ),
        ('{"text": "a"}\n', ("--template", "yes"), "--template must be auto, on, off, got yes"),
        (
            '{"text": "a"}\n',
            ("--base", "."),
            "is no adapter: there is no adapter_config.json in it; leave out --base",
        ),
        ('{"text": "a"}\n', ("--run", "."), "holds no run"),
        ('{"messages": [{"role": "user", "content": "a"}]}\n', (), "has no message of role 'assistant'"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(
    content: str, options: tuple[object, ...], says: str, chat_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    assert says in wrong(chat_model, path, *options)


def test_names_that_nobody_knows(chat_model: Path, tmp_path: Path) -> None:
    assert "mmlu-sten: no such file, nor a data set of `fedpft datasets`, nor one of: general-nlp" in wrong(
        chat_model, "mmlu-sten"
    )
    assert "sst2 is for classifiers, but this model is a language model" in wrong(chat_model, "sst2")
    assert "is neither in" in wrong(chat_model, "tfns", "--data-root", tmp_path)
    path = questions(tmp_path / "q.jsonl")
    assert "no such folder" in wrong(tmp_path / "nothing", path)
    assert "this is a file; name the model's folder" in wrong(path, path)


def test_messages_need_a_template(chat_model: Path, tmp_path: Path) -> None:
    bare = write_chat_model(tmp_path / "bare", template=None)
    said = [message("user", "hi"), message("assistant", "the cat")]
    path = write_jsonl(tmp_path / "m.jsonl", [{"messages": said}])
    assert "its tokenizer has no chat template to render messages by" in wrong(bare, path)
    choices = questions(tmp_path / "q.jsonl")
    assert "no chat template; leave --template at auto" in wrong(bare, choices, "--template", "on")
    assert "holds messages, which only a template makes a text of" in wrong(
        chat_model, path, "--template", "off"
    )


def test_an_adapter_without_its_base(adapter: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "q.jsonl")
    said = wrong(adapter, path)
    assert (
        "its foundation model, which it names as '/gone/model', is not there; say where it is with --base"
        in said
    )
    assert "no such folder" in wrong(adapter, path, "--base", tmp_path / "nothing")
    other = write_chat_model(tmp_path / "other", hidden=64)
    assert "does not go on" in wrong(adapter, path, "--base", other)


def test_models_that_cannot_be_scored(chat_model: Path, tmp_path: Path) -> None:
    path = questions(tmp_path / "q.jsonl")
    fields = json.loads((chat_model / "config.json").read_text())
    headless = tmp_path / "headless"
    headless.mkdir()
    for file in chat_model.iterdir():
        (headless / file.name).write_bytes(file.read_bytes())
    (headless / "config.json").write_text(json.dumps(fields | {"architectures": ["LlamaModel"]}))
    assert "config.json names no class that is scored (architectures: LlamaModel)" in wrong(headless, path)
    (headless / "config.json").write_text(json.dumps(fields | {"num_hidden_layers": 5}))
    assert "its file lacks model.layers.4." in wrong(headless, path)
    (headless / "model.safetensors").unlink()
    torch.save({}, headless / "pytorch_model.bin")
    assert "cannot be loaded" in wrong(headless, path)


def test_labels_that_the_classifier_does_not_know(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    said = wrong(model, write_table(tmp_path / "t.csv", 4))
    assert "has label" in said and "the run knows: LABEL_0, LABEL_1" in said
    assert "asks a language model, but this model does text-classification" in wrong(model, "tfns")
    assert "has no column 'label'" in wrong(model, write_table(tmp_path / "u.csv", 4, labelled=False))


def test_a_file_of_a_groups_name_is_that_file(
    chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("finance").mkdir()
    assert "finance is a folder; a language model is scored on a file" in wrong(chat_model, "finance")
