"""The enrolment service: invitations in, certificates out. It runs where the authority's key is."""

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fedpft.v1 import enrolment_pb2 as pb
from fedpft.v1 import enrolment_pb2_grpc
from grpc import aio

from common.address import Address
from common.errors import BadMessage
from common.transport.rpc import answers, new_server
from common.trust.authority import Authority
from common.trust.enrolment import MAX_REQUEST_BYTES, Invitations
from common.trust.identity import Identity, Role
from common.trust.tls import ServerOnlyTls
from coordinator.federation.rate_limits import RateLimiter

log = logging.getLogger(__name__)

# Nobody enrols by the hundred: what a host may ask for in the long run, and all of them at once.
_CALLS_PER_SECOND = 1.0
_CALLS = 64
_MAX_SECRET = 200


class EnrolmentService(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Answers who has an invitation."""

    def __init__(self, invitations: Invitations) -> None:
        self._invitations = invitations
        self._rate_limiter = RateLimiter(_CALLS_PER_SECOND, _CALLS)

    @answers
    async def Enrol(
        self, request: pb.EnrolRequest, context: aio.ServicerContext[Any, Any]
    ) -> pb.EnrolResponse:
        """An invitation and a signing request for a certificate."""
        host = context.peer().rpartition(":")[0]
        self._rate_limiter.call(host)
        if len(request.secret) > _MAX_SECRET or len(request.signing_request) > MAX_REQUEST_BYTES:
            raise BadMessage("the secret or the signing request is too long")
        # On the loop, so one at a time: an invitation is used once. It takes a millisecond.
        certificate = self._invitations.enrol(request.secret, request.signing_request)
        log.info("certificate %x for a guest at %s", certificate.serial_number, host)
        return pb.EnrolResponse(certificate=certificate.public_bytes(serialization.Encoding.PEM))


async def serve(
    authority: Authority, invitations: Invitations, address: Address, names: tuple[str, ...]
) -> None:
    """Serve until cancelled. `names` are those under which guests reach this host.

    Raises CertificateError, AddressError.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = authority.certify(Identity(Role.COORDINATOR, "enrolment"), key.public_key(), names)
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    tls = ServerOnlyTls(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, form, plain),
    )
    server, bound = new_server(address, tls=tls, most_calls=_CALLS)
    enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(EnrolmentService(invitations), server)
    await server.start()
    log.info("enrolment at %s until %s", bound, certificate.not_valid_after_utc.astimezone(UTC).date())
    left = (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds()
    try:
        await asyncio.sleep(left)
    finally:
        await server.stop(1.0)
