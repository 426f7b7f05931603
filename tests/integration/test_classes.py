"""Runs that ask their workers for names and numbers of classes, by real processes."""

import csv
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import app
from common.config.file import load_config
from common.data.examples import Columns, read_examples
from common.records import Phase
from coordinator.campaign.status import open_run
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import sentences
from tests.integration.federation import Federation, federation

SETTINGS = {"task__labels": "ask", "rounds__workers": 2, "rounds__minimum": 2, "realignment__every": 0}


def write(path: Path, count: int, seed: int, names: dict[str, str]) -> Path:
    """Sentences, their classes under other names; those without one are left out."""
    texts, labels = sentences(count, seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows([t, names[la]] for t, la in zip(texts, labels, strict=True) if la in names)
    return path


def start(running: Federation, number: int, address: str, data: Path, *extra: str) -> None:
    name = f"worker-{number}"
    arguments = ["--coordinator", address, "--data", str(data), "--name", name, *extra]
    running.start(name, "worker", *arguments, "--folder", str(running.folder / name), "--threads", "1")


def test_a_run_takes_the_classes_that_its_workers_have(tmp_path: Path, model_folder: Path) -> None:
    """Also after its coordinator was killed while it asked; and the same bits as a simulated run."""
    one = write(tmp_path / "one.csv", 60, 1, {"animals": "cats & dogs"})
    two = write(tmp_path / "two.csv", 40, 2, {"animals": "cats & dogs", "weather": "rain"})
    settings = SETTINGS | {"training__class_weights": "balanced"}
    with federation(tmp_path, model_folder, **settings) as running:
        test = write(tmp_path / "scores.csv", 30, 3, {"animals": "snow", "weather": "rain"})
        running.settings["data.test.path"] = str(test)
        first = running.start_coordinator()
        start(running, 1, first["address"], one)
        for _ in running.until("worker 1 is asked"):
            if "waiting: the run waits until 2 worker(s) have told their classes" in running.log("worker-1"):
                break
        early, _ = open_run(running.run)
        assert early.classes.get() is None and not early.workers()
        early.close()
        coordinator = running.processes.pop("coordinator")
        coordinator.kill()
        coordinator.wait()
        running.settings["server.listen"] = first["address"]
        address = running.start_coordinator()["address"]
        start(running, 2, address, two)
        running.wait()
        status = running.status()
        assert status.phase is Phase.FINISHED
        config = load_config(tmp_path / "run.toml")
    store, settled = open_run(running.run)
    assert settled.task.labels == ("cats & dogs", "rain", "snow")
    classes = store.classes.get()
    store.close()
    assert classes is not None and classes.workers == 2
    found = {name: read_examples(path, Columns()) for name, path in (("worker-1", one), ("worker-2", two))}
    names = [label for examples in found.values() for label in examples.label_names or ()]
    assert dict(zip(classes.labels, classes.counts, strict=True)) == {
        "cats & dogs": names.count("cats & dogs"),
        "rain": names.count("rain"),
        "snow": 0,
    }
    told = "3 classes, of 2 worker(s) together: "
    assert told in running.log("coordinator")
    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    simulate(config.model_copy(update={"run": run}), found)
    again = Store.existing(tmp_path / "simulated")
    latest = again.latest_adapter()
    again.close()
    assert latest is not None and latest[1].sha256 == status.adapter_sha256
    done = CliRunner().invoke(app, ["export", str(running.run), "--out", str(tmp_path / "out"), "--merge"])
    assert done.exit_code == 0, done.output
    assert '"2": "snow"' in (tmp_path / "out" / "config.json").read_text()


def test_classes_that_people_take_for_one_end_the_run_and_its_workers(
    tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path, model_folder, **SETTINGS) as running:
        address = running.start_coordinator()["address"]
        start(
            running, 1, address, write(tmp_path / "one.csv", 30, 1, {"animals": "Animals", "weather": "rain"})
        )
        start(running, 2, address, write(tmp_path / "two.csv", 30, 2, {"animals": "animals"}))
        running.wait(coordinator=1, worker_1=1, worker_2=1)
        told = "hold some that look like one: 'Animals' and 'animals'; mend the data, or list the classes"
        for name in running.processes:
            assert told in running.log(name), running.log(name)
            assert "Traceback" not in running.log(name)


def test_a_worker_may_keep_its_classes_to_itself(tmp_path: Path, model_folder: Path) -> None:
    with federation(tmp_path, model_folder, **SETTINGS) as running:
        address = running.start_coordinator()["address"]
        data = write(tmp_path / "one.csv", 30, 1, {"animals": "a", "weather": "b"})
        start(running, 1, address, data, "--keep-classes")
        process = running.processes["worker-1"]
        for _ in running.until("worker 1 ends"):
            if process.poll() is not None:
                break
        assert process.returncode == 2
        assert "--keep-classes forbids to tell them" in running.log("worker-1")
        assert b"TellClasses" not in (tmp_path / "worker-1" / "sent.jsonl").read_bytes()


@pytest.mark.parametrize("known", [True, False])
def test_a_label_beside_the_listed_ones_is_named_before_anyone_waits(
    tmp_path: Path, model_folder: Path, known: bool
) -> None:
    settings = SETTINGS | {"task__labels": ("animals", "weather"), "training__class_weights": "balanced"}
    with federation(tmp_path, model_folder, **settings) as running:
        address = running.start_coordinator()["address"]
        names = {"animals": "animals", "weather": "weather" if known else "wetter"}
        start(running, 1, address, write(tmp_path / "one.csv", 30, 1, names))
        process = running.processes["worker-1"]
        for _ in running.until("worker 1 is answered"):
            if process.poll() is not None or "waiting: the run waits" in running.log("worker-1"):
                break
        assert process.poll() == (None if known else 2)
        told = "the data have label 'wetter', which the run does not know"
        assert (told in running.log("worker-1")) is not known
        assert "Traceback" not in running.log("worker-1")
