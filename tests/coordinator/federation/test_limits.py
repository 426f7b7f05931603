"""What a worker asks beyond the limits is refused with the reason; the round and the others go on."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fedpft.v1 import federation_pb2, federation_pb2_grpc
from grpc import aio

from common.address import Address
from common.errors import BadMessage, BadUpdate, BrokenTransfer, FedPftError, StoreError, TooMany, Unreachable
from common.model.update import update_schema
from common.records import ArtifactKind, JoinRequest, Progress, UpdateHeader, WaitTask
from common.storage.schema import schema_of
from common.storage.tensors import to_bytes
from common.transport import wire
from common.transport.chunks import CHUNK_BYTES, read_chunks
from common.transport.rpc import call, new_channel, new_server
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.worker_gathering import WorkerGathering
from coordinator.federation import service as service_module
from coordinator.federation.inbox import Expected, Inbox
from coordinator.federation.rounds import RoundState
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import Sessions
from coordinator.hosting.listening import register
from coordinator.owner.admin_service import AdminService
from coordinator.storage.store import Store, StoredUpdate
from tests.contexts import context
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics as WorkerMetrics

# Four chunks' worth.
VALUES = 500_000


class Served:
    """Services with round 1 open for the workers w and v, within given limits."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        settings = {f"limits.{name}": value for name, value in limits.items()}
        self.store = Store(folder / "run")
        self.run = context(self.store, settings)
        self.limits, self.events = self.run.config.limits, self.run.events
        self.adapter = self.store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.zeros(VALUES)})
        self.metrics, self.sessions = self.run.metrics, Sessions(1.0)
        self.inbox = Inbox(self.store, self.limits)
        self.workers: list[CoordinatorClient] = []
        self.channels: list[aio.Channel] = []

    async def __aenter__(self) -> "Served":
        self.server, self.address = new_server(Address("127.0.0.1", 0), most_calls=self.limits.calls)
        federation = FederationService(self.run, self.sessions, self.inbox)
        await register(self.server, federation, AdminService(lambda: None, self.events, print))  # type: ignore[arg-type, return-value]
        await self.server.start()
        schema = schema_of({"x": torch.zeros(VALUES)})
        state = RoundState(1, frozenset({"w", "v"}), 1, closes_at=1e12)
        self.inbox.open(state, Expected(self.adapter, update_schema(schema, self.run.spec.adapter, {})))
        return self

    async def __aexit__(self, *exit: object) -> None:
        for worker in self.workers:
            await worker.close()
        for channel in self.channels:
            await channel.close()
        self.sessions.close()
        self.events.close()
        await self.server.stop(0.1)
        self.store.close()

    async def worker(self, name: str = "w", examples: int = 5) -> CoordinatorClient:
        """A real worker's connection, that does not try for long."""
        worker = CoordinatorClient(
            Endpoint(self.address, 0.3), JoinRequest(name, 1, 2, "test", examples), WorkerMetrics()
        )
        self.workers.append(worker)
        await worker.join()
        return worker

    def stub(self) -> Any:
        """For calls that no worker would make."""
        self.channels.append(channel := new_channel(self.address))
        return federation_pb2_grpc.FederationServiceStub(channel)

    def update(self, folder: Path, tensors: dict[str, torch.Tensor]) -> tuple[UpdateHeader, Path]:
        path = folder / "update"
        path.write_bytes(to_bytes(tensors))
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        return UpdateHeader("", 1, self.adapter.sha256, len(content), digest, 5, 0.5, 1.0), path

    def good(self, folder: Path, value: float = 1.0) -> tuple[UpdateHeader, Path]:
        return self.update(folder, {"delta.x": torch.full((VALUES,), value)})

    def refused(self, error: type[FedPftError]) -> float:
        """How many updates were refused for this reason, as the metric says."""
        value = self.metrics.registry.get_sample_value("fedpft_updates_total", {"result": error.__name__})
        return value or 0.0


async def test_a_worker_without_examples_cannot_join_where_their_number_counts(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        with pytest.raises(BadMessage, match="at least one example"):
            await served.worker(examples=0)


# --- updates ---


@pytest.mark.parametrize("more", [-2048, 2048])
async def test_an_update_of_another_size_is_refused_by_its_header(tmp_path: Path, more: int) -> None:
    async with Served(tmp_path) as served:
        header, path = served.update(tmp_path, {"delta.x": torch.ones(VALUES + more)})
        with pytest.raises(BadUpdate, match="2000000 bytes and a header"):
            await (await served.worker()).submit(header, path)
        assert served.store.artifacts.spooled() == []
        assert served.refused(BadUpdate) == 1


async def test_tensors_that_do_not_fit_are_refused_at_the_first_chunk_though_the_size_is_right(
    tmp_path: Path,
) -> None:
    async with Served(tmp_path) as served:
        header, path = served.update(tmp_path, {"delta.y": torch.ones(VALUES)})
        worker = await served.worker()
        sent = 0

        async def stream() -> AsyncIterator[federation_pb2.SubmitUpdateRequest]:
            nonlocal sent
            named = wire.header_to_pb(header)
            named.session = worker._session
            yield federation_pb2.SubmitUpdateRequest(header=named)
            for chunk in read_chunks(path):
                sent += len(chunk.data)
                yield federation_pb2.SubmitUpdateRequest(chunk=wire.chunk_to_pb(chunk))
                # The rest comes only when nobody has objected by then.
                await asyncio.sleep(5)

        with pytest.raises(BadUpdate, match=r"delta\.x is missing"):
            await call(served.stub().SubmitUpdate(stream()))
        assert sent <= CHUNK_BYTES < header.size
        assert served.store.artifacts.spooled() == []
        # A real worker learns why in any case: the second time its offer is refused at once.
        with pytest.raises(BadUpdate, match=r"delta\.x is missing"):
            await worker.submit(header, path)


async def test_another_worker_is_served_while_one_is_refused_and_hears_why(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        bad = served.update(tmp_path, {"delta.x": torch.full((VALUES,), torch.nan)})
        with pytest.raises(BadUpdate, match="NaN"):
            await (await served.worker("w")).submit(*bad)
        assert served.inbox.state is not None and served.inbox.state.missing == {"v"}
        assert "NaN" in served.inbox.state.over["w"].reason
        # What was refused may be mended, as long as the round is open for others.
        assert await served.workers[0].submit(*served.good(tmp_path)) is False
        assert served.inbox.state.received == {"w"}
        assert await (await served.worker("v")).submit(*served.good(tmp_path)) is False


async def test_a_round_takes_only_so_many_different_updates_of_a_worker(tmp_path: Path) -> None:
    async with Served(tmp_path, updates_per_round=2) as served:
        worker = await served.worker()
        for value in (1.0, 2.0):
            await worker.submit(*served.good(tmp_path, value))
        with pytest.raises(BadUpdate, match="2 different updates"):
            await worker.submit(*served.good(tmp_path, 3.0))
        assert await worker.submit(*served.good(tmp_path, 2.0)) is True
        (kept,) = served.store.updates(1)
        assert kept.sha256 == served.good(tmp_path, 2.0)[0].sha256


async def test_a_run_with_its_share_of_the_disk_taken_takes_no_update(tmp_path: Path) -> None:
    async with Served(tmp_path, disk_gigabytes=0.003) as served:
        with pytest.raises(Unreachable, match=r"0\.00 GB on disk, limits\.disk_gigabytes"):
            await (await served.worker()).submit(*served.good(tmp_path))
        assert served.refused(StoreError) >= 1
        assert served.store.artifacts.spooled() == []


async def test_who_is_refused_again_and_again_does_not_fill_the_journal(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        worker = await served.worker()
        bad = served.update(tmp_path, {"delta.x": torch.ones(4)})
        for _ in range(15):
            with pytest.raises(BadUpdate):
                await worker.submit(*bad)
        told = [e for e in served.store.events.all() if e.kind == "update_refused"]
        assert len(told) == 10
        assert served.refused(BadUpdate) == 15


async def test_a_slow_upload_is_broken_off_and_keeps_what_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STALL_SECONDS", 0.4)
    async with Served(tmp_path, upload_bytes_per_second=1e9) as served:
        header, path = served.good(tmp_path)
        worker = await served.worker()

        async def drip() -> AsyncIterator[federation_pb2.SubmitUpdateRequest]:
            named = wire.header_to_pb(header)
            named.session = worker._session
            yield federation_pb2.SubmitUpdateRequest(header=named)
            for chunk in read_chunks(path, chunk_bytes=1000):
                yield federation_pb2.SubmitUpdateRequest(chunk=wire.chunk_to_pb(chunk))
                # Never still for long, and never done.
                await asyncio.sleep(0.1)

        # Who is cut off in the middle of a message may hear of that alone.
        with pytest.raises((BrokenTransfer, Unreachable)):
            await call(served.stub().SubmitUpdate(drip()))
        assert served.refused(BrokenTransfer) == 1
        assert "slower than" in served.store.events.all()[-1].text
        assert served.inbox.held("w", header) >= 1000
        assert await worker.submit(header, path) is False


# --- calls and streams ---


async def test_a_download_that_nobody_reads_does_not_keep_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "STALL_SECONDS", 0.5)
    async with Served(tmp_path) as served:
        large = served.store.artifacts.add(ArtifactKind.SUB_MODEL, bytes(32 * 2**20))
        small = served.store.artifacts.add(ArtifactKind.ADAPTER, b"for workers")
        hog, healthy = await served.worker("w"), await served.worker("v")
        request = federation_pb2.DownloadArtifactRequest(session=hog._session, sha256=large.sha256)
        # As many as there are places; their flow control stops after the first chunks.
        calls = [served.stub().DownloadArtifact(request) for _ in range(2)]
        for waiting in calls:
            await waiting.read()
        async with asyncio.timeout(20):
            assert (await healthy.download(small, tmp_path)).read_bytes() == b"for workers"
        for waiting in calls:
            waiting.cancel()


async def test_a_worker_has_only_so_many_streams_and_the_others_have_theirs(tmp_path: Path) -> None:
    async with Served(tmp_path, streams=2) as served:
        one, other = await served.worker("w"), await served.worker("v")
        stub = served.stub()
        open_ones = [
            stub.WatchTasks(federation_pb2.WatchTasksRequest(session=one._session)) for _ in range(2)
        ]
        for stream in open_ones:
            await stream.read()
        with pytest.raises(TooMany, match="2 streams open"):
            await call(stub.WatchTasks(federation_pb2.WatchTasksRequest(session=one._session)).read())
        theirs = stub.WatchTasks(federation_pb2.WatchTasksRequest(session=other._session))
        assert (await theirs.read()).HasField("wait")
        open_ones[0].cancel()
        async with asyncio.timeout(10):
            while True:
                again = stub.WatchTasks(federation_pb2.WatchTasksRequest(session=one._session))
                try:
                    await call(again.read())
                    break
                except TooMany:
                    continue
        for stream in (*open_ones, theirs, again):
            stream.cancel()


async def test_calls_in_a_rush_are_turned_away_and_the_other_worker_is_not(tmp_path: Path) -> None:
    async with Served(tmp_path, calls_per_second=2) as served:
        hasty, calm = await served.worker("w"), await served.worker("v")
        stub = served.stub()
        progress = wire.progress_to_pb(Progress())

        async def beat(worker: CoordinatorClient) -> bool:
            request = federation_pb2.HeartbeatRequest(session=worker._session, progress=progress)
            try:
                await call(stub.Heartbeat(request))
            except TooMany:
                return False
            return True

        taken = [await beat(hasty) for _ in range(60)]
        assert all(taken[:19])
        assert not all(taken)
        assert await beat(calm)


async def test_a_server_with_all_its_calls_taken_turns_more_away_as_for_a_while(tmp_path: Path) -> None:
    async with Served(tmp_path, calls=1) as served:
        worker = await served.worker("w")
        watching = served.stub().WatchTasks(federation_pb2.WatchTasksRequest(session=worker._session))
        await watching.read()
        with pytest.raises(Unreachable):
            await call(served.stub().Heartbeat(federation_pb2.HeartbeatRequest(session=worker._session)))
        watching.cancel()


async def test_too_many_examples_or_workers_may_not_join(tmp_path: Path) -> None:
    async with Served(tmp_path, examples=100, workers=2) as served:
        with pytest.raises(BadMessage, match=r"101 examples, limits\.examples allows 100"):
            await served.worker("w", 101)
        await served.worker("w", 100)
        await served.worker("v")
        with pytest.raises(Unreachable, match="2 workers have joined"):
            await served.worker("x")
        await served.worker("w")


async def test_a_number_of_examples_that_no_database_holds_is_a_bad_message(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        with pytest.raises(BadMessage):
            await served.worker("w", 2**64 - 1)


# --- at the end of a round ---


async def test_an_update_far_larger_than_the_others_is_set_aside_and_its_worker_told(tmp_path: Path) -> None:
    async with Served(tmp_path) as served:
        aggregation = served.run.config.aggregation.model_copy(update={"norm_limit": 5.0})
        run = replace(served.run, config=served.run.config.model_copy(update={"aggregation": aggregation}))
        gathering = WorkerGathering(run, RunProgress(run), served.sessions, served.inbox)
        await served.worker("b")
        for worker, value in (("a", 1.0), ("b", 30.0), ("c", 1.1)):
            header, path = served.good(tmp_path, value)
            served.store.artifacts.place(path, header.sha256)
            served.store.commit_update(1, StoredUpdate(worker, header.sha256, 5, 0.5, 1.0), header.size)
        assert await gathering._set_aside_and_told(1, frozenset("abc")) == {"b"}
        assert await gathering._set_aside_and_told(1, frozenset("ab")) == frozenset()
        (told,) = [e for e in served.store.events.all() if e.kind == "update_set_aside"]
        assert (told.worker, told.round) == ("b", 1)
        task = await anext(served.sessions.tasks(served.sessions.all()[0]))
        assert isinstance(task, WaitTask) and "set aside" in task.reason
        value = run.metrics.registry.get_sample_value("fedpft_updates_total", {"result": "set-aside"})
        assert value == 1
