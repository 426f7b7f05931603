"""The services as their callers meet them, over real sockets."""

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fedpft.v1 import federation_pb2
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2, health_pb2_grpc

from common.address import Address
from common.errors import (
    BadUpdate,
    LateUpdate,
    NotSelected,
    PeerError,
    StaleRound,
    UnknownArtifact,
    UnknownRound,
)
from common.model.update import update_schema
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    Chunk,
    JoinRequest,
    RunSpec,
    StopTask,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    UpdateHeader,
    WaitTask,
)
from common.run_offers import Construction, RunTerms
from common.storage.schema import schema_of
from common.storage.tensors import to_bytes
from common.transport import wire
from common.transport.chunks import CHUNK_BYTES
from common.transport.rpc import new_channel, new_server
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import RoundPhase, RoundState
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import Assignment, Sessions
from coordinator.hosting.listening import register
from coordinator.owner.admin_client import Admin
from coordinator.owner.admin_service import AdminService
from coordinator.storage.store import Store
from tests.contexts import context
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics as WorkerMetrics

RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
    terms=RunTerms(5, Construction.FFN_PRUNING),
)


class Served:
    """A coordinator's services with round 1 open for worker w, and that worker's connection."""

    async def start(self, folder: Path) -> None:
        self.store = Store(folder / "run")
        self.adapter = self.store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.zeros(4)})
        run = context(self.store)
        self.metrics, self.events = run.metrics, run.events
        self.sessions, self.inbox = Sessions(1.0), Inbox(self.store)
        self.server, self.address = new_server(Address("127.0.0.1", 0))
        federation = FederationService(run, self.sessions, self.inbox)
        await register(self.server, federation, AdminService(lambda: None, self.events, print))  # type: ignore[arg-type, return-value]
        await self.server.start()
        state = RoundState(1, frozenset({"w", "v"}), 1, closes_at=1e12)
        schema = schema_of({"x": torch.zeros(4)})
        self.inbox.open(state, Expected(self.adapter, update_schema(schema, RUN.adapter, {})))
        self.worker = CoordinatorClient(
            Endpoint(self.address, 0.5), JoinRequest("w", 1, 2, "test", 5), WorkerMetrics()
        )
        await self.worker.join()

    async def stop(self) -> None:
        await self.worker.close()
        self.sessions.close()
        self.events.close()
        await self.server.stop(0.5)
        self.store.close()

    def update(self, folder: Path, tensors: dict[str, Any]) -> tuple[UpdateHeader, Path]:
        path = folder / "update"
        path.write_bytes(to_bytes(tensors))
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return UpdateHeader("", 1, self.adapter.sha256, len(content), digest, 5, 0.5, 1.0), path


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    running = Served()
    await running.start(tmp_path)
    yield running
    await running.stop()


async def test_an_update_is_on_disk_when_its_receipt_comes(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    assert await served.worker.submit(header, path) is False
    (stored,) = served.store.updates(1)
    assert served.store.artifacts.path(stored.sha256).read_bytes() == path.read_bytes()
    assert served.inbox.state is not None and served.inbox.state.received == {"w"}


@pytest.mark.parametrize("targets", [0, 10**10 + 1])
async def test_an_update_that_is_weighed_by_its_target_tokens_names_them(
    served: Served, tmp_path: Path, targets: int
) -> None:
    expected = served.inbox._expected
    assert expected is not None
    served.inbox._expected = replace(expected, targets=True)
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with pytest.raises(BadUpdate, match=rf"must name 1 to 10000000000 target tokens .*, got {targets}"):
        await served.worker.submit(replace(header, targets=targets), path)
    await served.worker.submit(replace(header, targets=12), path)
    assert [u.targets for u in served.store.updates(1)] == [12]


async def test_target_tokens_that_nobody_asked_for_do_not_count(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    await served.worker.submit(replace(header, targets=12), path)
    assert [u.targets for u in served.store.updates(1)] == [0]


async def test_delivering_an_update_twice_is_harmless(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    assert await served.worker.submit(header, path) is False
    assert await served.worker.submit(header, path) is True
    assert len(served.store.updates(1)) == 1


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"delta.x": torch.full((4,), torch.nan)}, "NaN"),
        ({"delta.y": torch.ones(4)}, "missing"),
        ({"delta.x": torch.ones(2, 2)}, "must be"),
        ({"delta.x": torch.ones(4, dtype=torch.int32)}, "must be"),
        ({"delta.x": torch.ones(4_000_000)}, "bytes"),
    ],
)
async def test_a_malformed_update_is_refused_and_leaves_nothing(
    served: Served, tmp_path: Path, tensors: dict[str, Any], reason: str
) -> None:
    header, path = served.update(tmp_path, tensors)
    with pytest.raises(BadUpdate, match=reason):
        await served.worker.submit(header, path)
    assert served.store.updates(1) == []
    assert list((served.store.directory / "spool").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"round": 2}, StaleRound),
        ({"adapter_sha256": "0" * 64}, BadUpdate),
        ({"examples": 6}, BadUpdate),
        ({"loss": math.nan}, BadUpdate),
        ({"loss": math.inf}, BadUpdate),
        ({"seconds": math.nan}, BadUpdate),
        ({"seconds": -1.0}, BadUpdate),
    ],
)
async def test_a_header_that_does_not_fit_the_round_is_refused(
    served: Served, tmp_path: Path, change: dict[str, Any], error: type[Exception]
) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with pytest.raises(error):
        await served.worker.submit(replace(header, **change), path)
    assert served.inbox.state is not None
    # Another update may still come; but it is not waited for.
    assert ("w" in served.inbox.state.over) == (error is BadUpdate)


def test_an_updates_schema_is_what_workers_train_and_the_counts_asked_for() -> None:
    lora = "base_model.model.bert.encoder.layer.0.attention.self.query"
    names = [f"{lora}.lora_A.weight", f"{lora}.lora_B.weight", f"{lora}.residual.weight", "head"]
    adapter = schema_of({name: torch.zeros(2, 3) for name in names})
    free = update_schema(adapter, RUN.adapter, {})
    assert set(free) == {f"delta.{name}" for name in names if "residual" not in name}
    frozen = update_schema(adapter, replace(RUN.adapter, freeze_a=True), {2: 7})
    assert set(frozen) == {f"delta.{names[1]}", "delta.head", "apoz.2.zeros", "apoz.2.tokens"}
    assert (frozen["apoz.2.zeros"].shape, frozen["apoz.2.zeros"].dtype) == ((7,), torch.int64)
    assert frozen["apoz.2.tokens"].shape == ()


async def test_joining_tells_the_whole_run(served: Served) -> None:
    reply = await served.worker.join()
    assert reply.run == RUN


async def test_a_closed_round_takes_no_more(served: Served, tmp_path: Path) -> None:
    assert served.inbox.state is not None
    served.inbox.state = replace(served.inbox.state, phase=RoundPhase.CLOSED)
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with pytest.raises(StaleRound, match="not open"):
        await served.worker.submit(header, path)


def chunks_sent(worker: CoordinatorClient) -> float:
    """Bytes of update messages that the worker has sent."""
    (family,) = worker._metrics.transferred.collect()
    labels = {"kind": "update", "direction": "up"}
    return sum(s.value for s in family.samples if s.name.endswith("_total") and s.labels == labels)


async def test_an_upload_goes_on_where_it_broke_off(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with served.inbox.receive("w", header) as writer:
        writer.write(Chunk(0, path.read_bytes()[:60]))
    assert served.inbox.held("w", header) == 60
    assert await served.worker.submit(header, path) is False
    # The header twice, offered and sent, and the rest of the file.
    overhead = chunks_sent(served.worker) - (header.size - 60)
    assert 0 < overhead < 500
    assert served.store.artifacts.path(header.sha256).read_bytes() == path.read_bytes()


async def test_an_upload_that_was_complete_when_the_coordinator_died_is_not_sent_again(
    served: Served, tmp_path: Path
) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with served.inbox.receive("w", header) as writer:
        writer.write(Chunk(0, path.read_bytes()))
        writer.commit()
    assert await served.worker.submit(header, path) is False
    assert chunks_sent(served.worker) < 500
    assert served.store.artifacts.spooled() == []


async def test_a_worker_of_protocol_1_sends_from_the_first_byte(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with served.inbox.receive("w", header) as writer:
        writer.write(Chunk(0, path.read_bytes()[:60]))
    old = CoordinatorClient(Endpoint(served.address, 0.5), JoinRequest("w", 1, 1, "old", 5), WorkerMetrics())
    assert (await old.join()).protocol == 1
    assert await old.submit(header, path) is False
    assert served.store.artifacts.path(header.sha256).read_bytes() == path.read_bytes()
    await old.close()


async def test_damage_to_what_an_upload_left_is_found_at_its_end(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with served.inbox.receive("w", header) as writer:
        writer.write(Chunk(0, bytes(60)))
    # The first try meets the wrong digest and drops what was there, the second begins anew.
    assert await served.worker.submit(header, path) is False
    assert served.store.artifacts.path(header.sha256).read_bytes() == path.read_bytes()


async def test_a_newer_submission_takes_over_from_one_whose_connection_is_dead(
    served: Served, tmp_path: Path
) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    going_on = asyncio.Event()

    async def stuck() -> AsyncIterator[federation_pb2.SubmitUpdateRequest]:
        named = wire.header_to_pb(replace(header, session=served.worker._session))
        yield federation_pb2.SubmitUpdateRequest(header=named)
        chunk = wire.chunk_to_pb(Chunk(0, path.read_bytes()[:60]))
        yield federation_pb2.SubmitUpdateRequest(chunk=chunk)
        await going_on.wait()

    old = served.worker._connection.stub.SubmitUpdate(stuck(), timeout=30)
    while served.inbox.held("w", header) < 60:
        await asyncio.sleep(0.01)
    assert await served.worker.submit(header, path) is False
    with pytest.raises(AioRpcError) as ended:
        async with asyncio.timeout(5):
            await old
    assert "took over" in str(ended.value.details())
    assert [u.sha256 for u in served.store.updates(1)] == [header.sha256]


@pytest.mark.parametrize(
    ("number", "worker", "phase", "error"),
    [
        (1, "w", RoundPhase.CLOSED, LateUpdate),
        (0, "w", RoundPhase.OPEN, StaleRound),
        (2, "w", RoundPhase.OPEN, UnknownRound),
        (1, "stranger", RoundPhase.OPEN, NotSelected),
        (1, "w", None, StaleRound),
    ],
)
async def test_why_an_update_is_refused_has_a_status_and_a_count_of_its_own(
    served: Served,
    tmp_path: Path,
    number: int,
    worker: str,
    phase: RoundPhase | None,
    error: type[StaleRound],
) -> None:
    assert served.inbox.state is not None
    served.inbox.state = replace(served.inbox.state, phase=phase) if phase is not None else None
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    sender = CoordinatorClient(
        Endpoint(served.address, 0.5), JoinRequest(worker, 1, 2, "test", 5), WorkerMetrics()
    )
    await sender.join()
    with pytest.raises(StaleRound) as caught:
        await sender.submit(replace(header, round=number), path)
    assert type(caught.value) is error
    counts = {
        s.labels["result"]: s.value
        for f in served.metrics.updates.collect()
        for s in f.samples
        if s.name.endswith("_total")
    }
    assert {result for result, count in counts.items() if count} == {error.__name__}
    await sender.close()


async def test_an_update_that_comes_too_late_to_count_leaves_no_file(served: Served, tmp_path: Path) -> None:
    header, path = served.update(tmp_path, {"delta.x": torch.ones(4)})
    with served.inbox.receive("w", header) as writer:
        writer.write(Chunk(0, path.read_bytes()))
        writer.commit()
    served.inbox.keep("w", header)
    assert served.inbox.state is not None
    served.inbox.state = replace(served.inbox.state, phase=RoundPhase.CLOSED)
    with pytest.raises(LateUpdate):
        served.inbox.commit("w", header)
    assert not served.store.artifacts.path(header.sha256).exists()


async def test_a_receipt_for_an_old_round_leaves_the_present_task(served: Served) -> None:
    base = ArtifactRef(ArtifactKind.SUB_MODEL, "0" * 64, 1)
    task = TrainTask(2, SubModelRef("{}", (8,), base, (), ()), base, 1.0, (), 60.0, 1)
    served.sessions.assign("w", Assignment(task))
    session = served.sessions.join(JoinRequest("w", 1, 2, "test", 5))[0]
    served.sessions.release("w", 1)
    assert await anext(served.sessions.tasks(session)) == task
    served.sessions.release("w", 2)
    assert await anext(served.sessions.tasks(session)) == WaitTask("round 2 waits for other workers")


async def test_a_download_goes_on_from_what_is_there(served: Served, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8192
    artifact = served.store.artifacts.add(ArtifactKind.SUB_MODEL, content)
    partial = tmp_path / f"{artifact.sha256}.part"
    partial.write_bytes(content[: CHUNK_BYTES + 7])
    path = await served.worker.download(artifact, tmp_path)
    assert path.read_bytes() == content
    (family,) = served.worker._metrics.transferred.collect()
    received = next(
        s.value
        for s in family.samples
        if s.name.endswith("_total") and s.labels == {"kind": "sub_model", "direction": "down"}
    )
    missing = len(content) - CHUNK_BYTES - 7
    assert missing < received < missing + 200


SECRET = (ArtifactKind.PLAN, ArtifactKind.UPDATE, ArtifactKind.SERVER_STATE, ArtifactKind.CORRECTED)


@pytest.mark.parametrize("kind", sorted(set(ArtifactKind) - set(SECRET)))
async def test_what_workers_need_can_be_fetched(served: Served, tmp_path: Path, kind: ArtifactKind) -> None:
    artifact = served.store.artifacts.add(kind, b"for workers")
    assert (await served.worker.download(artifact, tmp_path)).read_bytes() == b"for workers"


@pytest.mark.parametrize("kind", SECRET)
async def test_what_must_not_leave_cannot_be_fetched_even_by_its_digest(
    served: Served, tmp_path: Path, kind: ArtifactKind
) -> None:
    secret = served.store.artifacts.add(kind, b"secret")
    with pytest.raises(UnknownArtifact):
        await served.worker.download(secret, tmp_path)
    with pytest.raises(UnknownArtifact):
        await served.worker.download(ArtifactRef(kind, "0" * 64, 1), tmp_path)


async def test_the_owner_follows_events_and_unexpected_errors_tell_nothing(served: Served) -> None:
    served.events.record("kind", "what happened", 1, "w", figure=2.0)
    async with Admin(served.address) as admin:
        events = [event async for event, _ in _first(admin, 2)]
        assert [e.kind for e in events] == ["worker_joined", "kind"]
        assert events[1].values == {"figure": 2.0}
        with pytest.raises(PeerError, match="internal error"):
            await admin.status()


async def _first(admin: Admin, count: int) -> AsyncIterator[tuple[Any, int]]:
    number = 0
    async for event in admin.events():
        number += 1
        yield event, number
        if number == count:
            return


async def test_health_is_served(served: Served) -> None:
    async with new_channel(served.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", "fedpft.v1.FederationService", "fedpft.v1.AdminService"):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


async def test_goodbye_is_a_warning_while_the_run_goes_on_and_news_after_it(served: Served) -> None:
    await served.worker.leave("cannot go on: DataError")
    await served.worker.join()
    served.sessions.assign_all(StopTask(True, "the run is finished"))
    await served.worker.leave("the run is finished")
    told = [(e.kind, e.text) for e in served.store.events.all(0) if e.kind in ("worker_quit", "worker_left")]
    assert told == [
        ("worker_quit", "worker w left: cannot go on: DataError"),
        ("worker_left", "worker w left: the run is finished"),
    ]
