"""What every worker would have stumbled over is told at the start, before anyone waits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizer
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from common.config.file import parse_config
from common.config.run import RunConfig
from common.errors import ConfigError, ModelError
from common.model.families import FAMILIES
from common.model.layers import positions_of
from common.records import TaskKind
from coordinator.modelling import checks
from coordinator.modelling.checks import check_run, check_sub_model
from coordinator.modelling.foundation import load_foundation
from coordinator.modelling.models import Models
from coordinator.storage.store import Store
from tests.conftest import LABELS, VOCABULARY, labels_of, write_pictures, write_table
from tests.families import small_model, write_family
from tests.field.test_models import rewrite

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
FAMILIES_TASKS = [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]


def run_of(folder: Path, model: Path, kind: TaskKind = TEXT, **settings: Any) -> RunConfig:
    """A run without data, unless `settings` name some, of short texts."""
    given: dict[str, Any] = {
        "run.directory": folder / "run",
        "model.path": str(model),
        "task.kind": str(kind),
        "task.labels": labels_of(kind),
        "task.max_length": 16,
        "alignment.steps": 0,
    }
    return parse_config(given | {key.replace("__", "."): value for key, value in settings.items()}, "a test")


def start(config: RunConfig) -> None:
    """As far as a run goes before workers get anything."""
    store = Store(config.run.directory)
    try:
        models = Models(config, store)
        models.publish(*models.cut(lambda step, steps: None))
    finally:
        store.close()


def refused(config: RunConfig, kind: type[Exception] = ModelError) -> str:
    with pytest.raises(kind) as caught:
        start(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "kind", "pairs"),
    [*((name, kind, False) for name, kind in FAMILIES_TASKS), ("bert", TEXT, True)],
)
def test_what_is_well_passes(model_type: str, kind: TaskKind, pairs: bool, tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", model_type, kind)
    start(run_of(tmp_path, model, kind, task__pairs=pairs))


@pytest.mark.parametrize(
    ("model_type", "positions"),
    [("bert", 66), ("distilbert", 66), ("gpt2", 66), ("roberta", 65), ("llama", None)],
)
def test_texts_longer_than_the_model_has_positions(
    model_type: str, positions: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_family(tmp_path / "model", model_type, TEXT)
    if positions is None:
        start(run_of(tmp_path, model, task__max_length=100))
        assert "was made for texts of 66 tokens" in caplog.text
        return
    assert positions_of(load_foundation(str(model), TEXT, LABELS, 1).model) == positions
    told = refused(run_of(tmp_path, model, task__max_length=positions + 1), ConfigError)
    assert f"task.max_length must be <= {positions} " in told and f"got {positions + 1}" in told
    # As long as allowed, it reads the longest text that there is.
    long = tmp_path / "long.csv"
    long.write_text("text\n" + " ".join(["cat"] * 200) + "\n")
    start(run_of(tmp_path, model, task__max_length=positions, data__public__path=long))


def test_a_tokenizer_with_more_tokens_than_the_embedding(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([AddedToken("hepatitis")])
    tokenizer.save_pretrained(model)
    told = refused(run_of(tmp_path, model))
    assert "('hepatitis'), its embedding has 38 rows; resize it" in told


class OnlyPython(PreTrainedTokenizer):  # type: ignore[misc]
    """As some languages' are: what splits words is code."""

    vocab_files_names: dict[str, str] = {}  # noqa: RUF012

    @property
    def vocab_size(self) -> int:
        return len(VOCABULARY)

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(VOCABULARY)}

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, 1)

    def _convert_id_to_token(self, index: int) -> str:
        return VOCABULARY[index]

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        return ()


def test_a_tokenizer_that_exists_in_python_only(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    config = run_of(tmp_path, model)
    loaded = load_foundation(str(model), TEXT, LABELS, 1)
    python = OnlyPython(pad_token="[PAD]", unk_token="[UNK]")
    with pytest.raises(ModelError, match=r"its tokenizer \(OnlyPython\) exists in Python only"):
        check_run(checks.Foundation(loaded.model, python, (), loaded.dtype), config, ())


def test_a_tokenizer_that_would_read_otherwise_at_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    there = write_family(tmp_path / "there", "bert", TEXT)
    fields = json.loads((there / "tokenizer.json").read_text())
    (there / "tokenizer.json").write_text(json.dumps(fields | {"post_processor": None}))
    other = load_foundation(str(there), TEXT, LABELS, 1).processor
    monkeypatch.setattr(checks, "write_processor", lambda *arguments: other)
    assert "would read differently at workers" in refused(run_of(tmp_path, model))


@pytest.mark.parametrize("model_type", ["vit", "deit", "dinov2"])
def test_images_of_another_size_than_the_model(model_type: str, tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", model_type, IMAGES)
    ViTImageProcessorPil(size={"height": 50, "width": 50}).save_pretrained(model)
    config = run_of(tmp_path, model, IMAGES, data__test__path=write_pictures(tmp_path / "t.parquet", 8))
    if model_type == "dinov2":
        # It takes any size.
        start(config)
        return
    assert "cannot read this data: Input image size (50*50) doesn't match model (32*32)" in refused(config)


def test_a_model_of_grey_images(tmp_path: Path) -> None:
    model = tmp_path / "model"
    small_model("vit", IMAGES, num_channels=1).save_pretrained(model)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(model)
    assert "cannot read this data: " in refused(run_of(tmp_path, model, IMAGES))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.3.output.dense.bias"]
)
def test_weights_that_are_no_numbers(name: str, value: float, tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)

    def spoil(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # One value: the rows that the first texts read may be well.
        weights[name].view(-1)[-1] = value
        return weights

    rewrite(model, spoil)
    assert f"{name} holds values that are no numbers" in refused(run_of(tmp_path, model))


def test_weights_so_large_that_the_scores_are_no_numbers(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    rewrite(
        model,
        lambda weights: {n: t * 1e30 if "pooler" in n or "LayerNorm" in n else t for n, t in weights.items()},
    )
    assert "scores that are no numbers" in refused(run_of(tmp_path, model))


@pytest.mark.parametrize("data", ["public", "test"])
def test_data_that_the_model_cannot_read(data: str, tmp_path: Path) -> None:
    """The owner's own rows are tried, not only what is made up."""
    model = write_family(tmp_path / "model", "vit", IMAGES)
    table = write_pictures(tmp_path / "images.parquet", 8)
    ViTImageProcessorPil(do_resize=False).save_pretrained(model)
    assert "cannot read this data" in refused(
        run_of(tmp_path, model, IMAGES, **{f"data__{data}__path": table})
    )


def test_more_classes_than_a_message_holds(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    labels = [f"diagnosis number {i}" for i in range(20_000)]
    # They go to workers as a file.
    start(run_of(tmp_path, model, task__labels=labels))
    more = [f"{i}" for i in range(2**16 + 1)]
    told = refused(run_of(tmp_path, model, task__labels=more))
    assert "no worker would take it: " in told and "out of bounds" in told


def test_a_class_whose_name_no_worker_would_take(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    told = refused(run_of(tmp_path, model, task__labels=["a", "b" * 1001]))
    assert "no worker would take it: " in told and "out of bounds" in told


def test_a_configuration_that_does_not_go_over_the_wire(tmp_path: Path) -> None:
    """A key that changes what the model computes, and that workers leave out."""
    model = write_family(tmp_path / "model", "bert", TEXT)
    config = run_of(tmp_path, model)
    loaded = load_foundation(str(model), TEXT, LABELS, 1)
    batch = check_run(loaded, config, ())
    check_sub_model(loaded.model, config, batch)
    for layer in loaded.model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.Identity()
    with pytest.raises(ModelError, match="would be another model at workers"):
        check_sub_model(loaded.model, config, batch)


def test_an_alignment_that_diverged(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    config = run_of(tmp_path, model)
    store = Store(config.run.directory)
    models = Models(config, store)
    plan, sub_fm = models.cut(lambda step, steps: None)
    with torch.no_grad():
        sub_fm.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"its sub-FM: bert\.encoder\.layer\.1\.output\.dense\.weight holds"):
        models.publish(plan, sub_fm)
    store.close()


def test_the_check_leaves_the_models_as_they_are(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "bert", TEXT)
    config = run_of(tmp_path, model, data__test__path=write_table(tmp_path / "test.csv", 8))
    loaded = load_foundation(str(model), TEXT, LABELS, 1)
    before = {n: t.clone() for n, t in loaded.model.state_dict().items()}
    state = torch.random.get_rng_state()
    check_run(loaded, config, ())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[n], t) for n, t in loaded.model.state_dict().items())
    assert not loaded.model.training
