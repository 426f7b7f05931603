"""What an export's readers do with it: the card's and the quickstart's lines, in every family and task."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertForMaskedLM
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.data.images import ImageProcessor
from common.model.families import FAMILIES
from common.records import TaskKind
from coordinator.modelling.evaluation import score
from coordinator.owner.export import ExportDtype, export
from coordinator.owner.model_card import model_name
from experiments.simulation import simulate
from tests.conftest import LABELS, VOCABULARY, labels_of, write_data, write_tokenizer
from tests.families import small_config, small_model, write_family
from tests.field.test_models import edit_json, rewrite, write_classifier

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
TASKS = [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]
ROOT = Path(__file__).parents[2]
Scores = tuple[float, float]


class Tuned:
    """A run of one round and two clients that is done, and its export."""

    def __init__(self, folder: Path, model: Path, kind: TaskKind = TEXT, **settings: Any) -> None:
        self.folder, self.model, self.kind = folder, model, kind
        self.test = write_data(folder / "test", kind, 48, 91)
        given: dict[str, Any] = {
            "run.directory": folder / "run",
            "model.path": str(model),
            "task.kind": str(kind),
            "task.labels": labels_of(kind),
            "task.max_length": 16,
            "data.public.path": write_data(folder / "public", kind, 32, 90, labelled=False),
            "data.test.path": self.test,
            "alignment.steps": 2,
            "gradient_gap.batches": 0,
            "rounds.count": 1,
            "rounds.workers": 2,
            "rounds.minimum": 2,
            "adapter.targets": "attention+ffn",
            "compute.threads": 1,
        }
        given |= {key.replace("__", "."): value for key, value in settings.items()}
        columns = Columns(label=None) if kind is CAUSAL else Columns()
        clients = {
            f"client-{n}": read_examples(write_data(folder / f"client-{n}", kind, 40, n), columns, kind)
            for n in (1, 2)
        }
        outcome = simulate(parse_config(given, "a test"), clients)
        self.labels = None if kind is CAUSAL else tuple(given["task.labels"])
        self.reported: Scores = next((e.accuracy, e.loss) for e in outcome.evaluations if e.model == "fm")

    def export(self, merge: bool, dtype: ExportDtype = ExportDtype.AUTO) -> Path:
        out = self.folder / ("merged" if merge else "adapter")
        export(self.folder / "run", out, merge, dtype)
        return out

    def run_lines(self, lines: str, out: Path) -> dict[str, Any]:
        """What the lines leave, run as they stand."""
        pictures = [self.folder / f"{i}.png" for i in range(2)]
        if self.kind is IMAGES:
            examples = read_examples(self.test, Columns(), self.kind)
            assert examples.images is not None
            for path, image in zip(pictures, examples.images, strict=False):
                assert isinstance(image, bytes)
                path.write_bytes(image)
        names: dict[str, Any] = {"FOLDER": str(out), "FM": str(self.model), "PATHS": pictures}
        with torch.no_grad():
            exec(lines, names)
        return names

    def score(self, model: torch.nn.Module, processor: Any) -> Scores:
        """On the test data, two at a time."""
        columns = Columns(label=None) if self.kind is CAUSAL else Columns()
        examples = read_examples(self.test, columns, self.kind)
        if self.kind is IMAGES:
            processor = ImageProcessor(processor)
        data = encode(processor, examples, self.kind, 16, self.labels)
        return score(model, data, self.kind, self.labels, batch_size=2)[:2]


def card_of(out: Path) -> str:
    found = re.search(r"```python\n(.+?)```", (out / "README.md").read_text(), re.DOTALL)
    assert found
    return found[1]


def quickstart(merged: bool, kind: TaskKind, fm: Path, out: Path) -> str:
    """Its lines, with the reader's own paths, and the classes that it names for other tasks."""
    blocks = re.findall(r"```python\n(.+?)```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL)
    lines = next(b for b in blocks if ("PeftModel" in b) != merged and "from_pretrained" in b)
    lines = lines.replace('"path/to/model"', repr(str(fm)))
    lines = lines.replace('"adapter"', repr(str(out))).replace('"merged"', repr(str(out)))
    if kind is IMAGES:
        lines = lines.replace("AutoTokenizer", "AutoImageProcessor")
        lines = lines.replace("AutoModelForSequenceClassification", "AutoModelForImageClassification")
    if kind is CAUSAL:
        lines = lines.replace("AutoModelForSequenceClassification", "AutoModelForCausalLM")
    if kind is TaskKind.TOKEN_CLASSIFICATION:
        lines = lines.replace("AutoModelForSequenceClassification", "AutoModelForTokenClassification")
    return lines


def same(found: Scores, reported: Scores) -> bool:
    """Numbers have no accuracy."""
    right = found[0] == reported[0] or (math.isnan(found[0]) and math.isnan(reported[0]))
    return right and abs(found[1] - reported[1]) < 1e-3


@pytest.fixture(scope="module", params=TASKS, ids=["-".join(task) for task in TASKS])
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    model_type, kind = request.param
    folder = tmp_path_factory.mktemp("run")
    return Tuned(folder, write_family(folder / "vesalius", model_type, kind), kind)


PROBLEMS = {
    TaskKind.TEXT_REGRESSION: "regression",
    TaskKind.TEXT_MULTI_LABEL: "multi_label_classification",
}


def check_answers(tuned: Tuned, found: dict[str, Any]) -> None:
    """The card's lines give what the task is to give, and the model knows its outputs by name."""
    model, inputs = found["model"], found["inputs"]
    if tuned.kind is CAUSAL:
        assert "answers" not in found
        return
    answers = found["answers"]
    assert len(answers) == 2
    if tuned.kind is TaskKind.TEXT_REGRESSION:
        assert model.config.num_labels == 1 and all(isinstance(answer, float) for answer in answers)
        return
    assert model.config.id2label == dict(enumerate(labels_of(tuned.kind)))
    if tuned.kind is TaskKind.TOKEN_CLASSIFICATION:
        assert [len(row) for row in answers] == inputs["attention_mask"].sum(-1).tolist()
    lists = tuned.kind in (TaskKind.TOKEN_CLASSIFICATION, TaskKind.TEXT_MULTI_LABEL)
    assert {name for row in answers for name in (row if lists else [row])} <= set(labels_of(tuned.kind))


@pytest.mark.parametrize("merge", [False, True])
def test_the_cards_and_the_quickstarts_lines_give_the_reported_score(tuned: Tuned, merge: bool) -> None:
    out = tuned.export(merge)
    found = tuned.run_lines(card_of(out), out)
    assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
    assert len(found["logits"]) == 2
    check_answers(tuned, found)
    found = tuned.run_lines(quickstart(merge, tuned.kind, tuned.model, out), out)
    assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
    fields = json.loads((out / "config.json").read_text())
    assert "_name_or_path" not in fields
    assert fields.get("problem_type") == PROBLEMS.get(tuned.kind)
    for file in tuned.model.glob("*token*"):
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert (out / "README.md").read_text().count("# vesalius, fine-tuned by") == 1


# --- modules that the checkpoint did not bring ---


@pytest.mark.parametrize("targets", ["attention", "none"])
def test_an_encoder_from_masked_language_modelling(targets: str, tmp_path: Path) -> None:
    """It has no pooler: the new one is trained, and travels with the adapter."""
    model = tmp_path / "biobert"
    BertForMaskedLM(small_config("bert", len(VOCABULARY))).save_pretrained(model)
    write_tokenizer(model)
    tuned = Tuned(tmp_path, model, adapter__targets=targets)
    merged = tuned.export(merge=True)
    found = tuned.run_lines(card_of(merged), merged)
    assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
    if targets == "none":
        return
    out = tuned.export(merge=False)
    saved = load_file(out / "adapter_model.safetensors")
    assert "base_model.model.bert.pooler.dense.weight" in saved
    assert json.loads((out / "adapter_config.json").read_text())["modules_to_save"] == [
        "classifier",
        "bert.pooler",
    ]
    for seed in (1, 2):
        # Whatever transformers draws for the base.
        torch.manual_seed(seed)
        found = tuned.run_lines(card_of(out), out)
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_language_model_without_its_head(model_type: str, tmp_path: Path) -> None:
    model = tmp_path / "headless"
    small_model(model_type, CAUSAL, vocabulary=len(VOCABULARY), tie_word_embeddings=False).save_pretrained(
        model
    )
    write_tokenizer(model, eos_token="[SEP]")
    rewrite(model, lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"})
    tuned = Tuned(tmp_path, model, CAUSAL)
    for merge in (False, True):
        out = tuned.export(merge)
        torch.manual_seed(5)
        found = tuned.run_lines(card_of(out), out)
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_head_beside_a_configuration_that_ties_it(model_type: str, tmp_path: Path) -> None:
    """transformers keeps the file's head; so do sub-FM, worker and export."""
    model = tmp_path / "untied"
    small_model(model_type, CAUSAL, vocabulary=len(VOCABULARY), tie_word_embeddings=False).save_pretrained(
        model
    )
    write_tokenizer(model, eos_token="[SEP]")
    edit_json(model / "config.json", tie_word_embeddings=True)
    tuned = Tuned(tmp_path, model, CAUSAL)
    for merge in (False, True):
        out = tuned.export(merge)
        found = tuned.run_lines(card_of(out), out)
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
    head = load_file(tmp_path / "merged" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(head, load_file(model / "model.safetensors")["lm_head.weight"])


# --- what the FM's folder says ---


@pytest.mark.parametrize("names", [["x", "y", "z"], ["weather", "animals"], ["x", "y"]])
def test_a_published_head_of_other_classes(names: list[str], tmp_path: Path) -> None:
    model = write_classifier(tmp_path / "published", "bert", names)
    edit_json(model / "config.json", problem_type="regression")
    tuned = Tuned(tmp_path, model)
    for merge in (False, True):
        out = tuned.export(merge)
        assert "problem_type" not in json.loads((out / "config.json").read_text())
        found = tuned.run_lines(card_of(out), out)
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
        assert found["model"].config.id2label == dict(enumerate(LABELS))


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_decoder_without_a_pad_token(model_type: str, side: str, tmp_path: Path) -> None:
    """As published: two texts at a time work all the same, and the side stays the folder's."""
    model = tmp_path / "decoder"
    small_model(model_type, TEXT, vocabulary=len(VOCABULARY)).save_pretrained(model)
    write_tokenizer(model, eos_token="[SEP]", padding_side=side)
    edit_json(model / "config.json", pad_token_id=-1)
    edit_json(model / "tokenizer_config.json", pad_token=None)
    tuned = Tuned(tmp_path, model)
    for merge in (False, True):
        out = tuned.export(merge)
        found = tuned.run_lines(card_of(out), out)
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
        own = AutoTokenizer.from_pretrained(out)
        assert (own.padding_side, own.pad_token) == (side, "[SEP]")
        assert json.loads((out / "config.json").read_text())["pad_token_id"] == own.pad_token_id
        before, after = (json.loads((f / "tokenizer_config.json").read_text()) for f in (model, out))
        assert after == before | {"pad_token": "[SEP]"}


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_in_half_precision(dtype: str, merge: bool, tmp_path: Path) -> None:
    model = tmp_path / "half"
    small_model("bert", TEXT, vocabulary=len(VOCABULARY)).to(getattr(torch, dtype)).save_pretrained(model)
    write_tokenizer(model)
    tuned = Tuned(tmp_path, model)
    out = tuned.export(merge)
    found = tuned.run_lines(card_of(out), out)
    if not merge:
        assert same(tuned.score(found["model"], found["processor"]), tuned.reported)
        kept = {t.dtype for t in load_file(out / "adapter_model.safetensors").values()}
        assert kept == {torch.float32}
        return
    # As the FM is kept; rounding may turn an answer or two.
    weights = load_file(out / "model.safetensors")
    assert {t.dtype for t in weights.values()} == {getattr(torch, dtype)}
    assert json.loads((out / "config.json").read_text())["dtype"] == dtype
    assert found["model"].dtype == getattr(torch, dtype)
    accuracy, loss = tuned.score(found["model"], found["processor"])
    assert abs(accuracy - tuned.reported[0]) < 0.1 and abs(loss - tuned.reported[1]) < 0.1
    out = tuned.export(merge, ExportDtype.FLOAT32)
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}
    found = tuned.run_lines(card_of(out), out)
    assert same(tuned.score(found["model"], found["processor"]), tuned.reported)


def test_the_option_for_the_dtype(tmp_path: Path) -> None:
    tuned = Tuned(tmp_path, write_family(tmp_path / "m", "bert", TEXT))
    for extra, told in ((["--merge"], "model"), ([], "adapter_model")):
        out = tmp_path / told
        command = ["export", str(tmp_path / "run"), "--out", str(out), "--dtype", "float16", *extra]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        assert {t.dtype for t in load_file(out / f"{told}.safetensors").values()} == {torch.float16}
    wrong = CliRunner().invoke(app, ["export", str(tuned.folder / "run"), "--out", "x", "--dtype", "int8"])
    assert wrong.exit_code == 2
    assert "--dtype must be auto, float32, bfloat16, float16, got int8" in wrong.output


def test_an_old_configuration_stays_as_readable_as_it_was(tmp_path: Path) -> None:
    """transformers 4 does not know the keys that 5 writes."""
    model = write_family(tmp_path / "old", "llama", CAUSAL)
    edit_json(model / "config.json", rope_parameters=..., rope_theta=500.0, dtype=..., torch_dtype="float32")
    tuned = Tuned(tmp_path, model, CAUSAL)
    out = tuned.export(merge=True)
    fields = json.loads((out / "config.json").read_text())
    assert fields["rope_theta"] == 500.0 and "rope_parameters" not in fields
    assert fields["torch_dtype"] == "float32" and "dtype" not in fields
    found = tuned.run_lines(card_of(out), out)
    assert same(tuned.score(found["model"], found["processor"]), tuned.reported)


# --- names ---


def readme(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "README.md").write_text(text) and None


@pytest.mark.parametrize(
    ("path", "prepare", "name"),
    [
        ("minilm", None, "minilm"),
        ("minilm/model", None, "minilm"),
        ("minilm/checkpoint-500", None, "minilm"),
        ("hub/models--org--name/snapshots/" + "a" * 40, None, "org/name"),
        ("x/model", readme("---\nlicense: mit\n---\n\n# **Bio** *clinical* BERT #\n"), "Bio *clinical* BERT"),
        ("x/model", readme("# Model Card for acme/base\n"), "acme/base"),
        ("x/model", readme("no heading"), "x"),
        ("models/model", None, "a bert model"),
    ],
)
def test_a_card_is_titled_by_the_models_name(
    path: str, prepare: Callable[[Path], None] | None, name: str, tmp_path: Path
) -> None:
    folder = tmp_path / path
    folder.mkdir(parents=True)
    if prepare:
        prepare(folder)
    assert model_name(str(folder), "bert") == name


def test_a_model_of_the_hub_is_called_by_its_id() -> None:
    assert model_name("org/name", "bert") == "org/name"


@pytest.mark.parametrize("first", [False, True])
def test_adapter_and_merged_model_are_kept_apart(first: bool, tmp_path: Path) -> None:
    """transformers would take the adapter, and the FM from wherever it was."""
    tuned = Tuned(tmp_path, write_family(tmp_path / "m", "bert", TEXT))
    command = ["export", str(tuned.folder / "run"), "--out", str(tmp_path / "out")]
    one, other = ([*command, "--merge"] if merge else command for merge in (first, not first))
    assert CliRunner().invoke(app, one).exit_code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    result = CliRunner().invoke(app, other)
    assert result.exit_code != 0 and "choose another folder" in " ".join(result.output.split())
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert CliRunner().invoke(app, one).exit_code == 0
