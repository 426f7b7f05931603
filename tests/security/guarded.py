"""A coordinator's services behind mutual TLS on a real socket, and certificates of every kind for callers."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import grpc
import torch
from grpc import aio

from common.address import Address
from common.config.serving import ServeConfig
from common.records import ArtifactKind, JoinRequest, Phase
from common.run_status import RunStatus
from common.transport.decoding import Decoding
from common.transport.rpc import new_server
from common.trust import authority as authority_module
from common.trust.authority import REVOKED, Authority
from common.trust.identity import Identity, Role
from common.trust.tls import Tls, TlsFiles, open_tls
from coordinator.federation.authorization import AuthorizationInterceptor
from coordinator.federation.inbox import Inbox
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import Sessions
from coordinator.hosting.catalogue import Catalogue
from coordinator.hosting.host import Host
from coordinator.hosting.listening import register
from coordinator.hosting.runs_service import RunsService
from coordinator.owner.admin_service import AdminService
from coordinator.storage.store import Store
from tests.contexts import context
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.metrics import Metrics as WorkerMetrics

COORDINATOR = Identity(Role.COORDINATOR, "hub")


class Certificates:
    """An authority and the folders that it filled, by ROLE-NAME."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "authority", "test")

    @property
    def revoked(self) -> Path:
        """The revocation list."""
        return self.folder / "authority" / REVOKED

    def issue(self, role: Role, name: str, out: str | None = None, lived: bool = False) -> Path:
        """A new key and certificate; `lived`: one whose time is over."""
        folder = self.folder / (out or f"{role}-{name}")
        now = datetime.now(UTC)
        past = (now - timedelta(days=2), now - timedelta(seconds=1))
        period = past if lived else (now - timedelta(minutes=5), now + timedelta(days=1))
        with patch.object(authority_module, "_period", lambda _: period):
            self.authority.issue(Identity(role, name), folder)
        return folder

    def server_files(self, folder: Path) -> TlsFiles:
        """What a coordinator is configured with."""
        files = TlsFiles.in_folder(folder)
        return TlsFiles(files.certificate, files.key, files.authority, self.revoked)


class Guarded:
    """The services of a coordinator that admits workers a and b, listening with TLS."""

    def __init__(self, certificates: Certificates, files: TlsFiles) -> None:
        self.certificates = certificates
        self.tls = Tls(files, Role.COORDINATOR)
        self.stops: list[str] = []

    async def start(self, folder: Path) -> None:
        self.store = Store(folder / "run")
        self.adapter = self.store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.zeros(4)})
        run = context(self.store, {"admission.workers": ("a", "b"), "rounds.workers": 2})
        self.run, self.events = run, run.events
        self.sessions, self.inbox = Sessions(1.0), Inbox(self.store)
        self.server, self.address = new_server(
            Address("127.0.0.1", 0),
            tls=self.tls,
            interceptors=[AuthorizationInterceptor(self.tls), Decoding()],
        )
        federation = FederationService(run, self.sessions, self.inbox)
        admin = AdminService(self._status, self.events, self.stops.append)
        runs = RunsService(Host(ServeConfig(), Catalogue(folder / "runs")))
        await register(self.server, federation, admin, runs)
        await self.server.start()

    def _status(self) -> RunStatus:
        return RunStatus("run", Phase.WAITING, 0, 1, "", 0, 0, (), (), (), None, "", "")

    async def stop(self) -> None:
        self.sessions.close()
        self.events.close()
        await self.server.stop(0.2)
        self.store.close()

    def channel(self, folder: Path) -> aio.Channel:
        """A channel that shows the certificate in `folder`, whatever that is worth."""
        files = TlsFiles.in_folder(folder)
        credentials = grpc.ssl_channel_credentials(
            (self.certificates.folder / "authority" / "ca.crt").read_bytes(),
            files.key.read_bytes(),
            files.certificate.read_bytes(),
        )
        return aio.secure_channel(str(self.address), credentials)

    def worker(self, folder: Path, name: str, patience: float = 1.0) -> CoordinatorClient:
        """A real worker's connection."""
        joining = JoinRequest(name, 1, 2, "test", 5)
        return CoordinatorClient(
            Endpoint(self.address, patience, open_tls(folder, Role.WORKER)), joining, WorkerMetrics()
        )
