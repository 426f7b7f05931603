"""Certificates, keys and revocation lists as files, and what they tell.

A holder's folder has the three files that Kubernetes and cert-manager use too: `tls.crt`, `tls.key` and
`ca.crt`. A revocation list is an X.509 CRL, signed by the authority.
"""

from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from common.errors import CertificateError
from common.trust.identity import Identity

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"


def parse_certificate(pem: bytes, origin: Path | str) -> x509.Certificate:
    """The first certificate in `pem`. Raises CertificateError that names `origin`."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise CertificateError(f"{origin} holds no certificate in PEM form") from error


def read_certificate(path: Path) -> x509.Certificate:
    """The first certificate in a PEM file. Raises CertificateError."""
    return parse_certificate(read(path), path)


def parse_key(pem: bytes, origin: Path) -> PrivateKeyTypes:
    """The private key in `pem`. Raises CertificateError that names `origin`."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{origin} holds no private key in PEM form without a password") from error


def belong_together(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Whether the key is the certificate's."""
    return certificate.public_key() == key.public_key()


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority named in the certificate is this one, and signed it."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def identity_of(certificate: x509.Certificate) -> Identity:
    """Role and name that the certificate tells. Raises CertificateError."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return Identity.from_uris(())
    return Identity.from_uris(extension.value.get_values_for_type(x509.UniformResourceIdentifier))


def read_authorities(path: Path) -> tuple[x509.Certificate, ...]:
    """All certificates in a PEM file, such as an old authority's and its successor's.

    Raises CertificateError.
    """
    try:
        return tuple(x509.load_pem_x509_certificates(read(path)))
    except ValueError as error:
        raise CertificateError(f"{path} holds no certificate in PEM form") from error


def read_revocations(path: Path, authorities: Iterable[x509.Certificate]) -> x509.CertificateRevocationList:
    """The list in a PEM file. Raises CertificateError, also when none of `authorities` signed it."""
    try:
        found = x509.load_pem_x509_crl(read(path))
    except ValueError as error:
        raise CertificateError(f"{path} holds no revocation list in PEM form") from error
    for authority in authorities:
        key = authority.public_key()
        if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) and found.is_signature_valid(key):
            return found
    raise CertificateError(f"revocation list {path} is not signed by this authority ({AUTHORITY})")


def read(path: Path) -> bytes:
    """The file's content. Raises CertificateError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror or error}") from error
