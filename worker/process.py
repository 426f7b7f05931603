"""A worker as a process: read the data, connect, work, end cleanly on signals."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from common.address import Address, require_loopback
from common.errors import CertificateError, NotAllowed, Stopped
from common.observability.metrics_endpoint import open_metrics
from common.observability.tracing import exporting
from common.protocol import PROTOCOL_MAX, PROTOCOL_MIN
from common.records import JoinRequest
from common.runtime import fault_points
from common.runtime.allocator import set_up_allocator
from common.runtime.compute import ComputeThread
from common.runtime.signals import taken
from common.secagg.records import LEAST_WORKERS
from common.storage.files import locked
from common.transport.rpc import KEEPALIVE_SECONDS
from common.transport.wire import worker_name
from common.trust.signing import signing, verifier
from common.trust.tls import Tls
from worker.absence import Absence
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.data import Source
from worker.download_limits import MOST_DOWNLOAD_BYTES
from worker.fresh import Fresh
from worker.history import History
from worker.local_model import Place
from worker.metrics import Metrics
from worker.policy import Policy
from worker.privacy_policy import PrivacyPolicy
from worker.rest import Rest
from worker.secure_files import SecureFiles
from worker.secure_policy import SecurePolicy
from worker.sent_log import SentLog
from worker.staying import Staying
from worker.taking_part import Means, take_part_once

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SecureOptions:
    """What this worker's owner asks of secure aggregation."""

    required: bool = False
    floor: int = LEAST_WORKERS
    peers: Mapping[str, str] | None = None
    """Fingerprints of the other workers' keys, by name; None: whoever the authority certifies."""
    forget_opening: bool = False


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is started with; times in seconds."""

    coordinator: str
    data: Source
    name: str
    folder: Path = Path("worker")
    join_timeout: float = 300.0
    metrics: str | None = None
    insecure: bool = False
    device: str = "cpu"
    threads: int | None = None
    keepalive: float = KEEPALIVE_SECONDS
    tls: Tls | None = None
    max_download: int = MOST_DOWNLOAD_BYTES
    tells_classes: bool = True
    secure: SecureOptions = SecureOptions()
    privacy: PrivacyPolicy = field(default_factory=PrivacyPolicy)
    policy: Path | None = None
    """File of what the owner of the data allows; None: everything."""
    stay: bool = False
    """Whether it takes part in run after run."""


async def work(options: WorkerOptions) -> signal.Signals | None:
    """Run a worker until its run is over, or for ever if it stays; returns the signal that ended it before,
    if one did.

    Raises DataError, ConfigError, AddressError, CertificateError, NotAllowed, StoreError, Unreachable,
    ProtocolMismatch, SessionReplaced, NameTaken, RunFailed.
    """
    set_up_allocator()
    fault_points.arm(os.environ)
    if options.threads:
        torch.set_num_threads(options.threads)
    address = Address.of_peer(options.coordinator)
    name = worker_name(options.name)
    if options.tls is None:
        require_loopback(address, options.insecure)
    elif options.tls.identity.name != name:
        raise CertificateError(
            f"the certificate is {options.tls.identity}'s, not worker/{name}'s; leave out --name"
        )
    # Another folder alone would not do: no two workers of a run can have one name.
    instead = "give this worker its own --name and its own --folder"
    with locked(options.folder, f"worker {name}", instead), exporting("fedpft-worker", name):
        return await _work_in_folder(options, name, address)


async def _work_in_folder(options: WorkerOptions, name: str, address: Address) -> signal.Signals | None:
    if options.secure.forget_opening:
        await asyncio.to_thread(SecureFiles(options.folder / "secure").forget_history)
        log.warning("forgot what this worker has opened: a sum that it was in could be opened again")
    fresh = Fresh(options.data, name, options.policy)
    data = fresh.data
    log.info("%d private examples in %s", len(data), data.examples.source)
    for note in data.notes:
        log.warning("%s", note)
    if aside := len(data.validation or ()):
        log.info("%d further examples are kept aside, to score on", aside)
    metrics = Metrics()
    serving = open_metrics(options.metrics, metrics.registry, options.insecure)
    compute = ComputeThread()
    sent = SentLog(options.folder)
    absence = Absence(address, metrics) if options.stay else None
    endpoint = Endpoint(address, options.join_timeout, options.tls, options.keepalive, absence)
    means = Means(name, endpoint, compute, metrics, sent, History(options.folder))
    place, client = partial(_place, options, fresh, address), partial(_client, means, fresh)
    work = Staying(means, fresh, place, client).run() if options.stay else _once(means, fresh, place, client)
    ended_by: signal.Signals | None = None
    task = asyncio.create_task(work)

    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        nonlocal ended_by
        log.info("stopping: %s; again to end at once", number.name)
        ended_by = number
        compute.stop()
        loop.call_soon_threadsafe(task.cancel)

    with taken(on_signal):
        try:
            with contextlib.suppress(asyncio.CancelledError, Stopped):
                await task
        finally:
            compute.close()
            sent.close()
            serving.close()
    return ended_by


async def _once(
    means: Means, fresh: Fresh, place: Callable[[], Place], client: Callable[[], CoordinatorClient]
) -> None:
    """Of a worker that ends with its run. Raises NotAllowed in quiet hours, and what `Worker.run` does."""
    if why := place().rest.why():
        raise NotAllowed(f"this worker's policy: {why}; start it later, or with --stay, which waits")
    coordinator = client()
    try:
        await take_part_once(means, place(), fresh.data, coordinator, fresh.state)
    finally:
        await coordinator.close()


def _client(means: Means, fresh: Fresh) -> CoordinatorClient:
    """A connection of a worker with the data that there are now."""
    data, software = fresh.data, version("fedpft")
    aside = len(data.validation or ())
    joining = JoinRequest(means.name, PROTOCOL_MIN, PROTOCOL_MAX, software, len(data), validation=aside)
    return CoordinatorClient(means.endpoint, joining, means.metrics, means.sent)


def _place(options: WorkerOptions, fresh: Fresh, address: Address) -> Place:
    """Where the worker works, and what its owner allows now, by options and policy.

    Raises CertificateError.
    """
    policy, privacy = fresh.policy, options.privacy
    wanted = policy.privacy
    if wanted.epsilon is not None and (privacy.epsilon is None or wanted.epsilon < privacy.epsilon):
        privacy = replace(privacy, epsilon=wanted.epsilon, named="privacy.epsilon of the policy")
    return Place(
        options.folder,
        torch.device(options.device),
        options.max_download,
        options.tells_classes,
        _secure(options, policy),
        privacy,
        policy,
        Rest.of(policy, options.folder),
        str(address),
    )


def _secure(options: WorkerOptions, policy: Policy) -> SecurePolicy:
    """Raises CertificateError."""
    asked, tls = options.secure, options.tls
    # Who names its peers wants nobody else to see its updates.
    required = asked.required or asked.peers is not None or policy.privacy.secure
    if tls is None:
        return SecurePolicy(required, asked.floor)
    verify = verifier(tls.files.authority, tls.files.revoked, asked.peers)
    return SecurePolicy(required, asked.floor, partial(signing, tls.files), verify)
