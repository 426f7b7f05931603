"""A small certificate authority: issues a federation's keys and certificates, and revokes them.

Its folder has `ca.crt`, `ca.key`, the revocation list `revoked.pem`, and a copy of every certificate that it
issued.
"""

import os
import re
from collections.abc import Container, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import CertificateError
from common.storage.files import sync_folder, write_atomically
from common.trust.certificates import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    belong_together,
    identity_of,
    parse_key,
    read,
    read_certificate,
    read_revocations,
)
from common.trust.identity import Identity, Role

_AUTHORITY_KEY, REVOKED, _ISSUED = "ca.key", "revoked.pem", "issued"

AUTHORITY_DAYS = 3650
HOLDER_DAYS = 365

# Clocks differ: a certificate is valid from a little before it was made.
_CLOCK_SKEW = timedelta(minutes=5)
# Nobody here acts on the date by which a revocation list asks to be renewed, but it must have one.
_REVOCATION_DAYS = 3650

_DNS_NAME = re.compile(r"(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9-]{1,63}")

# On the coordinator's own host it can be reached by these without a --san.
_OWN_HOST = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Issued:
    """What the authority knows of a certificate that it issued."""

    identity: Identity
    serial: int
    expires: datetime
    revoked: bool

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return self.expires <= datetime.now(UTC)


class Authority:
    """A certificate authority in a folder. Raises CertificateError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._certificate = read_certificate(folder / AUTHORITY)
        path = folder / _AUTHORITY_KEY
        key = parse_key(read(path), path)
        if not (isinstance(key, ec.EllipticCurvePrivateKey) and belong_together(self._certificate, key)):
            raise CertificateError(f"{path} is not the key of {folder / AUTHORITY}")
        self._key = key

    @classmethod
    def create(cls, folder: Path, name: str, days: int = AUTHORITY_DAYS) -> "Authority":
        """A new authority in `folder`. Raises CertificateError where there is one already."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            _builder(subject, subject, key.public_key(), *_period(days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        new_folder(folder)
        # The key first: where one exists nothing has been touched when this fails.
        _write_key(folder / _AUTHORITY_KEY, key)
        write_new(folder / AUTHORITY, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
        authority = cls(folder)
        authority._write_revocations([])
        return authority

    def issue(
        self,
        identity: Identity,
        out: Path,
        names: Iterable[str] = (),
        days: int = HOLDER_DAYS,
    ) -> Issued:
        """A new key and certificate for `identity` in the folder `out`, with a copy of the authority's.

        `names` are the DNS names and IP addresses under which a coordinator is reached. Only a coordinator
        has any: a worker's certificate must not serve to pass for one. Raises CertificateError.
        """
        for file in (CERTIFICATE, KEY, AUTHORITY):
            if (out / file).exists():
                raise CertificateError(f"{out / file} is there already; choose another folder (--out)")
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self.certify(identity, key.public_key(), names, days)
        write_holder(out, key, certificate, self.certificate)
        return _issued(certificate, set())

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's own."""
        return self._certificate

    def certify(
        self,
        identity: Identity,
        key: ec.EllipticCurvePublicKey,
        names: Iterable[str] = (),
        days: int = HOLDER_DAYS,
    ) -> x509.Certificate:
        """A certificate of a key that its holder made; a copy is kept. Raises CertificateError."""
        names = tuple(names)
        if names and identity.role is not Role.COORDINATOR:
            raise CertificateError(f"--san is for coordinators only, got {', '.join(names)} for {identity}")
        certificate = self._sign(identity, key, names, days)
        # First the copy: there must be no certificate about that could not be revoked.
        new_folder(self._folder / _ISSUED)
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        write_new(self._folder / _ISSUED / f"{certificate.serial_number:x}.crt", pem, 0o644)
        return certificate

    def copy_of(self, serial: int) -> x509.Certificate:
        """A certificate that was issued here. Raises CertificateError."""
        return read_certificate(self._folder / _ISSUED / f"{serial:x}.crt")

    def _sign(
        self, identity: Identity, key: ec.EllipticCurvePublicKey, names: Iterable[str], days: int
    ) -> x509.Certificate:
        start, end = _period(days)
        if end > self._certificate.not_valid_after_utc:
            left = (self._certificate.not_valid_after_utc - datetime.now(UTC)).days
            raise CertificateError(f"--days must be <= {left}, the authority's own time, got {days}")
        coordinator = identity.role is Role.COORDINATOR
        reached = dict.fromkeys((*names, *_OWN_HOST)) if coordinator else ()
        alternatives = [x509.UniformResourceIdentifier(identity.uri), *map(_alternative, reached)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH if coordinator else ExtendedKeyUsageOID.CLIENT_AUTH]
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.name)])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(subject, self._certificate.subject, key, start, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def issued(self) -> list[Issued]:
        """Every certificate issued, by identity and then by time of expiry."""
        revocations = read_revocations(self._folder / REVOKED, [self._certificate])
        revoked = {entry.serial_number for entry in revocations}
        copies = (self._folder / _ISSUED).glob("*.crt")
        found = [_issued(read_certificate(path), revoked) for path in copies]
        return sorted(found, key=lambda issued: (issued.identity, issued.expires))

    def revoke(self, which: str) -> list[Issued]:
        """Revoke by ROLE/NAME (all certificates of that identity) or by serial number in hexadecimal.

        Returns those that are newly revoked. Raises CertificateError when none is known by that.
        """
        known = self.issued()
        if "/" in which:
            identity = Identity.parse(which)
            meant = [issued for issued in known if issued.identity == identity]
        else:
            meant = [issued for issued in known if f"{issued.serial:x}" == which.lower()]
        if not meant:
            raise CertificateError(
                f"no certificate {which!r} was issued here; `fedpft certs list` shows those that were"
            )
        new = [issued for issued in meant if not issued.revoked]
        if new:
            self._write_revocations([issued.serial for issued in known if issued.revoked or issued in new])
        return new

    def _write_revocations(self, serials: Iterable[int]) -> None:
        now = datetime.now(UTC)
        dated = {}
        number = 0
        path = self._folder / REVOKED
        if path.exists():
            old = read_revocations(path, [self._certificate])
            dated = {entry.serial_number: entry.revocation_date_utc for entry in old}
            number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now)
            .next_update(now + timedelta(days=_REVOCATION_DAYS))
            .add_extension(x509.CRLNumber(number + 1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        for serial in sorted({*serials, *dated}):
            entry = x509.RevokedCertificateBuilder().serial_number(serial)
            builder = builder.add_revoked_certificate(entry.revocation_date(dated.get(serial, now)).build())
        signed = builder.sign(self._key, hashes.SHA256())
        write_atomically(path, signed.public_bytes(serialization.Encoding.PEM))


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
    )


def _period(days: int) -> tuple[datetime, datetime]:
    now = datetime.now(UTC)
    return now - _CLOCK_SKEW, now + timedelta(days=days)


def _usage(
    digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    """A DNS name or an IP address. Raises CertificateError."""
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        pass
    if not _DNS_NAME.fullmatch(name) or len(name) > 253:
        raise CertificateError(f"--san must be a DNS name or an IP address without a port, got {name!r}")
    return x509.DNSName(name)


def _issued(certificate: x509.Certificate, revoked: Container[int]) -> Issued:
    return Issued(
        identity_of(certificate),
        certificate.serial_number,
        certificate.not_valid_after_utc,
        certificate.serial_number in revoked,
    )


def new_folder(folder: Path) -> None:
    """A folder of the owner's alone, where there is none. Raises CertificateError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CertificateError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def write_holder(
    out: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, authority: x509.Certificate
) -> None:
    """A holder's three files, none of which may be there yet. Raises CertificateError."""
    new_folder(out)
    _write_key(out / KEY, key)
    write_new(out / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    write_new(out / AUTHORITY, authority.public_bytes(serialization.Encoding.PEM), 0o644)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    write_new(path, pem, 0o600)


def write_new(path: Path, content: bytes, mode: int) -> None:
    """Write a file that must not be there yet, with its mode from the first byte on, durably.

    Raises CertificateError.
    """
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except FileExistsError:
        raise CertificateError(f"{path} is there already; choose another folder") from None
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror or error}") from error
