"""The channel to the coordinator, made anew when this worker's certificate is renewed."""

import logging
from dataclasses import dataclass
from typing import Any

from fedpft.v1 import federation_pb2, federation_pb2_grpc
from grpc import aio

from common.address import Address
from common.transport.chunk_messages import decode_download, encode_submission
from common.transport.rpc import KEEPALIVE_SECONDS, new_channel
from common.trust.tls import Tls
from worker.absence import Absence

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where the coordinator is, and how to reach it; times in seconds."""

    address: Address
    patience: float
    """How long on end it may be out of reach before the worker gives up."""
    tls: Tls | None = None
    keepalive: float = KEEPALIVE_SECONDS
    absence: Absence | None = None
    """Of a worker that stays: it waits for the coordinator, however long that takes."""


class Connection:
    """Stubs of the federation service; connects lazily."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channels: list[aio.Channel] = []
        self._connect()

    async def close(self) -> None:
        """Close the connection."""
        for channel in self._channels:
            await channel.close()

    def _connect(self) -> None:
        tls = self._endpoint.tls
        self.shown = tls.version() if tls else None
        """Which version of the certificate the newest channel shows."""
        channel: Any = new_channel(self._endpoint.address, self._endpoint.keepalive, tls)
        # An earlier one stays open: calls may be under way on it, and closing would cancel their tasks.
        self._channels.append(channel)
        self._newest: Any = federation_pb2_grpc.FederationServiceStub(channel)
        # As generated, but without copies of the chunks' content.
        path = f"/{federation_pb2.DESCRIPTOR.services_by_name['FederationService'].full_name}"
        self._newest.DownloadArtifact = channel.unary_stream(
            f"{path}/DownloadArtifact",
            federation_pb2.DownloadArtifactRequest.SerializeToString,
            decode_download,
        )
        self._newest.SubmitUpdate = channel.stream_unary(
            f"{path}/SubmitUpdate",
            encode_submission,
            federation_pb2.SubmitUpdateResponse.FromString,
        )

    @property
    def stub(self) -> Any:
        """The stub to call by: after a renewal of the certificate, one that shows the new."""
        self.renew()
        return self._newest

    def renew(self) -> None:
        """Connect anew if the certificate has been renewed."""
        tls = self._endpoint.tls
        if tls is not None and tls.version() != self.shown:
            log.info("the certificate was renewed; connecting anew")
            self._connect()
