"""Broken model folders: each is told in one line that says what is wrong, where, and what to do."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.errors import ModelError
from coordinator.modelling.checkpoint import CONVERT
from coordinator.modelling.checks import check_run
from tests.conftest import LABELS, write_table
from tests.families import write_family
from tests.field.test_models import IMAGES, TEXT, edit_json, load


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_family(tmp_path / "model", "bert", TEXT)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 90868376\n"


def cut_short(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


def shard(folder: Path) -> None:
    """As large models come: several files and an index."""
    load(folder).model.save_pretrained(folder / "sharded", max_shard_size="60KB")
    (folder / "model.safetensors").unlink()
    for file in (folder / "sharded").glob("model*"):
        file.rename(folder / file.name)


def lose_a_shard(folder: Path) -> None:
    shard(folder)
    sorted(folder.glob("model-0000*"))[1].unlink()


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "empty config": (lambda f: (f / "config.json").write_text(""), "config.json is not valid JSON"),
    "config is a list": (
        lambda f: (f / "config.json").write_text("[1]"),
        "must hold a JSON object, got list",
    ),
    "config in latin-1": (
        lambda f: (f / "config.json").write_bytes('{"model_type": "bért"}'.encode("latin-1")),
        "config.json is not UTF-8 (at byte 17)",
    ),
    "config without type": (lambda f: (f / "config.json").write_text("{}"), "does not name its model_type"),
    "config of words": (
        lambda f: edit_json(f / "config.json", hidden_size="many"),
        "config.json cannot be used",
    ),
    "config with an odd activation": (lambda f: edit_json(f / "config.json", hidden_act="gelux"), "gelux"),
    "heads that do not divide": (lambda f: edit_json(f / "config.json", num_attention_heads=5), "multiple"),
    "pointer for config": (lambda f: (f / "config.json").write_bytes(POINTER), "config.json is a Git LFS"),
    "pointer for weights": (
        lambda f: (f / "model.safetensors").write_bytes(POINTER),
        "model.safetensors is a Git LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "pointer for tokenizer": (
        lambda f: (f / "tokenizer.json").write_bytes(POINTER),
        "tokenizer.json is a Git",
    ),
    "no weights": (
        lambda f: (f / "model.safetensors").unlink(),
        "no weights: there must be model.safetensors",
    ),
    "empty weights": (
        lambda f: (f / "model.safetensors").write_bytes(b""),
        "is no safetensors file, or not all",
    ),
    "half a header": (
        lambda f: cut_short(f / "model.safetensors", 0.02),
        "is no safetensors file, or not all",
    ),
    "half a file": (lambda f: cut_short(f / "model.safetensors", 0.7), "bytes: download it again"),
    "a web page": (
        lambda f: (f / "model.safetensors").write_bytes(b"<!DOCTYPE html><html>Sign in</html>"),
        "is no safetensors file",
    ),
    "a lost shard": (lose_a_shard, "which model.safetensors.index.json lists; the download is not complete"),
    "an odd index": (
        lambda f: (shard(f), (f / "model.safetensors.index.json").write_text("[]")),
        "must hold a JSON object",
    ),
    "pickled weights": (
        pickle_weights,
        "in pytorch_model.bin only, a format that can hold code; convert them",
    ),
    "TensorFlow's weights": (
        lambda f: (f / "model.safetensors").rename(f / "tf_model.h5"),
        "tf_model.h5 is in another format",
    ),
    "quantised": (
        lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "bitsandbytes"}),
        "quantised",
    ),
    "no tokenizer at all": (
        lambda f: (f / "tokenizer.json").unlink(),
        "tokenizer cannot be loaded",
    ),
    "no tokenizer": (
        lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")],
        "its tokenizer has no words",
    ),
    "a broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer cannot be loaded"),
    "tokenizer is a list": (lambda f: (f / "tokenizer.json").write_text("[]"), "tokenizer cannot be loaded"),
    "tokenizer config is a list": (
        lambda f: (f / "tokenizer_config.json").write_text("[]"),
        "tokenizer cannot be loaded",
    ),
    "an adapter": (
        lambda f: (f / "config.json").rename(f / "adapter_config.json"),
        "this is a PEFT adapter, not a model",
    ),
    "another family": (lambda f: edit_json(f / "config.json", model_type="t5"), "'t5' is not supported"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_told_in_one_line(bert: Path, case: str) -> None:
    spoil, told = BROKEN[case]
    spoil(bert)
    with pytest.raises(ModelError) as caught:
        load(bert)
    assert told in str(caught.value)
    assert str(bert) in str(caught.value) or case == "another family"
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("case", BROKEN)
def test_a_command_ends_with_that_line_and_2(bert: Path, case: str, tmp_path: Path) -> None:
    BROKEN[case][0](bert)
    corpus = write_table(tmp_path / "corpus.csv", 8, labelled=False)
    command = ["build", "--model", str(bert), "--corpus", str(corpus), "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--max-length", "16", "--steps", "1"])
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    lines = result.output.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert BROKEN[case][1] in lines[0]


BROKEN_IMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no processor": (lambda f: f.unlink(), "the directory holds no preprocessor_config.json"),
    "an empty one": (lambda f: f.write_text(""), "image processor cannot be loaded"),
    "a list": (lambda f: f.write_text("[]"), "image processor cannot be loaded"),
    "latin-1": (lambda f: f.write_bytes(b'{"a": "\xe9"}'), "image processor cannot be loaded"),
    "a pointer": (lambda f: f.write_bytes(POINTER), "preprocessor_config.json is a Git LFS pointer"),
    "of code": (
        lambda f: f.write_text('{"auto_map": {"AutoImageProcessor": "a.B"}, "image_processor_type": "B"}'),
        "image processor cannot be loaded",
    ),
    "an odd size": (
        lambda f: edit_json(f, size={"height": "tall"}),
        "image processor cannot be loaded: size",
    ),
    "an odd mean": (lambda f: edit_json(f, image_mean=[0.5]), "preprocessor_config.json"),
}


@pytest.mark.parametrize("case", BROKEN_IMAGES)
def test_a_broken_image_processor_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", "vit", IMAGES)
    BROKEN_IMAGES[case][0](model / "preprocessor_config.json")
    settings = {"run.directory": tmp_path / "run", "task.kind": str(IMAGES), "alignment.steps": 0}
    config = parse_config({"model.path": str(model), "task.labels": LABELS, **settings}, "a test")
    with pytest.raises(ModelError) as caught:
        check_run(load(model, IMAGES), config, ())
    assert BROKEN_IMAGES[case][1] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_is_given_for_the_model(bert: Path) -> None:
    with pytest.raises(ModelError, match=r"this is a file; model\.path must name the model's directory"):
        load(bert / "model.safetensors")


def test_the_line_that_converts_pickled_weights_does(bert: Path) -> None:
    before = load_file(bert / "model.safetensors")
    pickle_weights(bert)
    command = CONVERT.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(command, shell=True, cwd=bert, check=True)
    after = load_file(bert / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    load(bert)


def test_shards_are_loaded(bert: Path) -> None:
    before = dict(load(bert).model.state_dict())
    shard(bert)
    assert len(list(bert.glob("model-0000*"))) > 2
    after = load(bert).model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before if not n.startswith("classifier"))
