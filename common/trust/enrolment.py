"""Invitations: how somebody without a certificate gets one, for a key that never leaves its holder.

The owner makes an invitation and brings it to its guest by a safe way. It holds a secret that works once,
where to use it, and the authority's certificate, so that the guest knows at first contact whom it talks to.
Beside the authority only the secret's SHA-256 is kept: who reads the authority's folder can use no
invitation.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.address import Address
from common.errors import CertificateError, NotAllowed
from common.storage.files import sync_folder
from common.trust.authority import HOLDER_DAYS, Authority, new_folder, write_holder, write_new
from common.trust.certificates import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    belong_together,
    identity_of,
    issued_by,
    parse_certificate,
    read,
)
from common.trust.identity import Identity, Role

INVITATION_HOURS = 72
# A request for a P-521 key with every attribute that a tool may add stays far below.
MAX_REQUEST_BYTES = 8192

_INVITED = "invited"
_SECRET_BYTES = 32
_MAX_INVITATION_BYTES = 64 << 10


@dataclass(frozen=True)
class Invitation:
    """What a guest gets. Secret until it is used."""

    identity: Identity
    address: Address
    """Where the enrolment service is."""
    authority: bytes
    """The authority's certificate, PEM."""
    secret: str

    def write(self, path: Path) -> None:
        """To a file of the owner's alone, which must not be there yet. Raises CertificateError."""
        content = {
            "identity": str(self.identity),
            "address": str(self.address),
            "authority": self.authority.decode(),
            "secret": self.secret,
        }
        new_folder(path.parent)
        write_new(path, json.dumps(content, indent=1).encode() + b"\n", 0o600)

    @classmethod
    def read(cls, path: Path) -> "Invitation":
        """Raises CertificateError, AddressError."""
        content = read(path)
        try:
            if len(content) > _MAX_INVITATION_BYTES:
                raise ValueError(f"{len(content)} bytes")
            told: dict[str, Any] = json.loads(content)
            identity, address, authority, secret = (
                str(told[name]) for name in ("identity", "address", "authority", "secret")
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CertificateError(
                f"{path} holds no invitation; the run's owner makes one by `fedpft certs invite`"
            ) from error
        parse_certificate(authority.encode(), path)
        return cls(Identity.parse(identity), Address.of_peer(address), authority.encode(), secret)


class Invitations:
    """The owner's side: who is invited by an authority, and who has come.

    A file for each invitation, named by its secret's SHA-256. Used, it holds the certificate's serial number.
    """

    def __init__(self, authority: Authority, folder: Path) -> None:
        """`folder` is the authority's."""
        self._authority, self._folder = authority, folder / _INVITED

    def invite(
        self,
        identity: Identity,
        address: Address,
        hours: float = INVITATION_HOURS,
        days: int = HOLDER_DAYS,
    ) -> Invitation:
        """An invitation that works once within so many hours, for a certificate of so many days.

        Raises CertificateError, also for a coordinator: its hosts' names are for the owner to say.
        """
        if identity.role is Role.COORDINATOR:
            raise CertificateError(
                "a coordinator is not invited; make its certificate by `fedpft certs issue`"
            )
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        expires = datetime.now(UTC) + timedelta(hours=hours)
        content = {"identity": str(identity), "expires": expires.isoformat(), "days": days}
        new_folder(self._folder)
        write_new(self._path(secret), json.dumps(content).encode(), 0o600)
        pem = self._authority.certificate.public_bytes(serialization.Encoding.PEM)
        return Invitation(identity, address, pem, secret)

    def enrol(self, secret: str, signing_request: bytes) -> x509.Certificate:
        """The certificate of the request's key, with the invitation's role and name.

        A guest whose answer was lost asks again with the same key and gets the same certificate. Raises
        NotAllowed for an invitation that is unknown, over, or used for another key, CertificateError for what
        is no signing request. Not to be called from two threads at once.
        """
        key = key_of(signing_request)
        path = self._path(secret)
        try:
            told: Mapping[str, Any] = json.loads(read(path))
        except (CertificateError, ValueError):
            # The same for one that never was: what is not known cannot be told apart.
            raise NotAllowed("this invitation is not known here; ask the run's owner for one") from None
        identity = Identity.parse(told["identity"])
        if (serial := told.get("serial")) is not None:
            certificate = self._authority.copy_of(int(serial, 16))
            if certificate.public_key() == key:
                return certificate
            raise NotAllowed(f"the invitation of {identity} is used up; if not by you, tell the run's owner")
        if datetime.fromisoformat(told["expires"]) <= datetime.now(UTC):
            raise NotAllowed(f"the invitation of {identity} is over since {told['expires'][:16]} UTC")
        certificate = self._authority.certify(identity, key, days=told["days"])
        self._used(path, {**told, "serial": f"{certificate.serial_number:x}"})
        return certificate

    def _used(self, path: Path, content: Mapping[str, Any]) -> None:
        """Durably, before the certificate goes out: an invitation must not come back to life."""
        new = path.with_suffix(".new")
        new.unlink(missing_ok=True)
        write_new(new, json.dumps(content).encode(), 0o600)
        try:
            new.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise CertificateError(f"cannot write {path}: {error.strerror or error}") from error

    def _path(self, secret: str) -> Path:
        # By digest: no part of what somebody sends names a file, and finding one takes as long as not.
        return self._folder / f"{hashlib.sha256(secret.encode()).hexdigest()}.json"


def key_of(signing_request: bytes) -> ec.EllipticCurvePublicKey:
    """The key that a request asks a certificate for, and whose owner signed it. Raises CertificateError."""
    if len(signing_request) > MAX_REQUEST_BYTES:
        raise CertificateError(f"a signing request has at most {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_pem_x509_csr(signing_request)
        key, signed = request.public_key(), request.is_signature_valid
    except Exception as error:  # What a parser raises for bytes of a stranger's is not all documented.
        raise CertificateError("this is no certificate signing request in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.key_size < 256:
        raise CertificateError("the signing request's key must be of an elliptic curve of 256 bits or more")
    if not signed:
        raise CertificateError("the signing request is not signed by its key")
    return key


class Candidate:
    """The guest's side: a key of its own in a folder, and what it makes of the answer."""

    def __init__(self, invitation: Invitation, out: Path) -> None:
        """Makes the key, or takes the one that an attempt before left. Raises CertificateError."""
        self._invitation, self._out = invitation, out
        for file in (CERTIFICATE, KEY, AUTHORITY):
            if (out / file).exists():
                raise CertificateError(f"{out / file} is there already; choose another folder (--out)")
        self._pending = out / f"{KEY}.pending"
        if not self._pending.exists():
            new_folder(out)
            made = ec.generate_private_key(ec.SECP256R1())
            form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            write_new(self._pending, made.private_bytes(serialization.Encoding.PEM, form, plain), 0o600)
        try:
            key = serialization.load_pem_private_key(read(self._pending), password=None)
        except (ValueError, TypeError) as error:
            raise CertificateError(f"{self._pending} holds no key; remove it") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError(f"{self._pending} holds a key of another kind; remove it")
        self._key = key

    def request(self) -> bytes:
        """A signing request for the key, PEM."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._invitation.identity.name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def accept(self, pem: bytes) -> x509.Certificate:
        """Check the certificate and write the holder's three files. Raises CertificateError."""
        origin = str(self._invitation.address)
        certificate = parse_certificate(pem, origin)
        authority = parse_certificate(self._invitation.authority, "the invitation")
        if not belong_together(certificate, self._key):
            raise CertificateError(f"{origin} answered with a certificate of another key")
        if identity_of(certificate) != self._invitation.identity:
            raise CertificateError(f"{origin} answered with a certificate of {identity_of(certificate)}")
        if not issued_by(certificate, authority):
            raise CertificateError(f"{origin} answered with a certificate of another authority")
        write_holder(self._out, self._key, certificate, authority)
        self._pending.unlink()
        return certificate
