"""Every call that is served × every kind of caller, over real sockets. Descriptors tell the calls."""

import importlib
import pkgutil
from collections.abc import AsyncIterator
from typing import Any

import fedpft.v1
import grpc
import pytest
import pytest_asyncio
from fedpft.v1 import admin_pb2, federation_pb2, runs_pb2, runs_pb2_grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from common.transport.rpc import _ERROR_KEY
from common.trust.identity import Role
from coordinator.federation.authorization import MAY_CALL
from tests.security.guarded import COORDINATOR, Certificates, Guarded

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES: tuple[ServiceDescriptor, ...] = tuple(
    service
    for module in (federation_pb2, admin_pb2, runs_pb2, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
)
CALLS: tuple[MethodDescriptor, ...] = tuple(m for service in SERVICES for m in service.methods)
OF_WORKERS = federation_pb2.DESCRIPTOR.services_by_name["FederationService"].methods_by_name

# What is decided per service, said once more: a new service is missing here and fails, as does a new call
# in `MAY_CALL`.
FOR = {
    "fedpft.v1.FederationService": {Role.WORKER},
    "fedpft.v1.AdminService": {Role.ADMIN},
    "fedpft.v1.RunsService": {Role.ADMIN},
    "grpc.health.v1.Health": set(Role),
    "grpc.reflection.v1alpha.ServerReflection": {Role.ADMIN},
}

# What is only taken in an open round.
SUBMISSIONS = ("OfferUpdate", "SubmitUpdate", "SubmitScores")
SECURE_CALLS = ("OfferKeys", "OfferShares", "EndorseSurvivors", "OpenShares")

# Callers by what is wrong with them, and how they are refused: before a call is possible, or at the call.
REFUSED = {
    "no certificate": StatusCode.UNAVAILABLE,
    "plain text": StatusCode.UNAVAILABLE,
    "another authority": StatusCode.UNAVAILABLE,
    "expired": StatusCode.UNAVAILABLE,
    "a coordinator's certificate": StatusCode.UNAVAILABLE,
    "revoked worker": StatusCode.PERMISSION_DENIED,
    "revoked admin": StatusCode.PERMISSION_DENIED,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    certificates = Certificates(folder / "certs")
    other = Certificates(folder / "other")
    files = certificates.server_files(certificates.issue(COORDINATOR.role, COORDINATOR.name))
    for name in ("a", "b", "stranger", "gone"):
        certificates.issue(Role.WORKER, name)
    for name in ("owner", "a", "gone"):
        certificates.issue(Role.ADMIN, name)
    certificates.issue(Role.WORKER, "a", "expired", lived=True)
    other.issue(Role.WORKER, "a")
    for role in ("worker", "admin"):
        certificates.authority.revoke(f"{role}/gone")
    running = Guarded(certificates, files)
    await running.start(folder)
    yield running
    await running.stop()


def caller(guarded: Guarded, kind: str) -> aio.Channel:
    folder = guarded.certificates.folder
    address = str(guarded.address)
    match kind:
        case "no certificate":
            trusted = (folder / "authority" / "ca.crt").read_bytes()
            return aio.secure_channel(address, grpc.ssl_channel_credentials(trusted))
        case "plain text":
            return aio.insecure_channel(address)
        case "another authority":
            return guarded.channel(folder.parent / "other" / "worker-a")
    named = {
        "expired": "expired",
        "a coordinator's certificate": f"coordinator-{COORDINATOR.name}",
        "revoked worker": "worker-gone",
        "revoked admin": "admin-gone",
    }
    return guarded.channel(folder / named.get(kind, kind))


def request_for(call: MethodDescriptor, session: str, worker: str) -> Message:
    """A request of the call's type that is worker a's in every field that says whose it is."""
    message: Any = GetMessageClass(call.input_type)()
    fields = call.input_type.fields_by_name
    if "session" in fields:
        message.session = session
    if "worker" in fields:
        message.worker = worker
    if "state" in fields:
        message.state = "as it was"
    if "examples" in fields:
        message.examples = 5
    if "protocol_max" in fields:
        message.protocol_min, message.protocol_max = 1, 2
    if "progress" in fields:
        message.progress.activity = 1
    if "adapter_sha256" in fields:
        message.adapter_sha256 = "0" * 64
    if "header" in fields:
        message.header.session = session
        message.header.sha256 = message.header.adapter_sha256 = "0" * 64
        message.header.round, message.header.examples, message.header.size = 1, 5, 10
    if "context" in fields:
        message.context = bytes(32)
    if "keys" in fields:
        for part in ("channel", "mask", "commitment"):
            setattr(message.keys, part, bytes(32))
        message.keys.worker = worker
    if "list_services" in fields:
        message.list_services = ""
    return message


async def attempt(channel: aio.Channel, call: MethodDescriptor, request: Message) -> StatusCode:
    """How the call is answered; OK also for a stream whose first message came.

    A refusal may arrive while this side still writes its stream: gRPC's own client then reports the broken
    write, INTERNAL, in the answer's place. No server of ours says that without naming its error, so such a
    call is made again, as a worker makes it.
    """
    for _ in range(5):
        code, named = await _once(channel, call, request)
        if named or not call.client_streaming or code is not StatusCode.INTERNAL:
            break
    return code


async def _once(channel: aio.Channel, call: MethodDescriptor, request: Message) -> tuple[StatusCode, bool]:
    """How the call is answered, and whether the answer names an error of ours."""
    path = f"/{call.containing_service.full_name}/{call.name}"
    reply_type = GetMessageClass(call.output_type)
    coders = (type(request).SerializeToString, reply_type.FromString)
    one: Any = iter([request]) if call.client_streaming else request
    try:
        match call.client_streaming, call.server_streaming:
            case False, False:
                await channel.unary_unary(path, *coders)(one, timeout=10)
            case True, False:
                await channel.stream_unary(path, *coders)(one, timeout=10)
            case False, True:
                stream = channel.unary_stream(path, *coders)(one, timeout=10)
                await stream.read()
                stream.cancel()
            case True, True:
                both = channel.stream_stream(path, *coders)(one, timeout=10)
                await both.read()
                both.cancel()
    except aio.AioRpcError as error:
        return error.code(), _ERROR_KEY in dict(error.trailing_metadata() or ())
    return StatusCode.OK, False


async def worker_a(guarded: Guarded) -> str:
    """A session of worker a, which did nothing wrong."""
    connection = guarded.worker(guarded.certificates.folder / "worker-a", "a")
    await connection.join()
    session = connection._session
    await connection.close()
    return session


def cases(*callers: str, calls: tuple[MethodDescriptor, ...] = CALLS) -> list[Any]:
    return [pytest.param(kind, call, id=f"{kind}-{call.name}") for kind in callers for call in calls]


@pytest.mark.parametrize(("kind", "call"), cases(*REFUSED))
async def test_who_has_no_good_certificate_is_refused(
    guarded: Guarded, kind: str, call: MethodDescriptor
) -> None:
    session = await worker_a(guarded)
    async with caller(guarded, kind) as channel:
        assert await attempt(channel, call, request_for(call, session, "a")) is REFUSED[kind]
    assert guarded.stops == []


@pytest.mark.parametrize(("kind", "call"), cases("worker-a", "admin-owner"))
async def test_a_role_may_call_what_is_for_it_and_nothing_else(
    guarded: Guarded, kind: str, call: MethodDescriptor
) -> None:
    session = await worker_a(guarded)
    allowed = Role(kind.partition("-")[0]) in FOR[call.containing_service.full_name]
    async with caller(guarded, kind) as channel:
        code = await attempt(channel, call, request_for(call, session, "a"))
    if allowed:
        # There is no such artifact, no open round and no such run; and the library's health service has no
        # List.
        expected = {
            "DownloadArtifact": StatusCode.NOT_FOUND,
            "SubmitRun": StatusCode.INVALID_ARGUMENT,
            "CancelRun": StatusCode.NOT_FOUND,
            "ResumeRun": StatusCode.NOT_FOUND,
            "ReadLog": StatusCode.NOT_FOUND,
            "List": StatusCode.UNIMPLEMENTED,
        } | dict.fromkeys((*SUBMISSIONS, *SECURE_CALLS), StatusCode.FAILED_PRECONDITION)
        assert code is expected.get(call.name, StatusCode.OK)
    else:
        assert code is StatusCode.PERMISSION_DENIED
    assert bool(guarded.stops) is (allowed and call.name == "StopRun")
    guarded.stops.clear()


@pytest.mark.parametrize(
    ("kind", "call"),
    cases("worker-b", "worker-stranger", "admin-a", calls=tuple(OF_WORKERS.values())),
)
async def test_nobody_speaks_for_a_worker_but_itself(
    guarded: Guarded, kind: str, call: MethodDescriptor
) -> None:
    """With worker a's session and name: another worker, one that the run does not admit, a namesake."""
    session = await worker_a(guarded)
    async with caller(guarded, kind) as channel:
        code = await attempt(channel, call, request_for(call, session, "a"))
    assert code is StatusCode.PERMISSION_DENIED
    # And worker a did not notice: its session lives.
    async with caller(guarded, "worker-a") as channel:
        beat = OF_WORKERS["Heartbeat"]
        assert await attempt(channel, beat, request_for(beat, session, "a")) is StatusCode.OK


async def test_a_worker_that_the_run_does_not_admit_cannot_join_as_itself(guarded: Guarded) -> None:
    join = OF_WORKERS["Join"]
    async with caller(guarded, "worker-stranger") as channel:
        refused = await attempt(channel, join, request_for(join, "", "stranger"))
    assert refused is StatusCode.PERMISSION_DENIED
    assert "stranger" not in {session.worker for session in guarded.sessions.all()}


async def test_artifacts_go_only_to_a_live_session_of_an_admitted_worker(guarded: Guarded) -> None:
    """Knowing an artifact's digest is not enough, and what a worker may have ends with its session."""
    download = OF_WORKERS["DownloadArtifact"]

    def request(session: str) -> Any:
        message: Any = request_for(download, session, "a")
        message.sha256 = guarded.adapter.sha256
        return message

    async with caller(guarded, "worker-a") as channel:
        assert await attempt(channel, download, request("")) is StatusCode.UNAUTHENTICATED
        assert await attempt(channel, download, request("made up")) is StatusCode.UNAUTHENTICATED
        replaced, session = await worker_a(guarded), await worker_a(guarded)
        assert await attempt(channel, download, request(session)) is StatusCode.OK
        assert await attempt(channel, download, request(replaced)) is StatusCode.ABORTED
        leave = OF_WORKERS["Leave"]
        assert await attempt(channel, leave, request_for(leave, session, "a")) is StatusCode.OK
        assert await attempt(channel, download, request(session)) is StatusCode.UNAUTHENTICATED
    for stranger in ("worker-b", "worker-stranger", "admin-owner"):
        session = await worker_a(guarded)
        async with caller(guarded, stranger) as channel:
            assert await attempt(channel, download, request(session)) is StatusCode.PERMISSION_DENIED


async def test_every_served_call_has_a_decision(guarded: Guarded) -> None:
    """What the server says it serves, against the table."""
    async with caller(guarded, "admin-owner") as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        async for reply in stub.ServerReflectionInfo(iter([request])):
            served = {service.name for service in reply.list_services_response.service}
    assert served == {service.full_name for service in SERVICES}
    assert set(MAY_CALL) == {f"/{call.containing_service.full_name}/{call.name}" for call in CALLS}
    assert {name: set(MAY_CALL[name]) for name in MAY_CALL} == {
        f"/{call.containing_service.full_name}/{call.name}": FOR[call.containing_service.full_name]
        for call in CALLS
    }


async def test_no_service_of_the_protocol_is_forgotten() -> None:
    found = set()
    for module in pkgutil.iter_modules(fedpft.v1.__path__, "fedpft.v1."):
        if module.name.endswith("_pb2"):
            found |= set(importlib.import_module(module.name).DESCRIPTOR.services_by_name.values())
    # Served where the authority is, to who has no certificate: tests/security/test_enrolment.py.
    enrolment = {service for service in found if service.full_name == "fedpft.v1.EnrolmentService"}
    assert {service.name for service in enrolment} == {"EnrolmentService"}
    assert [method.name for service in enrolment for method in service.methods] == ["Enrol"]
    assert {s.full_name for s in found - enrolment} == {
        s.full_name for s in SERVICES if s.full_name.startswith("fedpft.")
    }


async def test_a_call_without_a_decision_is_refused(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(MAY_CALL, "/fedpft.v1.AdminService/GetStatus")  # type: ignore[arg-type]
    status = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].methods_by_name["GetStatus"]
    async with caller(guarded, "admin-owner") as channel:
        assert await attempt(channel, status, admin_pb2.GetStatusRequest()) is StatusCode.PERMISSION_DENIED


async def test_a_run_is_its_submitters_by_certificate_and_all_admins_see_it(guarded: Guarded) -> None:
    text = '[model]\npath = "./fm"\n[task]\nlabels = ["a", "b"]\n[alignment]\nsteps = 0\n'
    request = runs_pb2.SubmitRunRequest(request="ab" * 16, configuration=text, label="mine")
    async with caller(guarded, "admin-owner") as channel:
        stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
        run = (await stub.SubmitRun(request, timeout=10)).run
        # Its answer was lost: asked for again.
        assert (await stub.SubmitRun(request, timeout=10)).run == run
    async with caller(guarded, "admin-a") as channel:
        stub = runs_pb2_grpc.RunsServiceStub(channel)
        found = [entry async for entry in stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=10)]
        await stub.CancelRun(runs_pb2.CancelRunRequest(run=run), timeout=10)
        after = [entry async for entry in stub.ListRuns(runs_pb2.ListRunsRequest(), timeout=10)]
    assert [(entry.run, entry.submitter, entry.label) for entry in found] == [(run, "admin/owner", "mine")]
    assert [(entry.state, entry.reason) for entry in after] == [
        (runs_pb2.RUN_STATE_CANCELLED, "cancelled by admin/a")
    ]
