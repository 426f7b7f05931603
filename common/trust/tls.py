"""Mutual TLS: what a side shows, whom it trusts, and who is at the other end.

Files are read anew when they change, so that certificates and the list of revoked ones are renewed without
a restart. What does not fit together, such as a new certificate beside the old key, is not taken: the files
of before stay in use until it does.
"""

import functools
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import grpc
from cryptography import x509
from grpc import aio

from common.errors import CertificateError, NotAllowed
from common.trust.certificates import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    belong_together,
    identity_of,
    issued_by,
    parse_certificate,
    parse_key,
    read,
    read_authorities,
    read_revocations,
)
from common.trust.identity import Identity, Role

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class TlsFiles:
    """Where a side's certificate, key and authority are, and the list of revoked certificates."""

    certificate: Path
    key: Path
    authority: Path
    revoked: Path | None = None

    @classmethod
    def in_folder(cls, folder: Path) -> "TlsFiles":
        """Those that `fedpft certs issue` writes."""
        return cls(folder / CERTIFICATE, folder / KEY, folder / AUTHORITY)


@dataclass(frozen=True)
class _Credentials:
    """The files' contents, as PEM, that fit together; and who they make this side."""

    certificate: bytes
    key: bytes
    authority: bytes
    identity: Identity


@dataclass(frozen=True)
class Peer:
    """The other end of a connection, by its certificate, which the handshake has checked."""

    identity: Identity
    serial: int
    expires: datetime


class Watched(Generic[T]):
    """What `read` makes of files, made anew when they changed. Raises CertificateError the first time."""

    def __init__(self, files: Iterable[Path], read: Callable[[], T]) -> None:
        self._files, self._read = tuple(files), read
        self._lock = threading.Lock()
        self._seen = self._stamps()
        self._value = read()

    def get(self) -> T:
        """The newest that fits together."""
        with self._lock:
            stamps = self._stamps()
            if stamps != self._seen:
                # A half that was replaced is looked at again when the other half is, too.
                self._seen = stamps
                try:
                    self._value = self._read()
                    log.info("read anew: %s", ", ".join(map(str, self._files)))
                except CertificateError as error:
                    log.warning("what was read before stays in use: %s", error)
            return self._value

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._files]


class Tls:
    """One side's end of mutual TLS, for a role. May be used from any thread.

    Raises CertificateError when the files are missing, broken, do not fit together, are out of date, or
    are another role's.
    """

    def __init__(self, files: TlsFiles, role: Role) -> None:
        self.files, self._role = files, role
        self._credentials = Watched((files.certificate, files.key, files.authority), self._read_credentials)
        # Apart from the others: a renewal that went wrong must not keep a revocation from counting.
        self._revoked = Watched([files.revoked] if files.revoked else [], self._read_revoked)

    @property
    def identity(self) -> Identity:
        """Who this side is."""
        return self._credentials.get().identity

    def version(self) -> object:
        """Equal as long as the files hold the same; a channel of another version is to be replaced."""
        return self._credentials.get()

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that demands a client's certificate; asked for what is new at each handshake."""
        shown = self._credentials.get()

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            # None while nothing is: gRPC would replace what other threads' handshakes still use, and a
            # burst of connections would end the process (grpc/grpc#36693).
            nonlocal shown
            current = self._credentials.get()
            if current is shown:
                return None
            shown = current
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(shown),
            renewed,  # type: ignore[arg-type]  # its stubs do not know of None
            require_client_authentication=True,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel; it keeps them, so that a renewal needs a new channel."""
        current = self._credentials.get()
        return grpc.ssl_channel_credentials(current.authority, current.key, current.certificate)

    def require_valid(self, peer: Peer) -> None:
        """Raise NotAllowed when the peer's certificate has run out or was revoked since the handshake."""
        if peer.serial in self._revoked.get():
            raise NotAllowed(f"the certificate of {peer.identity} is revoked; ask for a new one")
        if peer.expires <= datetime.now(UTC):
            raise NotAllowed(f"the certificate of {peer.identity} has expired; ask for a new one")

    def _read_credentials(self) -> _Credentials:
        files = self.files
        shown, key, trusted = read(files.certificate), read(files.key), read(files.authority)
        certificate = parse_certificate(shown, files.certificate)
        if not belong_together(certificate, parse_key(key, files.key)):
            raise CertificateError(f"{files.key} is not the key of {files.certificate}")
        identity = identity_of(certificate)
        if identity.role is not self._role:
            raise CertificateError(
                f"{files.certificate} is {identity}'s; a certificate of role {self._role} is needed"
            )
        if not any(issued_by(certificate, authority) for authority in read_authorities(files.authority)):
            raise CertificateError(f"{files.certificate} was not issued by {files.authority}")
        _require_in_date(certificate, files.certificate)
        return _Credentials(shown, key, trusted, identity)

    def _read_revoked(self) -> frozenset[int]:
        if self.files.revoked is None:
            return frozenset()
        listed = read_revocations(self.files.revoked, read_authorities(self.files.authority))
        return frozenset(entry.serial_number for entry in listed)


def _configuration(current: _Credentials) -> grpc.ServerCertificateConfiguration:
    pair = (current.key, current.certificate)
    return grpc.ssl_server_certificate_configuration([pair], current.authority)


class ServerOnlyTls:
    """A server's end where callers have no certificate yet: enrolment."""

    def __init__(self, certificate: bytes, key: bytes) -> None:
        """Both PEM."""
        self._pair = key, certificate

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a server that asks for no client's certificate."""
        return grpc.ssl_server_credentials([self._pair])


class GuestTls:
    """A caller's end that has no certificate yet, but knows the authority's."""

    def __init__(self, authority: bytes) -> None:
        """The authority's certificate, PEM."""
        self._authority = authority

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For a channel to a server of this authority, and to no other."""
        return grpc.ssl_channel_credentials(self._authority)


def open_tls(folder: Path | None, role: Role) -> Tls | None:
    """TLS with the files that `fedpft certs issue` wrote to `folder`; None for plain text.

    Raises CertificateError.
    """
    return None if folder is None else Tls(TlsFiles.in_folder(folder), role)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _require_in_date(certificate: x509.Certificate, path: Path) -> None:
    now = datetime.now(UTC)
    if now >= certificate.not_valid_after_utc:
        raise CertificateError(f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise CertificateError(
            f"{path} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on; "
            "set this host's clock"
        )


def peer_of(context: aio.ServicerContext[Any, Any]) -> Peer | None:
    """Who calls, by the certificate of the connection; None on a connection without TLS.

    Raises NotAllowed for a certificate that tells no identity.
    """
    found = context.auth_context().get("x509_pem_cert")
    if not found:
        return None
    return _peer(bytes(next(iter(found))))


@functools.lru_cache(maxsize=4096)
def _peer(pem: bytes) -> Peer:
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        identity = identity_of(certificate)
    except CertificateError as error:
        raise NotAllowed(str(error)) from None
    return Peer(identity, certificate.serial_number, certificate.not_valid_after_utc)
