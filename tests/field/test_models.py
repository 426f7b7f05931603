"""What people gave as a foundation model: nothing of it becomes random, or means something else, silently."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertForMaskedLM, BertModel, CLIPModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from common.config.choices import ModelDtype
from common.errors import ModelError
from common.model.adapter import heads_of
from common.model.families import FAMILIES
from common.records import TaskKind
from common.task_forms import FORMS
from coordinator.modelling.foundation import Foundation, load_foundation
from tests.conftest import LABELS, VOCABULARY, write_tokenizer
from tests.families import small_config, small_model, write_family

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
FAMILIES_TASKS = [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]
Weights = dict[str, Tensor]


def load(folder: Path, kind: TaskKind = TEXT, labels: tuple[str, ...] = LABELS, seed: int = 1) -> Foundation:
    return load_foundation(str(folder), kind, labels if FORMS[kind].named else (), seed)


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """The same model with its weights changed, as a tool might have done it."""
    file = folder / "model.safetensors"
    weights = change(load_file(file))
    save_file({n: t.clone().contiguous() for n, t in weights.items()}, file, {"format": "pt"})
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    fields = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in fields.items() if value is not ...}))


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_family(tmp_path / "model", "bert", TEXT)


# --- weights that do not fit ---


@pytest.mark.parametrize(("model_type", "kind"), FAMILIES_TASKS)
def test_a_model_that_fits_is_loaded_whole(model_type: str, kind: TaskKind, tmp_path: Path) -> None:
    folder = write_family(tmp_path, model_type, kind)
    loaded = load(folder, kind)
    own = loaded.model.state_dict()
    for name, tensor in load_file(folder / "model.safetensors").items():
        if not name.startswith(heads_of(FAMILIES[model_type], kind) or ("no head",)) and name in own:
            assert torch.equal(own[name], tensor), name
    assert loaded.new_modules == ()


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.bert_inside."])
@pytest.mark.parametrize(("model_type", "kind"), FAMILIES_TASKS)
def test_a_wrappers_prefix_before_every_name(
    model_type: str, kind: TaskKind, prefix: str, tmp_path: Path
) -> None:
    folder = write_family(tmp_path, model_type, kind)
    rewrite(folder, lambda weights: {prefix + name: t for name, t in weights.items()})
    with pytest.raises(ModelError, match="would be random") as caught:
        load(folder, kind)
    assert f'"{prefix}"' in str(caught.value)


def test_a_layer_is_missing_in_the_file(bert: Path) -> None:
    rewrite(bert, lambda weights: {n: t for n, t in weights.items() if ".layer.2." not in n})
    with pytest.raises(ModelError, match=r"lack bert\.encoder\.layer\.2\..*layer 2: .* not complete"):
        load(bert)


def test_one_bias_is_missing_in_the_file(bert: Path) -> None:
    rewrite(bert, lambda weights: {n: t for n, t in weights.items() if n != "bert.pooler.dense.bias"})
    assert load(bert).new_modules == ("bert.pooler",)
    rewrite(bert, lambda weights: {n: t for n, t in weights.items() if n != "bert.embeddings.LayerNorm.bias"})
    with pytest.raises(ModelError, match=r"lack bert\.embeddings\.LayerNorm\.bias"):
        load(bert)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("intermediate_size", 48, "[64] in the file, [48] by config.json"),
        ("vocab_size", 20, "word_embeddings"),
        ("max_position_embeddings", 32, "position_embeddings"),
        ("hidden_size", 16, "do not fit"),
        ("num_hidden_layers", 6, "config.json says 6 layers, weights are missing in layer 4, 5"),
        ("num_hidden_layers", 2, "config.json says 2 layers, the file has 4"),
        ("model_type", "roberta", "would be random"),
    ],
)
def test_an_edited_config(bert: Path, key: str, value: object, told: str) -> None:
    edit_json(bert / "config.json", **{key: value})
    with pytest.raises(ModelError) as caught:
        load(bert)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_without_the_biases_that_the_file_has(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    small_model("llama", CAUSAL, vocabulary=len(VOCABULARY), attention_bias=True).save_pretrained(folder)
    write_tokenizer(folder, eos_token="[SEP]")
    load(folder, CAUSAL)
    edit_json(folder / "config.json", attention_bias=False)
    with pytest.raises(ModelError, match=r"q_proj\.bias|k_proj\.bias.*would be left out"):
        load(folder, CAUSAL)


def test_the_weights_of_a_model_that_peft_has_wrapped(bert: Path) -> None:
    def wrapped(weights: Weights) -> Weights:
        found = {}
        for name, tensor in weights.items():
            if name.endswith("query.weight"):
                stem = f"base_model.model.{name.removesuffix('.weight')}"
                found[f"{stem}.base_layer.weight"] = tensor
                found[f"{stem}.lora_A.default.weight"] = tensor[:2]
            else:
                found[f"base_model.model.{name}"] = tensor
        return found

    rewrite(bert, wrapped)
    with pytest.raises(ModelError, match="peft has wrapped; merge the adapter first"):
        load(bert)


def test_lora_beside_plain_weights(bert: Path) -> None:
    def beside(weights: Weights) -> Weights:
        name = "bert.encoder.layer.0.attention.self.query"
        return weights | {f"{name}.lora_A.default.weight": weights[f"{name}.weight"][:2]}

    rewrite(bert, beside)
    with pytest.raises(ModelError, match=r"would be left out; .*merge the adapter first"):
        load(bert)


def test_a_language_models_head_is_left_out_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    BertForMaskedLM(small_config("bert", len(VOCABULARY))).save_pretrained(folder)
    write_tokenizer(folder)
    caplog.set_level(logging.INFO)
    loaded = load(folder)
    assert loaded.new_modules == ("bert.pooler",)
    assert "new, drawn from the run's seed: bert.pooler.dense, classifier" in caplog.text
    assert "does not read cls.predictions" in caplog.text


def test_an_encoder_alone_gets_a_new_head_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "model"
    BertModel(small_config("bert", len(VOCABULARY))).save_pretrained(folder)
    write_tokenizer(folder)
    caplog.set_level(logging.INFO)
    assert load(folder).new_modules == ()
    assert "new, drawn from the run's seed: classifier" in caplog.text


@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_a_language_model_without_its_head(model_type: str, tmp_path: Path) -> None:
    model = small_model(model_type, CAUSAL, vocabulary=len(VOCABULARY), tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path, eos_token="[SEP]")
    assert load(tmp_path, CAUSAL).new_modules == ()
    rewrite(tmp_path, lambda weights: {n: t for n, t in weights.items() if n != "lm_head.weight"})
    assert load(tmp_path, CAUSAL).new_modules == ("lm_head",)
    # What it classifies by is another module.
    assert load(tmp_path, TEXT).new_modules == ()


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    folder = write_family(tmp_path, "gpt2", CAUSAL)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    assert load(folder, CAUSAL).new_modules == ()


def test_of_a_model_of_two_towers_the_one_for_images_is_taken(tmp_path: Path) -> None:
    config = small_config("clip")
    published = CLIPModel(config).eval()
    published.save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert any(name.startswith("text_model.encoder.layers.0.") for name in published.state_dict())
    loaded = load(tmp_path, IMAGES)
    own = loaded.model.state_dict()
    assert {name.partition(".")[0] for name in own} == {"vision_model", "classifier"}
    towers = published.state_dict()
    assert all(torch.equal(own[name], towers[name]) for name in own if not name.startswith("classifier"))
    assert loaded.new_modules == ()


def test_what_computes_in_float32_alone_is_held_so(tmp_path: Path) -> None:
    small_model("beit", IMAGES).bfloat16().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    loaded = load(tmp_path, IMAGES)
    assert loaded.dtype is torch.bfloat16
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
    with pytest.raises(ModelError, match=r'a beit model .* alone; set model\.dtype = "float32"'):
        load_foundation(str(tmp_path), IMAGES, LABELS, 1, ModelDtype.BFLOAT16)


# --- the published head ---


def write_classifier(folder: Path, model_type: str, names: list[str], kind: TaskKind = TEXT) -> Path:
    """A model whose head knows classes by these names."""
    write_family(folder, model_type, kind)
    numbered = dict(enumerate(names))
    model = small_model(
        model_type,
        kind,
        **({} if kind is IMAGES else {"vocabulary": len(VOCABULARY)}),
        id2label=numbered,
        label2id={name: i for i, name in numbered.items()},
    )
    model.save_pretrained(folder)
    return folder


def outputs(weights: Weights, model_type: str, kind: TaskKind = TEXT) -> list[Tensor]:
    """Of the map that gives the scores: weight, and bias where there is one."""
    stem = heads_of(FAMILIES[model_type], kind)[-1]
    if f"{stem}.out_proj.weight" in weights:
        stem += ".out_proj"
    return [weights[name] for name in (f"{stem}.weight", f"{stem}.bias") if name in weights]


TAGS_OF_WORDS = TaskKind.TOKEN_CLASSIFICATION
CLASSIFIERS = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind in family.tasks
    if kind in (TEXT, IMAGES, TAGS_OF_WORDS)
]


@pytest.mark.parametrize(("model_type", "kind"), CLASSIFIERS)
def test_the_same_classes_in_another_order(model_type: str, kind: TaskKind, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, model_type, ["b", "c", "a"], kind)
    loaded = load(folder, kind, ("a", "b", "c"))
    published = outputs(load_file(folder / "model.safetensors"), model_type, kind)
    for own, theirs in zip(
        outputs(dict(loaded.model.state_dict()), model_type, kind), published, strict=True
    ):
        assert torch.equal(own, theirs[[2, 0, 1]])
    assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert loaded.model.config.label2id == {"a": 0, "b": 1, "c": 2}


@pytest.mark.parametrize(("model_type", "kind"), CLASSIFIERS)
def test_some_of_the_published_classes(model_type: str, kind: TaskKind, tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, model_type, ["negative", "neutral", "positive"], kind)
    loaded = load(folder, kind, ("Positive", " negative"))
    published = outputs(load_file(folder / "model.safetensors"), model_type, kind)
    for own, theirs in zip(
        outputs(dict(loaded.model.state_dict()), model_type, kind), published, strict=True
    ):
        assert torch.equal(own, theirs[[2, 0]])
    assert loaded.model.config.num_labels == 2


@pytest.mark.parametrize("names", [["LABEL_0", "LABEL_1"], ["x", "y"], ["animals", "x"], ["a", "b", "c"]])
@pytest.mark.parametrize(("model_type", "kind"), CLASSIFIERS)
def test_a_head_for_other_classes_starts_anew(
    model_type: str, kind: TaskKind, names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_classifier(tmp_path, model_type, names, kind)
    caplog.set_level(logging.INFO)
    first, again, other = (dict(load(folder, kind, seed=s).model.state_dict()) for s in (1, 1, 2))
    published = outputs(load_file(folder / "model.safetensors"), model_type, kind)
    weight, same, different = (outputs(weights, model_type, kind)[0] for weights in (first, again, other))
    assert weight.shape[0] == 2 and not torch.equal(weight, published[0])
    assert torch.equal(weight, same) and not torch.equal(weight, different)
    told = f"its published head is for {', '.join(names)}" if len(names) == 2 else "drawn from the run's seed"
    assert told in caplog.text


def test_names_that_differ_by_case_alone_are_told_apart(tmp_path: Path) -> None:
    folder = write_classifier(tmp_path, "bert", ["us", "US", "them"])
    published = outputs(load_file(folder / "model.safetensors"), "bert")[0]
    own = outputs(dict(load(folder, labels=("US", "us")).model.state_dict()), "bert")[0]
    assert torch.equal(own, published[[1, 0]])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "gpt2", "llama"])
def test_a_published_head_of_numbers_is_kept_and_of_classes_is_not(model_type: str, tmp_path: Path) -> None:
    """Both call a first output without a name LABEL_0."""
    numbers = TaskKind.TEXT_REGRESSION
    for names, kept in ((["LABEL_0"], True), (["LABEL_0", "LABEL_1"], False)):
        folder = write_classifier(tmp_path / str(len(names)), model_type, names, numbers)
        loaded = load(folder, numbers)
        assert loaded.model.config.num_labels == 1
        own = outputs(dict(loaded.model.state_dict()), model_type)[0]
        published = outputs(load_file(folder / "model.safetensors"), model_type)[0]
        assert own.shape[0] == 1 and torch.equal(own, published[:1]) == kept


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_what_the_published_head_was_for_does_not_stay(bert: Path, problem: str) -> None:
    edit_json(bert / "config.json", problem_type=problem, return_dict=False, output_hidden_states=True)
    config = load(bert).model.config
    assert config.problem_type is None
    assert config.return_dict and not config.output_hidden_states
