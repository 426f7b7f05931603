"""Two workers under one name: the second is refused and told what to do, the first is not disturbed."""

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from common.run_status import Event
from tests import services
from tests.faults.federation import Federation, Material
from tests.field import habits
from tests.field.test_rounds import SETTINGS, accepted, events, statuses

NAME, OTHER = "worker-1", "worker-2"

Make = Callable[..., Federation]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material.make(tmp_path_factory.mktemp("material"))


@pytest.fixture
def make(tmp_path: Path, material: Material) -> Iterator[Make]:
    made: list[Federation] = []

    def one(**settings: Any) -> Federation:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        made.append(Federation(tmp_path, material, SETTINGS | {"rounds.minimum": 2} | dotted))
        return made[-1]

    yield one
    for federation in made:
        federation.end()


def twin(federation: Federation, folder: str = "twin") -> ForkServerProcess:
    """Another worker of the same name, as on another host; it prints to FOLDER.log."""
    arguments = ["--coordinator", federation.address, "--name", NAME, "--threads", "1", "--keepalive", "1"]
    arguments += ["--data", str(federation.material.folder / f"{OTHER}.csv"), "--join-timeout", "60"]
    arguments += ["--folder", str(federation.folder / folder)]
    process = services.start("worker", arguments, federation.folder / f"{folder}.log", {})
    federation.processes[folder] = process
    return process


def until(federation: Federation, what: Callable[[], object], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < ends, federation.logs()
        time.sleep(0.02)


def joined(federation: Federation, name: str) -> int:
    """How often a worker has joined."""
    return federation.log(name).count("joined run")


def contested(federation: Federation) -> list[Event]:
    return events(federation, "name_contested")


def test_a_second_host_with_the_same_name_is_refused_again_and_again_and_the_run_goes_on(make: Make) -> None:
    federation = make()
    federation.start("coordinator")
    federation.start(NAME)
    until(federation, lambda: joined(federation, NAME))
    seen, look = statuses(federation)
    refused = 0
    while refused < 3:
        # Its supervisor starts it again and again.
        process = twin(federation)
        until(federation, lambda p=process: p.exitcode is not None)  # type: ignore[misc]
        assert process.exitcode == 2
        refused += 1
    look()
    line = federation.log("twin").strip().splitlines()[-1]
    assert f"a worker named '{NAME}' is at work in this run" in line
    assert "its own --name and its own --folder" in line
    (shown,) = [w.progress.trouble for w in seen[-1].workers if w.worker == NAME]
    assert "two workers work under this name" in shown
    del federation.processes["twin"]
    federation.start(OTHER)
    federation.supervise()
    (told,) = contested(federation)
    assert told.worker == NAME and "one more, from 127.0.0.1, is refused" in told.text
    assert joined(federation, NAME) == 1
    assert accepted(federation, 2) == [NAME, OTHER]


@pytest.mark.parametrize("habit", [None, habits.sends_no_nonce], ids=["now", "an earlier version"])
def test_a_worker_that_is_killed_comes_back_at_once(make: Make, habit: Callable[[], None] | None) -> None:
    """Its old session would count as lost only after half a minute."""
    federation = make(server__heartbeat_seconds=10.0)
    if habit:
        federation.habits[NAME] = habit
    federation.start("coordinator")
    federation.start(NAME)
    for times in (1, 2, 3):
        until(federation, lambda n=times: joined(federation, NAME) == n, seconds=5)  # type: ignore[misc]
        # Its watch for tasks is open by then.
        until(federation, lambda n=times: federation.log(NAME).count("waiting: ") >= n)  # type: ignore[misc]
        federation.kill(NAME)
        federation.start(NAME)
    federation.start(OTHER)
    federation.supervise()
    assert contested(federation) == []


def test_a_worker_whose_host_froze_and_came_back_ends_and_the_owner_hears_of_it(make: Make) -> None:
    federation = make()
    federation.start("coordinator")
    frozen = federation.start(NAME)
    until(federation, lambda: joined(federation, NAME))
    assert frozen.pid is not None
    os.kill(frozen.pid, signal.SIGSTOP)
    twin(federation)
    until(federation, lambda: joined(federation, "twin"), seconds=10)
    os.kill(frozen.pid, signal.SIGCONT)
    until(federation, lambda: frozen.exitcode is not None)
    assert frozen.exitcode == 2
    assert re.search(r"another worker joined as .*--name and its own --folder", federation.log(NAME))
    # Started again beside the other, it is the second one.
    again = federation.start(NAME)
    until(federation, lambda: again.exitcode is not None)
    assert again.exitcode == 2
    del federation.processes[NAME]
    federation.start(OTHER)
    federation.supervise()
    (told,) = contested(federation)
    assert "the earlier one, at 127.0.0.1, ends" in told.text


def test_a_folder_that_is_in_use_asks_for_another_name_as_well(make: Make) -> None:
    federation = make()
    federation.start("coordinator")
    federation.start(NAME)
    until(federation, lambda: joined(federation, NAME))
    process = twin(federation, folder=NAME)
    until(federation, lambda: process.exitcode is not None)
    assert process.exitcode == 2
    assert "stop that, or give this worker its own --name and its own --folder" in federation.log(NAME)
