"""Many runs in one server: real processes over real sockets, on a small random BERT."""

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fedpft.v1 import federation_pb2, federation_pb2_grpc

from common.errors import ProtocolMismatch, RunFailed, UnknownRun, UnknownSession, Unreachable
from common.hosted_runs import RunState
from common.protocol import PROTOCOL_MAX
from common.records import JoinRequest, RunSpec
from common.run_offers import FindRequest
from common.transport import offer_wire, wire
from common.transport.rpc import RUN_KEY, call, new_channel
from common.trust.identity import Role
from coordinator.campaign.status import open_run, stored_status
from tests.integration.federation import federation
from tests.integration.serving import Serving
from tests.security.guarded import Certificates
from tests.services import call as run_command

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


@pytest.mark.slow
def test_a_run_that_fails_or_is_cancelled_harms_no_other_and_the_queue_goes_by_priority(
    tmp_path: Path, model_folder: Path
) -> None:
    serving = Serving(tmp_path, model_folder, ("--at-once", "2"))
    serving.runs.mkdir()
    try:
        serving.start()
        good = serving.submit(serving.configuration(A))
        waits = serving.submit(serving.configuration((8, 9)))
        late = serving.submit(serving.configuration((8, 9)))
        broken = serving.submit(
            serving.configuration((8, 9), model__path=str(tmp_path / "nowhere")), priority=5
        )
        # Two are open, and `good` is the first; the others wait.
        assert serving.wait_for(waits, RunState.RUNNING).began
        entries = serving.entries()
        assert [entries[run].state for run in (good, late, broken)] == [
            RunState.RUNNING,
            RunState.QUEUED,
            RunState.QUEUED,
        ]
        with pytest.raises(UnknownRun):
            serving.cancel("nothing")
        serving.cancel(waits)
        with pytest.raises(RunFailed, match="has ended already: it is cancelled"):
            serving.cancel(waits)
        # Younger, but more urgent; and it fails by itself.
        for _ in serving.until("the broken run has failed"):
            if (entry := serving.entries()[broken]).state.over:
                break
        assert entry.state is RunState.FAILED and "nowhere" in entry.reason
        assert serving.wait_for(late, RunState.RUNNING).began >= entry.ended
        serving.cancel(late)
        for number in A:
            serving.start_worker(number)
        finished = serving.wait_for(good, RunState.FINISHED)
        assert finished.facts.round == 2 and finished.facts.score.startswith("accuracy ")
        assert serving.processes["server"].poll() is None
        # What is told of each is there after a restart, too, and nothing begins again.
        serving.processes["server"].send_signal(signal.SIGTERM)
        assert serving.processes["server"].wait() == 0
        serving.start()
        states = {run: entry.state for run, entry in serving.entries().items()}
        assert states == {
            good: RunState.FINISHED,
            waits: RunState.CANCELLED,
            late: RunState.CANCELLED,
            broken: RunState.FAILED,
        }
        # Mended, it goes on.
        shutil.copytree(model_folder, tmp_path / "nowhere")
        serving.resume(broken)
        for number in (8, 9):
            serving.start_worker(number)
        assert serving.wait_for(broken, RunState.FINISHED).reason == ""
    finally:
        serving.end()


@pytest.mark.slow
def test_admins_submit_watch_and_read_by_the_commands_with_tls(serving: Serving) -> None:
    certificates = Certificates(serving.folder / "certificates")
    certificates.issue(Role.COORDINATOR, "hub")
    certificates.issue(Role.ADMIN, "owner")
    for number in A:
        certificates.issue(Role.WORKER, f"worker-{number}")
    serving.certificates = certificates.folder
    address = str(serving.start())
    (serving.folder / "mine.toml").write_text(serving.configuration(A))

    def typed(*arguments: str, code: int = 0) -> str:
        found, told = run_command(
            "cli", *arguments, "--coordinator", address, "--tls", str(certificates.folder / "admin-owner")
        )
        assert found == code, told
        return told

    run = typed("submit", str(serving.folder / "mine.toml"), "--set", "rounds.count=1").split()[-1]
    serving.wait_for(run, RunState.RUNNING)
    assert "phase" in typed("status", "--run", run)
    listed = json.loads(typed("runs", "--json"))
    assert [(each["run"], each["label"], each["submitter"], each["facts"]["rounds"]) for each in listed] == [
        (run, "mine", "admin/owner", 1)
    ]
    for number in A:
        serving.start_worker(number)
    lines = [json.loads(line) for line in typed("logs", run, "--follow").splitlines()]
    assert {line["run"] for line in lines} == {run}
    assert any("finished: adapter" in line["message"] for line in lines)
    assert "finished" in typed("runs")
    assert "finished" in typed("status", "--run", run)
    assert "has ended already" in typed("cancel", run, code=1)
    told = typed("submit", str(serving.folder / "mine.toml"), "--set", "rounds.count=0", code=2)
    assert "rounds.count must be >= 1, got 0" in told and "Traceback" not in told
    assert "does not hold run" in typed("logs", "nothing", code=2)
    typed("stop")
    assert serving.processes["server"].wait() == 0


@pytest.mark.slow
def test_a_run_beyond_its_quota_fails_with_a_line(tmp_path: Path, model_folder: Path) -> None:
    serving = Serving(tmp_path, model_folder, ("--run-quota", "100000"))
    serving.runs.mkdir()
    try:
        serving.start()
        run = serving.submit(serving.configuration(A))
        for _ in serving.until("the run has failed"):
            if (entry := serving.entries()[run]).state.over:
                break
        assert entry.state is RunState.FAILED
        assert "runs.run_quota allows 0.1 MB" in entry.reason
    finally:
        serving.end()


@pytest.mark.slow
def test_the_same_submission_is_one_run_and_another_of_the_same_text_is_another(serving: Serving) -> None:
    serving.start()
    text = serving.configuration(A)
    first = serving.submit(text, request="a" * 32)
    assert serving.submit(text, request="a" * 32) == first
    assert serving.submit(text) != first
    assert len(serving.entries()) == 2


@pytest.mark.slow
def test_staying_workers_go_from_run_to_run_and_each_is_in_one_at_a_time(
    tmp_path: Path, model_folder: Path
) -> None:
    """Three runs, two at a time, and only as many workers as one of them needs."""
    serving = Serving(tmp_path, model_folder, ("--at-once", "2"))
    serving.runs.mkdir()
    try:
        serving.start()
        for number in A:
            serving.start_worker(number, "--stay")
        same = {"run__seed": 7, "admission__workers": ["worker-1", "worker-2"]}
        runs = [serving.submit(serving.configuration(A, **same)) for _ in range(3)]
        for run in runs:
            serving.wait_for(run, RunState.FINISHED)
        assert len({digest(serving.runs / run) for run in runs}) == 1
        assert [serving.processes[f"worker-{number}"].poll() for number in A] == [None, None]
    finally:
        serving.end()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_call_goes_to_the_run_that_it_names_and_a_worker_leaves_one_for_another(
    serving: Serving,
) -> None:
    address = await asyncio.to_thread(serving.start)
    settings = {"admission__workers": ["worker-1", "worker-2", "worker-3"]}
    texts = [serving.configuration(A, run__seed=seed, **settings) for seed in (7, 8)]
    runs = [await asyncio.to_thread(serving.submit, text) for text in texts]
    for run in runs:
        await asyncio.to_thread(serving.wait_for, run, RunState.RUNNING)
    async with new_channel(address) as channel:
        stub: Any = federation_pb2_grpc.FederationServiceStub(channel)

        async def joined(run: str, newest: int = PROTOCOL_MAX) -> Any:
            asked = JoinRequest("worker-1", 1, newest, "test", 5, process="p")
            about = ((RUN_KEY, run),) if run else ()
            return await call(stub.Join(wire.join_request_to_pb(asked), metadata=about, timeout=20))

        async def offered() -> str:
            asked = FindRequest("worker-1", 1, PROTOCOL_MAX, "test", "state")
            stream = stub.FindRun(offer_wire.find_request_to_pb(asked), timeout=20)
            found = offer_wire.found_from_pb(await stream.read())
            stream.cancel()
            assert isinstance(found, RunSpec)
            return found.run_id

        async def beat(session: str, run: str = "") -> None:
            request = federation_pb2.HeartbeatRequest(session=session)
            request.progress.activity = 1
            about = ((RUN_KEY, run),) if run else ()
            await call(stub.Heartbeat(request, metadata=about, timeout=20))

        # Both are open, of the same priority, and nobody is there: the older one.
        for _ in serving.until("both are open"):
            with suppress(Unreachable):
                with pytest.raises(ProtocolMismatch, match=r"holds 2 runs.*update the worker"):
                    await joined("", newest=6)
                break
        assert await offered() == runs[0]
        assert (await joined(runs[1])).run.run_id == runs[1]
        # Where it is, before where workers lack.
        assert await offered() == runs[1]
        first = (await joined(runs[0])).session
        assert await offered() == runs[0]
        listed = await asyncio.to_thread(serving.entries)
        assert {run: entry.facts.workers for run, entry in listed.items()} == {runs[0]: 1, runs[1]: 0}
        # By its session alone, as a worker of before calls.
        await beat(first)
        await beat(first, runs[0])
        with pytest.raises(UnknownSession):
            await beat(first, runs[1])
        with pytest.raises(UnknownSession, match="join again"):
            await beat("made up")
        with pytest.raises(UnknownRun, match="does not hold run 'nothing'"):
            await joined("nothing")
        await asyncio.to_thread(serving.cancel, runs[1])
        with pytest.raises(UnknownRun, match="is cancelled: cancelled"):
            await joined(runs[1])
        for _ in serving.until("one run is open"):
            with suppress(ProtocolMismatch):
                assert (await joined("", newest=6)).run.run_id == runs[0]
                break
