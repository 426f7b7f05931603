"""A worker as a whole, whose coordinator lies: nothing that is its own goes out in a run of sums, whoever
asks."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch

from common.data.examples import Columns
from common.errors import (
    ClassesWanted,
    FedPftError,
    NotAllowed,
    SecureRefused,
    StaleRound,
    UnknownSession,
)
from common.records import Activity, EvaluateTask, RunSpec, StopTask, Task, UpdateHeader
from common.runtime.compute import InlineCompute
from common.storage.tensors import write_tensors
from common.trust.identity import Role
from common.trust.tls import open_tls
from tests.conftest import write_table
from tests.security.guarded import Certificates
from tests.security.liar import ADAPTER, ME, RUN, SUB_MODEL, Liar, Scene, a_task
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.data import PrivateData, Source
from worker.local_model import Place
from worker.loop import Worker
from worker.metrics import Metrics
from worker.secure_policy import SecurePolicy


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs"))


@pytest_asyncio.fixture
async def scene(certificates: Certificates, tmp_path: Path) -> AsyncIterator[Scene]:
    liar = Liar()
    made = Scene(certificates, liar, await liar.start(certificates), tmp_path)
    yield made
    await made.client.close()
    await liar.server.stop(None)


@pytest_asyncio.fixture
async def liar(certificates: Certificates) -> AsyncIterator[tuple[Liar, Any]]:
    made = Liar()
    yield made, await made.start(certificates)
    await made.server.stop(None)


def a_worker(
    certificates: Certificates, address: Any, folder: Path, policy: SecurePolicy | None = None
) -> tuple[Worker, CoordinatorClient]:
    from common.protocol import PROTOCOL_MAX, PROTOCOL_MIN
    from common.records import JoinRequest
    from common.trust.signing import signing, verifier
    from common.trust.tls import TlsFiles

    shown = certificates.folder / f"worker-{ME}"
    if not shown.exists():
        certificates.issue(Role.WORKER, ME)
    files = TlsFiles.in_folder(shown)
    policy = policy or SecurePolicy(False, 3, lambda: signing(files), verifier(files.authority))
    data = PrivateData.read(Source(write_table(folder / "data.csv", 23, 1), Columns()), ME)
    client = CoordinatorClient(
        Endpoint(address, 5.0, open_tls(shown, Role.WORKER)),
        JoinRequest(ME, PROTOCOL_MIN, PROTOCOL_MAX, "test", len(data)),
        Metrics(),
    )
    place = Place(folder, torch.device("cpu"), secure=policy)
    return Worker(ME, client, data, place, InlineCompute(), Metrics()), client


async def until_trouble(liar: Liar, told: str) -> None:
    async with asyncio.timeout(20):
        while not any(told in beat.trouble for beat in liar.beats):
            await asyncio.sleep(0.01)


ASKED: dict[str, tuple[Task, str]] = {
    "an update without masks": (replace(a_task(), secure=None), "an update without masks is asked for"),
    "scores": (EvaluateTask(1, SUB_MODEL, ADAPTER, 60.0, 1), "scores of this worker alone are asked for"),
}


@pytest.mark.parametrize("case", ASKED)
async def test_what_is_this_workers_alone_is_never_sent_in_a_run_of_sums(
    case: str, liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    task, told = ASKED[case]
    coordinator, address = liar
    worker, client = a_worker(certificates, address, tmp_path)
    coordinator.tells.put_nowait(task)
    running = asyncio.create_task(worker.run())
    await until_trouble(coordinator, told)
    coordinator.tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()
    assert (coordinator.updates, coordinator.others, coordinator.said) == ([], [], [])
    assert [(j.examples, j.validation) for j in coordinator.joined] == [(0, 0)]
    assert all((b.steps, b.loss) == (0, 0.0) for b in coordinator.beats)
    assert {b.activity for b in coordinator.beats} == {Activity.IDLE}


async def test_masks_in_a_run_that_has_none_are_a_refusal_and_not_a_crash(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    coordinator, address = liar
    coordinator.described = coordinator.joins_to = replace(RUN, secure=None)
    worker, client = a_worker(certificates, address, tmp_path)
    coordinator.tells.put_nowait(a_task())
    running = asyncio.create_task(worker.run())
    await until_trouble(coordinator, "the task sums masked updates, and the run does not")
    coordinator.tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()


async def joins(
    liar: tuple[Liar, Any], certificates: Certificates, folder: Path, policy: SecurePolicy | None = None
) -> str:
    """How the worker's start ends: the error's text."""
    worker, client = a_worker(certificates, liar[1], folder, policy)
    with pytest.raises(FedPftError) as raised:
        await worker.run()
    await client.close()
    assert isinstance(raised.value, NotAllowed) and "\n" not in str(raised.value)
    return str(raised.value)


def changed(**changes: Any) -> RunSpec:
    assert RUN.secure is not None
    return replace(RUN, secure=replace(RUN.secure, **changes))


@pytest.mark.parametrize(
    "now", [replace(RUN, secure=None), changed(minimum=2), changed(bits=32), changed(signed=False)]
)
async def test_what_was_described_is_what_is_joined(
    now: RunSpec, liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].joins_to = now
    assert "ask the run's owner why [privacy] has changed" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined[0].examples == 0


async def test_class_counts_are_not_told_in_a_run_of_sums(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].refuses_join = ClassesWanted("tell your classes first")
    assert "asks for the numbers of this worker's classes" in await joins(liar, certificates, tmp_path)
    assert liar[0].others == []


async def test_unsigned_keys_are_refused_by_who_could_sign(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].described = liar[0].joins_to = changed(signed=False)
    assert "the run's keys are not signed" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined == []


@pytest.mark.parametrize(
    ("described", "policy", "told"),
    [
        (replace(RUN, secure=None), SecurePolicy(required=True), "--require-secure forbids"),
        (changed(signed=False), SecurePolicy(required=True), "--require-secure forbids"),
        (RUN, SecurePolicy(floor=4), "--min-aggregate wants 4"),
        (RUN, SecurePolicy(), "give --tls"),
    ],
)
async def test_what_the_workers_owner_does_not_want_is_not_joined(
    described: RunSpec,
    policy: SecurePolicy,
    told: str,
    liar: tuple[Liar, Any],
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    liar[0].described = liar[0].joins_to = described
    assert told in await joins(liar, certificates, tmp_path, policy)
    assert liar[0].joined == [], "the number of examples is told to nobody before"


async def test_masks_switched_off_between_two_starts_of_a_worker_are_noticed(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    liar[0].described = liar[0].joins_to = replace(RUN, secure=None)
    scene = Scene(certificates, liar[0], liar[1], tmp_path)
    await scene.keys()
    await scene.client.close()
    assert "took masked sums of them before" in await joins(liar, certificates, tmp_path)
    assert liar[0].joined == []


async def test_masks_switched_off_by_a_restart_of_the_coordinator_end_the_worker(scene: Scene) -> None:
    path = scene.folder / "masked"
    write_tensors(path, {"x": torch.arange(3)})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    await scene.client.join()
    scene.liar.joins_to, scene.liar.forgets = replace(RUN, secure=None), True
    with pytest.raises(NotAllowed, match="takes updates as they are now, and spoke of sums of 3 or more"):
        await scene.client.submit(header, path)
    assert scene.liar.updates == []


@pytest.mark.parametrize(
    ("changes", "tensor"),
    [
        ({}, torch.ones(3)),
        ({"context": b""}, torch.arange(3)),
        ({"examples": 5}, torch.arange(3)),
        ({"loss": 0.5}, torch.arange(3)),
        ({"seconds": 1.5}, torch.arange(3)),
        ({"targets": 15}, torch.arange(3)),
    ],
)
async def test_the_connection_itself_lets_nothing_out_that_could_be_read(
    changes: dict[str, Any], tensor: torch.Tensor, scene: Scene
) -> None:
    path = scene.folder / "update"
    write_tensors(path, {"x": tensor})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    with pytest.raises(SecureRefused, match="sends no update without masks"):
        await scene.client.submit(replace(header, **changes), path)
    assert scene.liar.updates == []


async def test_an_honest_forgetting_is_no_lie(scene: Scene) -> None:
    """A coordinator that restarted and is as it was: the worker joins again, and sends what it has."""
    path = scene.folder / "masked"
    write_tensors(path, {"x": torch.arange(3)})
    header = UpdateHeader("", 1, ADAPTER.sha256, path.stat().st_size, "cd" * 32, 0, 0.0, 0.0, 1, b"c" * 32)
    await scene.client.join()
    scene.liar.forgets = True
    await scene.client.submit(header, path)
    assert len(scene.liar.joined) == 2 and scene.liar.updates
    assert UnknownSession is not None


async def test_what_was_refused_as_stale_is_done_again_once_it_is_told_again(
    liar: tuple[Liar, Any], certificates: Certificates, tmp_path: Path
) -> None:
    """A coordinator that has just started again refuses what it will ask for in a moment: the same task."""
    worker, client = a_worker(certificates, liar[1], tmp_path)
    done: list[Any] = []

    async def stale_at_first(model: Any, task: Any) -> None:
        done.append(task)
        if len(done) == 1:
            raise StaleRound("try 1 at round 1 is not under way")

    worker._do = stale_at_first  # type: ignore[method-assign]
    running = asyncio.create_task(worker.run())
    for times in (1, 2, 2):
        liar[0].tells.put_nowait(a_task())
        async with asyncio.timeout(20):
            while len(done) < times:
                await asyncio.sleep(0.01)
    liar[0].tells.put_nowait(StopTask(True, "enough"))
    await running
    await client.close()
    assert done == [a_task()] * 2, "and what was done is not done again"
