"""Whatever a user gets wrong: one clear line, exit code 2, no traceback, and promptly."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import LABELS, write_table
from tests.integration.federation import Federation, federation
from tests.services import ROOT, call


def run(module: str, *arguments: str, cold: bool = False) -> str:
    """Run the module to its end; it must fail with 2 and end with one error line, which is returned."""
    code, printed = (call_cold if cold else call)(module, *arguments)
    assert code == 2, printed
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


def call_cold(module: str, *arguments: str) -> tuple[int, str]:
    """`call` by a new interpreter; its standard error only."""
    result = subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    return result.returncode, result.stderr


def config(folder: Path, model: Path, **settings: object) -> str:
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return str(Federation(folder, model, dotted).write_config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model__path": "/no/such/model"}, "model /no/such/model: no such directory"),
        ({"data__test__path": "gone.csv"}, r"gone\.csv: no such data file"),
        ({"adapter__rank": 0}, r"adapter\.rank must be >= 1, got 0"),
        ({"sub_fm__drop_ratio": 1.0}, r"sub_fm\.drop_ratio must be < 1\.0, got 1\.0"),
        ({"data__test__label_column": "klass"}, "no column 'klass'; its columns are: text, label"),
        ({"task__labels": ("animals", "sports")}, "label 'weather'; the run knows: animals, sports"),
        ({"server__listen": "0.0.0.0:0"}, "--insecure"),
        ({"sub_fm__keep_first": 4}, "keep all 4 layers whole"),
        ({"server__listen": "here"}, "'here' is not HOST:PORT"),
    ],
)
def test_the_coordinator_says_what_is_wrong_with_its_configuration(
    tmp_path: Path, model_folder: Path, settings: dict[str, object], message: str
) -> None:
    assert re.search(message, run("coordinator", "--config", config(tmp_path, model_folder, **settings)))


def test_an_unknown_key_is_named_with_the_known_ones(tmp_path: Path, model_folder: Path) -> None:
    path = Path(config(tmp_path, model_folder))
    path.write_text(path.read_text().replace("[adapter]", "[adapter]\nrnak = 8"))
    line = run("coordinator", "--config", str(path), cold=True)
    assert "unknown key adapter.rnak (known there: targets, rank" in line


def test_an_unsupported_family_is_told_the_supported_ones(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    line = run("coordinator", "--config", config(tmp_path, tmp_path))
    assert "model family 'mamba' is not supported; supported are: bert" in line


def test_a_port_in_use_is_named(tmp_path: Path, model_folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        path = config(tmp_path, model_folder, server__listen=address)
        assert f"cannot listen on {address}: Address already in use" in run("coordinator", "--config", path)
        path = config(tmp_path, model_folder, server__metrics=address)
        assert f"cannot serve metrics on {address}" in run("coordinator", "--config", path)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "no such data file"),
        ("", [], "is empty"),
        ("text,label\n", [], "is empty: it has columns but no rows"),
        ("words,label\na,animals\n", [], "no column 'text'; its columns are: words, label"),
        ("text,label\na,animals\na,\n", [], "line 3 has no value in column 'label'"),
        ("text,kind\na,animals\n", [], "no column 'label'; its columns are: text, kind"),
    ],
)
def test_the_worker_says_what_is_wrong_with_its_data(
    tmp_path: Path, content: str | None, options: list[str], message: str
) -> None:
    data = tmp_path / "data.csv"
    if content is not None:
        data.write_text(content)
    assert message in run("worker", "--coordinator", "127.0.0.1:9", "--data", str(data), "--name", "w")


def test_a_worker_gives_up_on_an_unreachable_coordinator_and_says_so(tmp_path: Path) -> None:
    data = str(write_table(tmp_path / "data.csv", 5))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = ["--coordinator", address, "--data", data, "--name", "w", "--join-timeout", "1"]
    line = run("worker", *arguments, cold=True)
    assert f"coordinator {address} gave no usable answer" in line
    assert "--join-timeout" in line


def test_a_label_that_the_run_does_not_know_ends_the_worker_and_not_the_run(
    tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path, model_folder, rounds__workers=1, rounds__minimum=1) as running:
        address = running.start_coordinator()["address"]
        data = tmp_path / "odd.csv"
        data.write_text("text,label\na cat,animals\na star,astronomy\n")
        line = run("worker", "--coordinator", address, "--data", str(data), "--name", "odd")
        assert "line 3 has label 'astronomy'; the run knows: " + ", ".join(LABELS) in line
        assert "astronomy" not in running.log("coordinator")
        running.start_worker(1, address, "--join-timeout", "30")
        running.wait()


def test_a_run_is_not_continued_with_other_settings(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, rounds__workers=1, rounds__minimum=1) as running:
        running.start_worker(1, running.start_coordinator()["address"])
        running.wait()
        changed = config(tmp_path, model_folder, rounds__workers=1, rounds__minimum=1, adapter__rank=4)
        line = run("coordinator", "--config", changed)
        assert "another configuration (adapter.rank)" in line
