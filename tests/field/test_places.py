"""Users without a home directory, models whose path is mistyped, containers' first processes."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from common.config.file import load_config, template
from common.config.model_path import names_directory
from common.errors import ModelError, Stopped
from common.records import TaskKind
from common.runtime.stopping import stoppable
from coordinator.modelling import hub
from coordinator.modelling.foundation import load_foundation
from tests.conftest import LABELS, write_table
from tests.integration.federation import ROOT

# As in a container that runs as a number that /etc/passwd does not know.
NOBODY = """
import os, pwd, sys
def getpwuid(number):
    raise KeyError(f"getpwuid(): uid not found: {number}")
pwd.getpwuid = getpwuid
sys.argv = sys.argv[1:]
import runpy
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
"""


def as_nobody(folder: Path, module: str, *arguments: str, home: str | None = None) -> tuple[int, str]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environment = kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}", "HF_HUB_OFFLINE": "1"}
    environment |= {"HOME": home} if home is not None else {}
    done = subprocess.run(
        [sys.executable, "-c", NOBODY, module, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert not (folder / "~").exists()
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("home", [None, ""], ids=["unset", "empty"])
def test_a_worker_of_a_user_without_a_home(tmp_path: Path, home: str | None) -> None:
    data = str(write_table(tmp_path / "private.csv", 4))
    options = ["--coordinator", "127.0.0.1:9", "--data", data, "--name", "w", "--join-timeout", "0"]
    code, out = as_nobody(tmp_path, "worker", *options, home=home)
    assert code == 2 and "this user has no home directory; name a folder that is kept: --folder" in out
    code, out = as_nobody(tmp_path, "worker", *options, "--folder", str(tmp_path / "w"), home=home)
    assert code == 2 and "nothing listens at 127.0.0.1:9" in out


def test_the_owners_commands_of_a_user_without_a_home(tmp_path: Path, model_folder: Path) -> None:
    corpus = str(write_table(tmp_path / "public.csv", 32, labelled=False))
    built = [
        "--model",
        str(model_folder),
        "--corpus",
        corpus,
        "--out",
        str(tmp_path / "built"),
        "--steps",
        "1",
        "--max-length",
        "64",
    ]
    code, out = as_nobody(tmp_path, "cli", "build", *built)
    assert code == 0, out
    code, out = as_nobody(tmp_path, "cli", "doctor", "--coordinator", "127.0.0.1:9")
    assert code == 2 and "nothing listens" in out


# --- the model's path ---


@pytest.mark.parametrize(
    ("path", "directory"),
    [
        ("bert-base-uncased", False),
        ("google-bert/bert-base-uncased", False),
        ("org_1/model.v2", False),
        ("model", True),
        ("models/bert", True),
        ("modle/", True),
        ("./modle", True),
        ("../modle", True),
        ("~/model", True),
        ("/data/model", True),
        ("models/brt", True),
        ("a/b/c", True),
        ("my model", True),
        ("org/my model", True),
        ("C:\\models\\bert", True),
        ("org--model", True),
        ("", True),
        ("https://hub.example/org/model", True),
        ("modèle", True),
        ("model.", True),
        ("a" * 97, True),
    ],
)
def test_what_can_only_be_a_directory_is_no_id_of_the_hub(tmp_path: Path, path: str, directory: bool) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "models" / "bert").mkdir(parents=True)
    assert names_directory(path, tmp_path) is directory


def test_a_mistyped_path_in_a_configuration_is_no_such_directory(tmp_path: Path) -> None:
    (tmp_path / "models" / "bert").mkdir(parents=True)
    config = tmp_path / "run.toml"
    data = {"data.public.path": "p.csv", "data.test.path": "t.csv", "task.labels": LABELS}
    config.write_text(template({"model.path": "models/brt", **data}))
    path = load_config(config).model.path
    with pytest.raises(ModelError, match=f"{re.escape(str(tmp_path))}/models/brt: no such directory"):
        load_foundation(path, TaskKind.TEXT_CLASSIFICATION, LABELS, 0)


@pytest.mark.parametrize("path", ["modle/", "./modle", "my model", "a/b/c"])
def test_a_mistyped_path_is_no_such_directory(path: str) -> None:
    with pytest.raises(ModelError, match=r"no such directory$"):
        load_foundation(path, TaskKind.TEXT_CLASSIFICATION, LABELS, 0)


def test_the_log_says_that_the_hub_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with pytest.raises(ModelError, match="no such directory, and not to be had from the hub"):
        load_foundation("modle", TaskKind.TEXT_CLASSIFICATION, LABELS, 0)
    assert "model modle: no such directory here; asking the hub for it, for 60 s at most" in caplog.text


def test_the_hub_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.4)
    over = threading.Event()
    with pytest.raises(ModelError, match="the hub did not answer within 0 s"):
        hub.asked_of_hub("modle", lambda path: over.wait(30))
    over.set()


def test_who_asks_the_hub_can_be_stopped() -> None:
    over, begun = threading.Event(), time.monotonic()

    def check() -> None:
        raise Stopped("stopped")

    with pytest.raises(Stopped):
        stoppable(check, hub.asked_of_hub, "modle", lambda path: over.wait(30))
    assert time.monotonic() - begun < 5
    over.set()


# --- containers ---


def test_the_first_process_of_every_container_passes_signals_on() -> None:
    """The services', too: nobody listens while Python itself starts."""
    for name in ("coordinator", "worker"):
        text = (ROOT / "deploy" / f"{name}.Dockerfile").read_text()
        assert re.search(r"pip .*\binstall\b[^\n]*\\\n[^\n]*\bdumb-init==\d", text)
        for entry in re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE):
            assert json.loads(entry)[:2] == ["dumb-init", "--"]
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    for service in services.values():
        if "entrypoint" in service:
            assert service["entrypoint"][:2] == ["dumb-init", "--"]
