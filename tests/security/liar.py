"""A coordinator that says what it is made to say, over real sockets with TLS, and remembers what it hears."""

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fedpft.v1 import federation_pb2, federation_pb2_grpc
from grpc import StatusCode

from common.address import Address
from common.errors import FedPftError, UnknownSession
from common.model.ring_update import ring_schema, secure_round
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    JoinReply,
    JoinRequest,
    Progress,
    RunSpec,
    SubModelRef,
    Task,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
    UpdateHeader,
)
from common.secagg import member
from common.secagg.context import digest, threshold
from common.secagg.keeping import Dealt
from common.secagg.keys import Secrets
from common.secagg.news import Endorsements, Roster, Said, SecureNews, Sharers, Survivors
from common.secagg.records import Endorsement, Kind, PublicKeys, SecureRound
from common.secure_task import SecureSpec, SecureTask
from common.storage.schema import TensorSpec
from common.storage.tensors import write_tensors
from common.transport import secure_wire, wire
from common.transport.rpc import new_server, refuse
from common.trust.identity import Role
from common.trust.signing import signing, verifier
from common.trust.tls import Tls, TlsFiles, open_tls
from tests.security.guarded import COORDINATOR, Certificates
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.contact import Contact
from worker.metrics import Metrics
from worker.outbox import Outbox
from worker.secure import SecureDesk
from worker.secure_policy import SecurePolicy

ME = "a"
NAMES = ("a", "b", "c", "d")

SPEC = SecureSpec(3, 64, True, 1000, True)
RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("animals", "weather"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
    secure=SPEC,
)
ADAPTER = ArtifactRef(ArtifactKind.ADAPTER, "ab" * 32, 1234)
SUB_MODEL = SubModelRef("{}", (8,), replace(ADAPTER, kind=ArtifactKind.SUB_MODEL), (), ())
SCHEMA = {"x": TensorSpec((4,), torch.float32)}


class Liar(federation_pb2_grpc.FederationServiceServicer):
    """Takes everything from everybody."""

    def __init__(self) -> None:
        self.described: RunSpec = RUN
        self.joins_to: RunSpec = RUN
        self.refuses_join: FedPftError | None = None
        self.forgets = False
        """The next heartbeat's session is not known any more."""
        self.tells: asyncio.Queue[Task | SecureNews] = asyncio.Queue()
        self.joined: list[JoinRequest] = []
        self.said: list[Said] = []
        self.beats: list[Progress] = []
        self.updates: list[bytes] = []
        self.others: list[str] = []
        """Calls that tell something of this worker alone."""

    async def start(self, certificates: Certificates) -> Address:
        folder = certificates.folder / str(COORDINATOR).replace("/", "-")
        if not folder.exists():
            certificates.issue(COORDINATOR.role, COORDINATOR.name)
        files = TlsFiles.in_folder(folder)
        self.server, address = new_server(Address("127.0.0.1", 0), tls=Tls(files, Role.COORDINATOR))
        federation_pb2_grpc.add_FederationServiceServicer_to_server(self, self.server)
        await self.server.start()
        return address

    def contents(self, kind: type) -> list[Any]:
        """What was said of a kind."""
        return [said.content for said in self.said if isinstance(said.content, kind)]

    async def DescribeRun(self, request: Any, context: Any) -> Any:
        return federation_pb2.DescribeRunResponse(run=wire.run_spec_to_pb(self.described))

    async def Join(self, request: Any, context: Any) -> Any:
        self.joined.append(wire.join_request_from_pb(request))
        if self.refuses_join is not None:
            await refuse(context, self.refuses_join)
        return wire.join_reply_to_pb(JoinReply(f"session {len(self.joined)}", 6, self.joins_to, 0.05))

    async def WatchTasks(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            told = await self.tells.get()
            yield secure_wire.news_to_pb(told) if isinstance(told, SecureNews) else wire.task_to_pb(told)

    async def Heartbeat(self, request: Any, context: Any) -> Any:
        self.beats.append(wire.progress_from_pb(request.progress))
        return federation_pb2.HeartbeatResponse()

    async def Leave(self, request: Any, context: Any) -> Any:
        return federation_pb2.LeaveResponse()

    async def OfferUpdate(self, request: Any, context: Any) -> Any:
        if self.forgets:
            self.forgets = False
            await refuse(context, UnknownSession("forgotten"))
        self.updates.append(request.SerializeToString())
        return federation_pb2.OfferUpdateResponse()

    async def SubmitUpdate(self, request_iterator: Any, context: Any) -> Any:
        async for message in request_iterator:
            self.updates.append(message.SerializeToString())
        return federation_pb2.SubmitUpdateResponse()

    async def SubmitScores(self, request: Any, context: Any) -> Any:
        self.others.append("SubmitScores")
        return federation_pb2.SubmitScoresResponse()

    async def TellClasses(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.others.append("TellClasses")
        return
        yield

    async def DownloadArtifact(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await context.abort(StatusCode.NOT_FOUND, "nothing is served here")
        yield

    async def OfferKeys(self, request: Any, context: Any) -> Any:
        return self._heard(request)

    async def OfferShares(self, request: Any, context: Any) -> Any:
        return self._heard(request)

    async def EndorseSurvivors(self, request: Any, context: Any) -> Any:
        return self._heard(request)

    async def OpenShares(self, request: Any, context: Any) -> Any:
        return self._heard(request)

    def _heard(self, request: Any) -> Any:
        self.said.append(secure_wire.said_from_pb(request, ME))
        name = type(request).__name__.replace("Request", "Response")
        return getattr(secure_wire.secure_pb2, name)(duplicate=False)


def a_task(number: int = 1, attempt: int = 1, **changes: Any) -> TrainTask:
    """Asks four workers, of whom one may collude, so three must agree. `changes` are of its SecureTask."""
    task = TrainTask(number, SUB_MODEL, ADAPTER, 1.0, (), 60.0, attempt)
    told = {
        "drawn": NAMES,
        "electorate": NAMES,
        "colluding": 1,
        "threshold": threshold(4, 1),
        "minimum": 3,
        "clip": 8.0,
        "context": bytes(32),
    }
    secure = SecureTask(**(told | changes))  # type: ignore[arg-type]
    if "context" not in changes:
        within = secure_round(RUN, replace(task, secure=secure), ring_schema(SCHEMA, RUN, {}))
        secure = replace(secure, context=digest(within))
    return replace(task, secure=secure)


def within_of(task: TrainTask) -> SecureRound:
    return secure_round(RUN, task, ring_schema(SCHEMA, RUN, {}))


@dataclass
class Other:
    """Another worker, which plays fair, in the coordinator's hands only as far as it speaks to it."""

    secrets: Secrets
    keys: PublicKeys
    dealt: Dealt | None = None


@dataclass
class Scene:
    """Worker a's real desk and connection, a coordinator that lies, and three fair workers."""

    certificates: Certificates
    liar: Liar
    address: Address
    folder: Path
    pins: dict[str, str] | None = None
    task: TrainTask = field(default_factory=a_task)
    others: dict[str, Other] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.client = CoordinatorClient(
            Endpoint(self.address, 5.0, open_tls(self._folder(ME), Role.WORKER)),
            JoinRequest(ME, 1, 6, "test", 0),
            Metrics(),
        )
        self.client.seal()
        files = TlsFiles.in_folder(self._folder(ME))
        verify = verifier(files.authority, None, self.pins)
        self.policy = SecurePolicy(True, 3, lambda: signing(files), verify)
        self.restart()

    def _folder(self, name: str) -> Path:
        folder = self.certificates.folder / f"worker-{name}"
        return folder if folder.exists() else self.certificates.issue(Role.WORKER, name)

    def restart(self) -> None:
        """The worker's process begins anew, on its own disk."""
        self.outbox = Outbox(self.folder / "outbox")
        self.desk = SecureDesk(ME, RUN, self.client, self.outbox, self.folder / "secure", self.policy)
        self.contact = Contact(self.client, Metrics())
        self.contact.desk = self.desk

    @property
    def within(self) -> SecureRound:
        return within_of(self.task)

    # --- what is true ---

    def keys_of(self, name: str, within: SecureRound | None = None, of: Certificates | None = None) -> Other:
        """Fresh keys of another worker for the round."""
        folder = (of or self.certificates).folder / f"worker-{name}"
        if not folder.exists():
            folder = (of or self.certificates).issue(Role.WORKER, name)
        shown, secrets = signing(TlsFiles.in_folder(folder)), Secrets.generate()
        told = member.offer_keys(secrets, within or self.within, name, shown.sign, shown.certificate)
        return Other(secrets, told)

    async def keys(self) -> list[PublicKeys]:
        """Everybody's, as they were offered."""
        before = len(self.liar.contents(PublicKeys))
        await self.desk.begin(self.task, SCHEMA)
        mine = self.liar.contents(PublicKeys)[-1]
        assert len(self.liar.contents(PublicKeys)) > before
        self.others = {name: self.keys_of(name) for name in NAMES[1:]}
        return [mine, *(other.keys for other in self.others.values())]

    async def dealt(self) -> list[PublicKeys]:
        """Up to the shares; the roster."""
        roster = await self.keys()
        await self.desk.hear(self.news(Roster(tuple(roster))))
        for name, other in self.others.items():
            other.dealt = member.deal(other.secrets, self.within, name, roster)
        return roster

    def sharers(self, names: Collection[str] = NAMES[1:], to: str = ME) -> Sharers:
        """What these dealt to one."""
        offers = {name: self.others[name].dealt for name in names}
        sealed = {name: dealt.offer.sealed[to] for name, dealt in offers.items() if dealt is not None}
        digests = {
            name: (dealt.offer.digests[to, Kind.SELF], dealt.offer.digests[to, Kind.MASK])
            for name, dealt in offers.items()
            if dealt is not None
        }
        return Sharers(sealed, digests)

    async def masked(self) -> list[PublicKeys]:
        """Up to the masked update; the roster."""
        roster = await self.dealt()
        await self.desk.hear(self.news(self.sharers()))
        path = self.folder / "plain"
        write_tensors(path, {"delta.x": torch.tensor([1.0, -2.0, 3.0, 0.5])})
        header = UpdateHeader("", self.task.round, ADAPTER.sha256, 0, "", 20, 0.5, 1.0)
        self.desk.masked(header, path, 20)
        return roster

    def endorsements(
        self, roster: Sequence[PublicKeys], survivors: Sequence[str], by: Collection[str]
    ) -> tuple[Endorsement, ...]:
        """Of fair workers, and of a where it has given its own."""
        found = []
        for name in by:
            if name == ME:
                found.append(self.liar.contents(Endorsement)[-1])
                continue
            sign = signing(TlsFiles.in_folder(self._folder(name))).sign
            found.append(member.endorse(self.within, name, roster, NAMES, survivors, 3, sign))
        return tuple(found)

    # --- what is told ---

    def news(self, content: Any, **changes: Any) -> SecureNews:
        return replace(
            SecureNews(self.task.round, self.task.attempt, digest(self.within), content), **changes
        )

    def survivors(self, *names: str) -> SecureNews:
        return self.news(Survivors(names))

    def endorsed(self, endorsements: tuple[Endorsement, ...]) -> SecureNews:
        return self.news(Endorsements(endorsements))
