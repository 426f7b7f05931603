"""The doctor finds before what the run would find later: in rows, pictures, tokenizers and classes."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import typer
from click.testing import Result
from fedpft.v1 import federation_pb2_grpc
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.doctor import doctor
from common.address import Address
from common.config.file import template
from common.records import TaskKind
from common.transport.rpc import new_server
from coordinator.federation.inbox import Inbox
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import Sessions
from coordinator.storage.store import Store
from tests.conftest import LABELS, write_model, write_pictures, write_table
from tests.contexts import context
from tests.families import write_family

app = typer.Typer()
app.command()(doctor)


def examine(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


def told(done: Result, check: str) -> list[str]:
    """What is told of one check: how it is, its notes, what to do."""
    lines = done.output.splitlines()
    at = next(i for i, line in enumerate(lines) if line[7:].startswith(check) or line[6:].startswith(check))
    more = [line.strip() for line in lines[at + 1 :]]
    ends = next((i for i, line in enumerate(lines[at + 1 :]) if not line.startswith(" ")), len(more))
    return [" ".join(lines[at].split()), *more[:ends]]


# The worker's host, with a coordinator that answers.


@contextlib.asynccontextmanager
async def coordinator(folder: Path, **settings: Any) -> AsyncIterator[tuple[Address, Sessions, Store]]:
    store = Store(folder / "run")
    given = {"task.labels": LABELS} | {key.replace("__", "."): value for key, value in settings.items()}
    run = context(store, given)
    sessions, server_at = Sessions(1.0), new_server(Address("127.0.0.1", 0))
    server, address = server_at
    federation_pb2_grpc.add_FederationServiceServicer_to_server(  # type: ignore[no-untyped-call]
        FederationService(run, sessions, Inbox(store)), server
    )
    await server.start()
    try:
        yield address, sessions, store
    finally:
        await server.stop(0)
        sessions.close()
        run.events.close()
        store.close()


async def examined(address: Address, folder: Path, *options: object) -> Result:
    return await asyncio.to_thread(examine, "--coordinator", address, "--folder", folder, *options)


async def test_the_labels_are_compared_with_the_runs_and_nothing_changes_there(tmp_path: Path) -> None:
    fine, odd = write_table(tmp_path / "fine.csv", 20), tmp_path / "odd.csv"
    odd.write_text("text,label\na cat,Animals\nrain,weather\n")
    async with coordinator(tmp_path) as (address, sessions, store):
        well = await examined(address, tmp_path, "--data", fine)
        ill = await examined(address, tmp_path, "--data", odd)
        assert sessions.present() == [] and store.workers() == {}
    assert well.exit_code == 0, well.output
    assert told(well, "run") == ["ok run text-classification in run run, classes animals, weather"]
    assert told(well, "data for the run") == ["ok data for the run their form and labels are the run's"]
    assert ill.exit_code == 2
    hint = "it differs from 'animals' in blanks or case only"
    assert told(ill, "data for the run") == [
        f"wrong data for the run {odd}: line 2 has label 'Animals'; the run knows: animals, weather; {hint}",
        "to do: correct the labels in the file, or the options that name its columns",
    ]


async def test_data_of_another_form_than_the_runs_are_told(tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "x.parquet", 4)
    async with coordinator(tmp_path, task__pairs=True) as (address, *_):
        texts = await examined(address, tmp_path, "--data", write_table(tmp_path / "x.csv", 4))
        images = await examined(address, tmp_path, "--data", pictures)
    assert "the run is for pairs of texts; name the second column" in told(texts, "data for the run")[0]
    assert "holds images, but the run is for text-classification" in told(images, "data for the run")[0]


async def test_classes_that_the_data_lack_are_told_and_no_fault(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na cat,animals\n")
    async with coordinator(tmp_path) as (address, *_):
        done = await examined(address, tmp_path, "--data", tmp_path / "x.csv")
    assert done.exit_code == 0
    assert told(done, "data for the run")[1:] == ["note: no example of 1 of the run's 2 classes"]


async def test_a_worker_that_the_run_does_not_admit_is_told(tmp_path: Path) -> None:
    async with coordinator(tmp_path, admission__workers=("a",), rounds__workers=1) as (address, *_):
        admitted = await examined(address, tmp_path, "--name", "a")
        stranger = await examined(address, tmp_path, "--name", "b")
    assert admitted.exit_code == 0, admitted.output
    assert "this run does not admit worker 'b'; its owner has to add it" in told(stranger, "run")[0]


# The worker's data, whoever answers.


def test_what_is_left_out_is_told_with_the_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3, 3)).save(tmp_path / "x" / name)
    (tmp_path / "x" / "dog" / "2.dcm").write_bytes(b"DICM")
    done = examine("--coordinator", "127.0.0.1:1", "--folder", tmp_path, "--data", tmp_path / "x")
    assert told(done, "private data") == [
        "ok private data 3 examples: cat 2, dog 1",
        f"note: {tmp_path}/x: 1 file left out, with the ending .dcm: dog/2.dcm",
    ]


def test_a_picture_that_only_training_would_read_to_its_end_is_found(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((99, 99), 90).save(file, "JPEG")
    (tmp_path / "x" / "cat").mkdir(parents=True)
    (tmp_path / "x" / "cat" / "1.jpg").write_bytes(file.getvalue()[: file.tell() // 2])
    done = examine("--coordinator", "127.0.0.1:1", "--folder", tmp_path, "--data", tmp_path / "x")
    assert "1.jpg cannot be decoded: image file is truncated" in told(done, "private data")[0]


def test_a_preset_is_looked_at_too(tmp_path: Path) -> None:
    options = ["--preset", "sst2", "--data-root", tmp_path]
    done = examine("--coordinator", "127.0.0.1:1", "--folder", tmp_path, *options)
    assert "sst2:train is neither in" in told(done, "private data")[0]


# The owner's host.


def configured(folder: Path, model: Path, **settings: object) -> Path:
    values = {
        "run.directory": str(folder / "run"),
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 8,
        "data.public.path": str(write_table(folder / "public.csv", 10, labelled=False)),
        "data.test.path": str(write_table(folder / "test.csv", 10)),
        "server.listen": "127.0.0.1:0",
    }
    path = folder / "run.toml"
    path.write_text(template(values | {key.replace("__", "."): value for key, value in settings.items()}))
    return path


def test_the_owners_data_go_through_the_models_tokenizer(tmp_path: Path) -> None:
    done = examine("--config", configured(tmp_path, write_model(tmp_path / "model")))
    assert done.exit_code == 0, done.output
    line, *notes = told(done, "tokenizer")
    assert line == "ok tokenizer reads public data and test data"
    assert any("texts reach task.max_length = 8, and are cut there" in note for note in notes)


def test_a_tokenizer_that_cannot_be_loaded_is_found(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    (model / "tokenizer.json").write_text("{")
    done = examine("--config", configured(tmp_path, model))
    assert done.exit_code == 2
    line, fix = told(done, "tokenizer")
    assert line.startswith(f"wrong tokenizer model {model}: its tokenizer cannot be loaded")
    assert fix.startswith("to do: complete the model's folder")


def test_a_tokenizer_of_another_language_is_told(tmp_path: Path) -> None:
    (tmp_path / "odd.csv").write_text("text\nquelques mots\net encore\n")
    model = write_model(tmp_path / "model")
    done = examine("--config", configured(tmp_path, model, data__public__path=str(tmp_path / "odd.csv")))
    assert "note: public data: 100 % of the tokens are unknown to the model" in told(done, "tokenizer")


def test_a_label_of_the_test_data_that_the_run_does_not_know_is_found(tmp_path: Path) -> None:
    path = configured(tmp_path, write_model(tmp_path / "model"), task__labels=("animals", "traffic"))
    done = examine("--config", path)
    assert "has label 'weather'; the run knows: animals, traffic" in told(done, "tokenizer")[0]


@pytest.mark.parametrize("form", ["fine", "broken"])
def test_the_owners_pictures_go_through_the_models_processor(tmp_path: Path, form: str) -> None:
    kind = TaskKind.IMAGE_CLASSIFICATION
    model = write_family(tmp_path / "model", "vit", kind)
    if form == "broken":
        (model / "preprocessor_config.json").write_text("{")
    data = {
        "task__kind": str(kind),
        "data__public__path": str(write_pictures(tmp_path / "public.parquet", 3)),
        "data__test__path": str(write_pictures(tmp_path / "test.parquet", 3)),
    }
    done = examine("--config", configured(tmp_path, model, **data))
    (line, *_) = told(done, "image processor")
    assert line.startswith("ok" if form == "fine" else "wrong image processor model"), done.output


def test_the_weights_are_looked_at_as_the_run_does_at_its_start(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    done = examine("--config", configured(tmp_path, model))
    assert told(done, "weights")[0].endswith("M parameters, read alike here and at workers"), done.output
    weights = load_file(model / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, model / "model.safetensors")
    done = examine("--config", configured(tmp_path, model))
    assert done.exit_code == 2
    line, fix = told(done, "weights")
    assert line.startswith(f"wrong weights model {model}: ") and "module." in line
    assert fix.startswith("to do: mend the model's folder")


def test_a_length_that_the_model_has_no_positions_for_is_found(tmp_path: Path) -> None:
    path = configured(tmp_path, write_model(tmp_path / "model"), task__max_length=100_000)
    assert "task.max_length must be <= " in told(examine("--config", path), "weights")[0]


async def test_what_is_kept_aside_is_looked_at_like_the_data(tmp_path: Path) -> None:
    fine, odd = write_table(tmp_path / "fine.csv", 20), tmp_path / "odd.csv"
    odd.write_text("text,label\na cat,Animals\n")
    async with coordinator(tmp_path) as (address, _, _):
        well = await examined(address, tmp_path, "--data", fine, "--validation", fine)
        ill = await examined(address, tmp_path, "--data", fine, "--validation", odd)
        share = await examined(address, tmp_path, "--data", fine, "--validation-share", 0.25)
        small = await examined(address, tmp_path, "--data", fine, "--validation-share", 0.01)
    assert well.exit_code == 0, well.output
    assert told(well, "validation data for the run")[0].endswith("their form and labels are the run's")
    assert ill.exit_code == 2 and "has label 'Animals'" in told(ill, "validation data for the run")[0]
    assert told(share, "validation share") == [
        "ok validation share 5 examples are kept aside, 15 are trained on"
    ]
    assert small.exit_code == 2 and "leaves none aside" in told(small, "validation share")[0]
