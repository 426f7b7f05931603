"""Who may call what, who may take part in this run, and what may leave it.

A caller is who its certificate says. Without TLS there is no telling, and everything is allowed to whoever
reaches the port: `common.transport.rpc` lets that happen on loopback only, or when the owner wants it.
"""

import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc
from grpc import aio

from common.errors import NotAllowed
from common.records import ArtifactKind
from common.transport.rpc import refuse
from common.trust.identity import Identity, Role
from common.trust.tls import Peer, Tls, peer_of

log = logging.getLogger(__name__)

_WORKERS = frozenset({Role.WORKER})
_OWNERS = frozenset({Role.ADMIN})
_ALL = frozenset(Role)

# Every call that is served. A test compares this with the services' descriptors; what is missing is refused.
MAY_CALL: Mapping[str, frozenset[Role]] = {
    "/fedpft.v1.FederationService/FindRun": _WORKERS,
    "/fedpft.v1.FederationService/DeclineRun": _WORKERS,
    "/fedpft.v1.FederationService/Join": _WORKERS,
    "/fedpft.v1.FederationService/DescribeRun": _WORKERS,
    "/fedpft.v1.FederationService/TellClasses": _WORKERS,
    "/fedpft.v1.FederationService/WatchTasks": _WORKERS,
    "/fedpft.v1.FederationService/Heartbeat": _WORKERS,
    "/fedpft.v1.FederationService/DownloadArtifact": _WORKERS,
    "/fedpft.v1.FederationService/OfferUpdate": _WORKERS,
    "/fedpft.v1.FederationService/SubmitUpdate": _WORKERS,
    "/fedpft.v1.FederationService/SubmitScores": _WORKERS,
    "/fedpft.v1.FederationService/OfferKeys": _WORKERS,
    "/fedpft.v1.FederationService/OfferShares": _WORKERS,
    "/fedpft.v1.FederationService/EndorseSurvivors": _WORKERS,
    "/fedpft.v1.FederationService/OpenShares": _WORKERS,
    "/fedpft.v1.FederationService/Leave": _WORKERS,
    "/fedpft.v1.AdminService/GetStatus": _OWNERS,
    "/fedpft.v1.AdminService/ReadStatus": _OWNERS,
    "/fedpft.v1.AdminService/WatchEvents": _OWNERS,
    "/fedpft.v1.AdminService/StopRun": _OWNERS,
    "/fedpft.v1.RunsService/SubmitRun": _OWNERS,
    "/fedpft.v1.RunsService/ListRuns": _OWNERS,
    "/fedpft.v1.RunsService/CancelRun": _OWNERS,
    "/fedpft.v1.RunsService/ResumeRun": _OWNERS,
    "/fedpft.v1.RunsService/ReadLog": _OWNERS,
    # That a service is up is no secret among those who have a certificate at all.
    "/grpc.health.v1.Health/Check": _ALL,
    "/grpc.health.v1.Health/List": _ALL,
    "/grpc.health.v1.Health/Watch": _ALL,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": _OWNERS,
}

# Only these ever leave; the plan, other workers' updates and the server optimiser's state do not. A kind
# that is new stays until somebody adds it here.
PUBLISHED = frozenset(
    {
        ArtifactKind.SUB_MODEL,
        ArtifactKind.NEURON_PATCH,
        ArtifactKind.ADAPTER,
        ArtifactKind.TOKENIZER,
        ArtifactKind.TOKENIZER_CONFIG,
        ArtifactKind.IMAGE_PROCESSOR,
        ArtifactKind.LABELS,
    }
)


class AuthorizationInterceptor(aio.ServerInterceptor):
    """Stands before every call of a server with TLS: certificate, role, then the servicer.

    A stream passes it again with each message, so that it ends soon after its caller is revoked.
    """

    def __init__(self, tls: Tls) -> None:
        self._tls = tls

    def require(self, method: str, peer: Peer | None) -> None:
        """Raise NotAllowed unless the peer may make this call now."""
        if peer is None:
            raise NotAllowed(f"{method} needs a certificate")
        self._tls.require_valid(peer)
        roles = MAY_CALL.get(method, frozenset())
        if peer.identity.role not in roles:
            allowed = " or ".join(sorted(roles)) or "nobody"
            raise NotAllowed(f"{method} is for the role {allowed}; the certificate is {peer.identity}'s")

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The call's handler, guarded; None for a call that nobody serves."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        coded = (handler.request_deserializer, handler.response_serializer)
        match handler.request_streaming, handler.response_streaming:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(self._call(method, handler.unary_unary), *coded)
            case False, True:
                return grpc.unary_stream_rpc_method_handler(self._any(method, handler.unary_stream), *coded)
            case True, False:
                return grpc.stream_unary_rpc_method_handler(self._call(method, handler.stream_unary), *coded)
        return grpc.stream_stream_rpc_method_handler(self._any(method, handler.stream_stream), *coded)

    def _any(self, method: str, behaviour: Callable[..., Any]) -> Any:
        """A streaming answer may be a generator, or a coroutine that writes to its context."""
        guard = self._stream if inspect.isasyncgenfunction(behaviour) else self._call
        return guard(method, behaviour)

    def _call(self, method: str, behaviour: Callable[..., Any]) -> Any:
        async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            await self._check(method, context)
            return await behaviour(self._requests(method, request, context), context)

        return guarded

    def _stream(self, method: str, behaviour: Callable[..., Any]) -> Any:
        async def guarded(request: Any, context: aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            await self._check(method, context)
            requests = self._requests(method, request, context)
            # Asked for once: it does not change while the call lasts, but it may be revoked.
            peer = peer_of(context)
            async with contextlib.aclosing(behaviour(requests, context)) as replies:
                async for reply in replies:
                    await self._check(method, context, peer)
                    yield reply

        return guarded

    def _requests(self, method: str, request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
        """A stream of requests that raises NotAllowed once its caller is revoked; a single one as it is."""
        if not hasattr(request, "__aiter__"):
            return request

        peer = peer_of(context)

        async def checked() -> AsyncIterator[Any]:
            async for message in request:
                self.require(method, peer)
                yield message

        return checked()

    async def _check(
        self, method: str, context: aio.ServicerContext[Any, Any], peer: Peer | None = None
    ) -> None:
        try:
            self.require(method, peer or peer_of(context))
        except NotAllowed as error:
            log.warning("refused %s from %s: %s", method, context.peer(), error)
            await refuse(context, error)


class Admission:
    """Which workers take part: those named, or, where none are, all that can connect."""

    def __init__(self, workers: Iterable[str] | None) -> None:
        self._workers = None if workers is None else frozenset(workers)

    def require(self, worker: str, context: aio.ServicerContext[Any, Any]) -> None:
        """Raise NotAllowed unless this run admits the worker, and the caller is it."""
        require_speaker(worker, context)
        if not self.admits(worker):
            raise NotAllowed(
                f"this run does not admit worker {worker!r}; its owner has to add it to admission.workers"
            )

    def admits(self, worker: str) -> bool:
        """Whether the worker may take part."""
        return self._workers is None or worker in self._workers


def require_speaker(worker: str, context: aio.ServicerContext[Any, Any]) -> None:
    """Raise NotAllowed unless the caller is this worker."""
    peer = peer_of(context)
    if peer is not None and peer.identity != Identity(Role.WORKER, worker):
        raise NotAllowed(
            f"the certificate is {peer.identity}'s and cannot speak for worker {worker!r}; "
            "leave out --name to go by the certificate's"
        )
