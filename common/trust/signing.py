"""Signatures by the keys of workers' certificates, and whose certificate another worker believes."""

import hashlib
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from common.errors import CertificateError, ConfigError
from common.trust.certificates import (
    belong_together,
    identity_of,
    issued_by,
    parse_key,
    read,
    read_authorities,
    read_certificate,
    read_revocations,
)
from common.trust.identity import Identity, Role
from common.trust.tls import TlsFiles, Watched

# (worker, certificate as DER, message, signature); raises CertificateError.
Verifier = Callable[[str, bytes, bytes, bytes], None]

_FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)


@dataclass(frozen=True)
class Signing:
    """A worker's certificate (DER), and signatures by its key."""

    certificate: bytes
    sign: Callable[[bytes], bytes]


def signing(files: TlsFiles) -> Signing:
    """By the key that TLS uses, as the files are now. Raises CertificateError."""
    certificate = read_certificate(files.certificate)
    key = parse_key(read(files.key), files.key)
    if not belong_together(certificate, key):
        raise CertificateError(f"{files.key} is not the key of {files.certificate}")
    der = certificate.public_bytes(serialization.Encoding.DER)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return Signing(der, partial(key.sign, signature_algorithm=ec.ECDSA(hashes.SHA256())))
    if isinstance(key, rsa.RSAPrivateKey):
        return Signing(der, partial(key.sign, padding=_PSS, algorithm=hashes.SHA256()))
    raise CertificateError(f"{files.key} must be an EC or an RSA key, to sign keys of secure rounds")


def verifier(
    authority: Path,
    revoked: Path | None = None,
    pins: Mapping[str, str] | None = None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Verifier:
    """What checks whether a worker signed: by a certificate of its name, issued here, in date, not revoked.

    With `pins` (fingerprints by worker's name, as `peers_file` reads them) the key must be the one pinned,
    and every worker must be. That is what holds against the authority's owner. Files are read anew when
    they change. What it makes raises CertificateError in one line: which worker, and why not.
    Raises CertificateError.
    """
    trusted = Watched([authority], lambda: read_authorities(authority))
    listed = Watched([revoked] if revoked else [], lambda: _revoked(revoked, read_authorities(authority)))

    def verify(worker: str, certificate: bytes, message: bytes, signature: bytes) -> None:
        shown = _parsed(worker, certificate)
        _check_certificate(worker, shown, trusted.get(), now())
        if shown.serial_number in listed.get():
            raise CertificateError(f"worker {worker}: its certificate is revoked")
        if pins is not None:
            _check_pin(worker, shown, pins)
        _check_signature(worker, shown, message, signature)

    return verify


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key (its SubjectPublicKeyInfo, DER): a renewal with the same key keeps it."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = certificate.public_key().public_bytes(serialization.Encoding.DER, form)
    return f"sha256:{hashlib.sha256(der).hexdigest()}"


def peers_line(certificate: x509.Certificate) -> str:
    """A worker's line in a file of peers. Raises CertificateError, also for another role's certificate."""
    identity = identity_of(certificate)
    if identity.role is not Role.WORKER:
        raise CertificateError(f"the certificate is {identity}'s; peers are workers")
    return f'"{identity.name}" = "{fingerprint(certificate)}"'


def peers_file(path: Path) -> dict[str, str]:
    """Fingerprints by worker's name, from lines of NAME = "sha256:…". Raises ConfigError."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    if not found:
        raise ConfigError(f"{path} names no worker; `fedpft certs fingerprint` prints a worker's line")
    holders: dict[str, str] = {}
    for name, told in found.items():
        try:
            Identity(Role.WORKER, name)
        except CertificateError as error:
            raise ConfigError(f"{path}: {error}") from error
        if isinstance(told, dict):
            raise ConfigError(f'{path}: a name with a dot needs quotes, as "{name}.x"; [{name}] is a table')
        if not isinstance(told, str) or not _FINGERPRINT.fullmatch(told):
            raise ConfigError(f'{path}: {name} must be "sha256:" and 64 hexadecimal digits, got {told!r:.80}')
        if other := holders.get(told):
            raise ConfigError(f"{path}: {other} and {name} have the same key; each worker must have its own")
        holders[told] = name
    return {name: told for told, name in holders.items()}


def _revoked(path: Path | None, authorities: Iterable[x509.Certificate]) -> frozenset[int]:
    if path is None:
        return frozenset()
    return frozenset(entry.serial_number for entry in read_revocations(path, authorities))


def _parsed(worker: str, der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise CertificateError(f"worker {worker}: what it shows is no certificate") from None


def _check_certificate(
    worker: str, shown: x509.Certificate, authorities: Iterable[x509.Certificate], now: datetime
) -> None:
    if not any(issued_by(shown, authority) for authority in authorities):
        raise CertificateError(f"worker {worker}: its certificate is not by this run's authority")
    try:
        identity = identity_of(shown)
    except CertificateError as error:
        raise CertificateError(f"worker {worker}: {error}") from error
    if identity != Identity(Role.WORKER, worker):
        raise CertificateError(f"worker {worker}: its certificate is {identity}'s")
    if now >= shown.not_valid_after_utc:
        raise CertificateError(
            f"worker {worker}: its certificate expired on {shown.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        )
    if now < shown.not_valid_before_utc:
        raise CertificateError(
            f"worker {worker}: its certificate is valid from {shown.not_valid_before_utc:%Y-%m-%d %H:%M} "
            "UTC on; set this host's clock"
        )


def _check_pin(worker: str, shown: x509.Certificate, pins: Mapping[str, str]) -> None:
    if worker not in pins:
        raise CertificateError(f"worker {worker}: it is not among the peers (--peers) of this worker")
    if fingerprint(shown) != pins[worker]:
        raise CertificateError(f"worker {worker}: its key is not the one that --peers has for it")


def _check_signature(worker: str, shown: x509.Certificate, message: bytes, signature: bytes) -> None:
    try:
        key = shown.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey):
            return key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
        if isinstance(key, rsa.RSAPublicKey):
            return key.verify(signature, message, _PSS, hashes.SHA256())
    except InvalidSignature:
        raise CertificateError(f"worker {worker}: its signature does not fit what it is under") from None
    except (UnsupportedAlgorithm, ValueError):
        pass
    raise CertificateError(f"worker {worker}: its certificate's key must be EC or RSA")
