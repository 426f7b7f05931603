"""The commands from Python: runs that are started, watched, looked at, loaded and simulated."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch

import fedpft_api
from common.errors import AddressError, ConfigError, RunFailed, StoreError
from common.records import Phase
from tests.conftest import LABELS, write_table


def settings(folder: Path, model: Path, **more: Any) -> dict[str, Any]:
    """A small run of two rounds and two workers; dotted keys beside tables, as people write them."""
    return {
        "run": {"directory": folder / "run"},
        "model.path": model,
        "task": {"labels": LABELS, "max_length": 16},
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "data.test.path": str(write_table(folder / "test.csv", 64, 91)),
        "alignment.steps": 5,
        "rounds": {"count": 2, "workers": 2, "minimum": 2},
        "compute.threads": 1,
    } | {key.replace("__", "."): value for key, value in more.items()}


def private(folder: Path) -> dict[str, Path]:
    return {f"worker-{n}": write_table(folder / f"worker-{n}.csv", 30 + 10 * n, n) for n in (1, 2)}


# Quick: nothing is computed.


def test_a_configuration_is_of_dotted_keys_or_tables_and_its_paths_count_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {
        "run": {"directory": "there"},
        "model.path": "m",
        "task.labels": ("a", "b"),
        "alignment.steps": 0,
    }
    found = fedpft_api.configuration(given | {"data": {"test": {"path": "test.csv"}}})
    assert found.run.directory == tmp_path / "there"
    assert found.data.test is not None and found.data.test.path == tmp_path / "test.csv"
    assert found.task.labels == ("a", "b")


def test_a_mistake_in_a_configuration_is_said_before_anything_is_written(tmp_path: Path) -> None:
    given = {"run.directory": tmp_path / "run", "model.path": "m", "task.labels": ["a"]}
    with pytest.raises(ConfigError, match=r"^the configuration: task: labels must name at least 2 classes"):
        fedpft_api.submit(given)
    with pytest.raises(ConfigError, match="no such file; `fedpft init` writes one"):
        fedpft_api.submit(tmp_path / "run.toml")
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_and_no_address_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        fedpft_api.status(tmp_path)
    with pytest.raises(StoreError, match="holds no run"):
        list(fedpft_api.watch(tmp_path))
    with pytest.raises(AddressError):
        fedpft_api.status("nowhere")
    with pytest.raises(AddressError):
        fedpft_api.worker("nowhere", tmp_path, name="a")


# Real processes.


@pytest.mark.slow
def test_a_run_is_submitted_watched_and_loaded(tmp_path: Path, model_folder: Path) -> None:
    with fedpft_api.submit(settings(tmp_path, model_folder)) as run:
        address = run.address
        workers = [
            fedpft_api.worker(address, data, name=name, folder=tmp_path / name, threads=1)
            for name, data in private(tmp_path).items()
        ]
        kinds = []
        for event in fedpft_api.watch(run):
            kinds.append(event.kind)
            if event.kind == "round_opened" and event.round == 1:
                live = fedpft_api.status(address)
                assert {w.worker for w in live.workers} == {"worker-1", "worker-2"}
                assert live.phase not in (Phase.FINISHED, Phase.STOPPED)
        for worker in workers:
            worker.wait(timeout=60)
    assert kinds.count("round_closed") == 2
    assert kinds[-1] == "workers_dismissed"
    status = fedpft_api.status(run)
    assert (status.phase, status.round) == (Phase.FINISHED, 2)
    # Again, from the directory alone: all events, and no process.
    assert [event.kind for event in fedpft_api.watch(run.directory)] == kinds
    merged, tokenizer = fedpft_api.load(run.directory)
    tuned, _ = fedpft_api.load(run.directory, merged=False)
    inputs = tokenizer(["the old cat", "some rain and snow"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(merged(**inputs).logits, tuned(**inputs).logits, rtol=1e-4, atol=1e-5)
    first, _ = fedpft_api.load(run.directory, round=1)
    assert not torch.equal(first.classifier.weight, merged.classifier.weight)
    with pytest.raises(StoreError, match="there is no adapter after round 7"):
        fedpft_api.load(run.directory, round=7)
    # The same data in one process end with the same bits.
    simulated = fedpft_api.simulate(
        settings(tmp_path, model_folder, run={"directory": tmp_path / "simulated"}), private(tmp_path)
    )
    assert simulated.adapter_sha256 == status.adapter_sha256


@pytest.mark.slow
def test_a_coordinator_is_watched_from_within_an_event_loop(tmp_path: Path, model_folder: Path) -> None:
    async def cell() -> tuple[str, Phase]:
        # As in a notebook, whose own loop is at work.
        with fedpft_api.submit(settings(tmp_path, model_folder)) as run:
            events = fedpft_api.watch(run.address)
            first = next(events)
            status = fedpft_api.status(run.address)
            events.close()
            return first.kind, status.phase

    kind, phase = asyncio.run(cell())
    assert kind == "phase_entered"
    assert phase is not Phase.FINISHED
    assert fedpft_api.status(tmp_path / "run").phase is Phase.STOPPED


@pytest.mark.slow
def test_why_a_process_does_not_start_is_its_last_line(tmp_path: Path, model_folder: Path) -> None:
    run = fedpft_api.submit(settings(tmp_path, tmp_path / "no-model"))
    with run, pytest.raises(RunFailed, match=r"^the coordinator ended with [12]: .*no-model"):
        list(fedpft_api.watch(run))
    missing = tmp_path / "none.csv"
    worker = fedpft_api.worker("127.0.0.1:9", missing, name="a", folder=tmp_path / "a")
    with worker, pytest.raises(RunFailed, match=r"^worker a ended with 2: .*none\.csv: no such data file"):
        worker.wait(timeout=60)
