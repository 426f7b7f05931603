"""A run of a thousand workers and a thousand rounds, or of twenty thousand classes, still answers."""

import json
import tracemalloc
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio
from grpc import aio

from common.address import Address
from common.errors import BadMessage, ProtocolMismatch
from common.model.wire_config import read_config
from common.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from common.records import ArtifactKind, JoinRequest
from common.run_status import Evaluation, GradientGap, LayerGap, RunStatus, Traffic
from common.transport import admin_wire
from common.transport.rpc import MAX_MESSAGE_BYTES, new_server
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.status import live_status
from coordinator.context import RunContext
from coordinator.federation.inbox import Inbox
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import Sessions
from coordinator.hosting.listening import register
from coordinator.modelling.foundation import load_foundation, wire_config
from coordinator.owner.admin_client import Admin
from coordinator.owner.admin_service import AdminService
from coordinator.storage import retention
from coordinator.storage.store import Store
from coordinator.storage.traffic import TrafficCounter
from tests.conftest import write_model
from tests.contexts import context
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.download_limits import read_labels, require_labels_file
from worker.metrics import Metrics as WorkerMetrics

WORKERS = ROUNDS = 1000
CLASSES = tuple(f"International classification of diseases, code {i:05}, in full" for i in range(20_000))


class Serving:
    """The services of a run without a campaign."""

    def __init__(self, run: RunContext) -> None:
        self.run, self.sessions, self.inbox = run, Sessions(5.0), Inbox(run.store)

    async def start(self) -> None:
        self.server, self.address = new_server(Address("127.0.0.1", 0))
        status = partial(live_status, self.run, RunProgress(self.run), self.sessions, self.inbox)
        federation = FederationService(self.run, self.sessions, self.inbox)
        await register(self.server, federation, AdminService(status, self.run.events, print))
        await self.server.start()

    async def stop(self) -> None:
        self.sessions.close()
        self.run.events.close()
        assert isinstance(self.server, aio.Server)
        await self.server.stop(0.1)
        self.run.store.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory after a thousand rounds of a thousand workers."""
    folder = tmp_path_factory.mktemp("filled")
    store = Store(folder / "run")
    context(store)
    layers = tuple(LayerGap(i, 0.5, 1.0, 0.1, 0.1, 0.1) for i in range(30))
    with store.database.transaction("fill") as db:
        rows = (
            (f"w{w:04}", n, "update", 10, 20)
            for n in range(ROUNDS)
            for w in range(WORKERS)
            for kind in ("update",)
        )
        db.executemany("INSERT INTO traffic VALUES (?, ?, ?, ?, ?)", rows)
        db.executemany(
            "INSERT INTO workers VALUES (?, 5, 'test', 0)", ((f"w{w:04}",) for w in range(WORKERS))
        )
        db.executemany(
            "INSERT INTO evaluations VALUES (?, ?, 0.5, 0.5)",
            ((n, model) for n in range(ROUNDS) for model in ("fm", "sub_fm")),
        )
    for number in range(ROUNDS):
        # One transaction each would take a thousand times the disk's latency.
        gap = GradientGap(number, 0.5, 1.0, 0.5, layers)
        store.database._db.execute(
            "INSERT INTO gradient_gaps VALUES (?, ?)",
            (number, json.dumps(gap.__dict__ | {"layers": [layer.__dict__ for layer in layers]})),
        )
    store.database._db.commit()
    store.close()
    return folder / "run"


@pytest_asyncio.fixture
async def large(filled: Path) -> AsyncIterator[Serving]:
    serving = Serving(context(Store(filled)))
    await serving.start()
    yield serving
    await serving.stop()


async def test_the_owner_sees_a_run_of_a_thousand_workers_and_rounds(large: Serving) -> None:
    async with Admin(large.address) as admin:
        status = await admin.status()
    assert (len(status.workers), len(status.evaluations), len(status.gaps)) == (WORKERS, 2 * ROUNDS, ROUNDS)
    assert status.workers[7].traffic == (Traffic(0, "update", 10 * ROUNDS, 20 * ROUNDS),)
    whole: RunStatus = live_status(large.run, RunProgress(large.run), large.sessions, large.inbox)
    assert status == whole
    sizes = [part.ByteSize() for part in admin_wire.status_parts(whole)]
    assert sum(sizes) > MAX_MESSAGE_BYTES > 4 * max(sizes)


def test_counting_bytes_takes_no_more_memory_with_more_rounds(filled: Path) -> None:
    store = Store(filled)
    run = context(store)
    tracemalloc.start()
    counter = TrafficCounter(store, run.metrics)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A few hundred bytes for each worker and kind of content, whatever the rounds.
    assert held < 2_000 * WORKERS
    counter.enter_round(ROUNDS)
    counter.down("w0001", "adapter", 5)
    counter.save()
    counter.enter_round(ROUNDS + 1)
    counter.up("w0001", "adapter", 3)
    assert Traffic(0, "adapter", 5, 3) in counter.of("w0001")
    store.database.write("undo", "DELETE FROM traffic WHERE round >= ?", ROUNDS)
    store.close()


def test_a_process_goes_on_counting_where_another_ended(tmp_path: Path) -> None:
    store = Store(tmp_path / "run")
    run = context(store)
    first = TrafficCounter(store, run.metrics)
    first.enter_round(2)
    first.up("w", "update", 7)
    first.save()
    second = TrafficCounter(store, run.metrics)
    second.enter_round(2)
    second.up("w", "update", 5)
    second.save()
    assert store.traffic.by_worker() == {"w": [Traffic(2, "update", 0, 12)]}
    assert second.of("w") == (Traffic(0, "update", 0, 12),)
    assert TrafficCounter(store, run.metrics).of("w") == second.of("w")
    store.close()


def test_evaluations_are_all_there(filled: Path) -> None:
    store = Store.existing(filled)
    assert store.evaluations()[-1] == Evaluation(ROUNDS - 1, "sub_fm", 0.5, 0.5)
    store.close()


@pytest_asyncio.fixture
async def many_classes(tmp_path: Path) -> AsyncIterator[Serving]:
    serving = Serving(context(Store(tmp_path / "run"), {"task.labels": CLASSES}))
    await serving.start()
    yield serving
    await serving.stop()


async def test_twenty_thousand_classes_reach_a_worker(many_classes: Serving, tmp_path: Path) -> None:
    joining = JoinRequest("w", PROTOCOL_MIN, PROTOCOL_MAX, "test", 5)
    worker = CoordinatorClient(Endpoint(many_classes.address, 1.0), joining, WorkerMetrics())
    try:
        reply = await worker.join()
        file = reply.run.task.labels_file
        assert file is not None and reply.run.task.labels == ()
        # Nothing that the run clears away takes the file from those who join later.
        retention.collect(many_classes.run.store)
        require_labels_file(file)
        path = await worker.download(file, tmp_path / "worker")
        assert read_labels(path.read_bytes()) == CLASSES
    finally:
        await worker.close()


async def test_a_worker_of_before_is_told_to_upgrade(many_classes: Serving) -> None:
    worker = CoordinatorClient(
        Endpoint(many_classes.address, 1.0), JoinRequest("w", 1, 2, "old", 5), WorkerMetrics()
    )
    with pytest.raises(ProtocolMismatch, match="upgrade the worker"):
        await worker.join()
    await worker.close()


def test_the_models_configuration_does_not_grow_with_its_classes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    run = context(Store(tmp_path / "run"), {"task.labels": CLASSES})
    loaded = load_foundation(str(folder), run.config.task.kind, CLASSES, 7)
    text = wire_config(loaded.model.config)
    assert len(text) < 10_000
    assert read_config(text, run.spec.task).id2label == dict(enumerate(CLASSES))
    run.store.close()


@pytest.mark.parametrize("content", [b"{}", b"[1, 2]", b"\xff", b'"name"', b"[" * 100_000])
def test_a_file_of_labels_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(BadMessage):
        read_labels(content)


def test_few_classes_stand_in_the_message_as_before(tmp_path: Path) -> None:
    run = context(Store(tmp_path / "run"))
    assert run.spec.task.labels_file is None
    assert not run.store.artifacts.sizes(ArtifactKind.LABELS)
    run.store.close()
