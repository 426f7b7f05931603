"""First contact: an invitation for a certificate."""

from cryptography import x509
from fedpft.v1 import enrolment_pb2 as pb
from fedpft.v1 import enrolment_pb2_grpc

from common.errors import Unreachable
from common.transport.rpc import call, new_channel
from common.trust.enrolment import Candidate, Invitation
from common.trust.tls import GuestTls

_SECONDS = 30.0


async def enrol(invitation: Invitation, candidate: Candidate) -> x509.Certificate:
    """Get the candidate's certificate, and write it.

    Raises CertificateError, NotAllowed, TooMany, Unreachable.
    """
    channel = new_channel(invitation.address, tls=GuestTls(invitation.authority))
    async with channel:
        stub: enrolment_pb2_grpc.EnrolmentServiceAsyncStub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        request = pb.EnrolRequest(secret=invitation.secret, signing_request=candidate.request())
        try:
            reply = await call(stub.Enrol(request, timeout=_SECONDS))
        except Unreachable as error:
            hint = f"the owner's `fedpft certs serve` must be running at {invitation.address}; then try again"
            raise Unreachable(f"{error}; {hint}") from error
    return candidate.accept(reply.certificate)
