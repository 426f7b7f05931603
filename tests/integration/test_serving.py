"""Many runs in one server: real processes over real sockets, on a small random BERT."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.hosted_runs import RunState
from coordinator.campaign.status import open_run, stored_status
from tests.integration.federation import federation
from tests.integration.serving import Serving

A, B = (1, 2), (3, 4)


@pytest.fixture
def serving(tmp_path: Path, model_folder: Path) -> Iterator[Serving]:
    running = Serving(tmp_path, model_folder)
    running.runs.mkdir()
    yield running
    running.end()


def digest(run: Path) -> str:
    store, config = open_run(run)
    try:
        return stored_status(store, config).adapter_sha256
    finally:
        store.close()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[int, str]:
    """Digests of the same runs by coordinators of their own, by seed."""
    found = {}
    for seed, workers in ((7, A), (8, B)):
        folder = tmp_path_factory.mktemp("alone")
        settings = {
            "run__seed": seed,
            "rounds__workers": 2,
            "rounds__minimum": 2,
            "realignment__every": 0,
        }
        with federation(folder, model_folder, **settings) as running:
            address = running.start_coordinator()["address"]
            for number in workers:
                running.start_worker(number, address)
            running.wait()
            found[seed] = digest(running.run)
    return found


@pytest.mark.slow
def test_two_runs_at_once_end_as_each_does_alone_though_the_server_is_killed(
    serving: Serving, alone: dict[int, str]
) -> None:
    address = serving.start()
    first = serving.submit(serving.configuration(A, run__seed=7))
    second = serving.submit(serving.configuration(B, run__seed=8))
    for number in (*A, *B):
        serving.start_worker(number)
    for _ in serving.until("a round is done in both"):
        if all(entry.facts.round >= 2 for entry in serving.entries().values()):
            break
    serving.processes["server"].send_signal(signal.SIGKILL)
    serving.processes["server"].wait()
    serving.start(address.port)
    assert serving.wait_for(first, RunState.FINISHED).reason == ""
    serving.wait_for(second, RunState.FINISHED)
    assert {7: digest(serving.runs / first), 8: digest(serving.runs / second)} == alone
