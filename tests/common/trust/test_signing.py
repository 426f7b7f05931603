"""What a worker signs another believes, if the certificate is of that name and authority, and still good."""

import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from cli.main import app
from common.errors import CertificateError, ConfigError
from common.trust.authority import REVOKED, Authority
from common.trust.certificates import AUTHORITY, CERTIFICATE, KEY, read_certificate
from common.trust.identity import Identity, Role
from common.trust.signing import fingerprint, peers_file, peers_line, signing, verifier
from common.trust.tls import TlsFiles

MESSAGE = b"FedPFT keys v1\0..."


def issue(authority: Authority, folder: Path, name: str, role: Role = Role.WORKER) -> Path:
    authority.issue(Identity(role, name), folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs")
    issue(Authority.create(folder / "ca", "test"), folder / "a", "a")
    return folder


@pytest.fixture
def certs(made: Path, tmp_path: Path) -> Path:
    """An authority in `ca`, and worker a in `a`; a copy of one's own."""
    return shutil.copytree(made, tmp_path / "certs")


def own_key(folder: Path, authority: Path, key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> None:
    """Worker a's certificate for a key of a kind that we do not make, by the authority's key."""
    ca = read_certificate(authority / AUTHORITY)
    signer = serialization.load_pem_private_key((authority / "ca.key").read_bytes(), None)
    assert not isinstance(signer, ed25519.Ed25519PrivateKey)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(
            ca.subject,
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]),
            key.public_key(),
            x509.random_serial_number(),
            now - timedelta(hours=1),
            now + timedelta(days=1),
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier("fedpft://worker/a")]), critical=False
        )
        .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
    )
    folder.mkdir()
    (folder / CERTIFICATE).write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (folder / KEY).write_bytes(pem)


def test_a_signature_is_believed(certs: Path) -> None:
    own = signing(TlsFiles.in_folder(certs / "a"))
    pins = {"a": fingerprint(read_certificate(certs / "a" / CERTIFICATE))}
    for given in (None, pins):
        verify = verifier(certs / "ca" / AUTHORITY, certs / "ca" / REVOKED, given)
        verify("a", own.certificate, MESSAGE, own.sign(MESSAGE))


def test_an_rsa_key_signs_too_and_another_kind_is_refused(certs: Path) -> None:
    own_key(certs / "rsa", certs / "ca", rsa.generate_private_key(65537, 2048))
    own = signing(TlsFiles.in_folder(certs / "rsa"))
    verify = verifier(certs / "ca" / AUTHORITY)
    verify("a", own.certificate, MESSAGE, own.sign(MESSAGE))
    with pytest.raises(CertificateError, match="worker a: its signature does not fit"):
        verify("a", own.certificate, MESSAGE + b"!", own.sign(MESSAGE))
    own_key(certs / "ed", certs / "ca", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(CertificateError, match="must be an EC or an RSA key"):
        signing(TlsFiles.in_folder(certs / "ed"))
    der = read_certificate(certs / "ed" / CERTIFICATE).public_bytes(serialization.Encoding.DER)
    with pytest.raises(CertificateError, match="worker a: its certificate's key must be EC or RSA"):
        verify("a", der, MESSAGE, b"s" * 64)


def test_openssl_takes_the_signature_and_knows_the_fingerprint(certs: Path) -> None:
    own = signing(TlsFiles.in_folder(certs / "a"))
    (certs / "message").write_bytes(MESSAGE)
    (certs / "signature").write_bytes(own.sign(MESSAGE))
    for command in (
        "openssl x509 -in a/tls.crt -pubkey -noout > public",
        "openssl dgst -sha256 -verify public -signature signature message",
    ):
        subprocess.run(command, cwd=certs, shell=True, check=True, capture_output=True)
    command = "openssl pkey -pubin -in public -outform der | sha256sum"
    told = subprocess.run(command, cwd=certs, shell=True, check=True, capture_output=True, text=True).stdout
    assert fingerprint(read_certificate(certs / "a" / CERTIFICATE)) == f"sha256:{told.split()[0]}"


def of_another_name(certs: Path) -> Path:
    return issue(Authority(certs / "ca"), certs / "b", "b")


def of_another_role(certs: Path) -> Path:
    return issue(Authority(certs / "ca"), certs / "c", "a", Role.COORDINATOR)


def of_another_authority(certs: Path) -> Path:
    return issue(Authority.create(certs / "other", "test"), certs / "d", "a")


def of_another_key(certs: Path) -> Path:
    return issue(Authority(certs / "ca"), certs / "e", "a")


def revoked(certs: Path) -> Path:
    Authority(certs / "ca").revoke("worker/a")
    return certs / "a"


@pytest.mark.parametrize(
    ("whose", "reason"),
    [
        (of_another_name, "its certificate is worker/b's"),
        (of_another_role, "its certificate is coordinator/a's"),
        (of_another_authority, "its certificate is not by this run's authority"),
        (of_another_key, "its key is not the one that --peers has for it"),
        (revoked, "its certificate is revoked"),
    ],
)
def test_a_certificate_that_does_not_fit_is_refused(
    certs: Path, whose: Callable[[Path], Path], reason: str
) -> None:
    pins = {"a": fingerprint(read_certificate(certs / "a" / CERTIFICATE))}
    # Made before: what is revoked later counts without a restart.
    verify = verifier(certs / "ca" / AUTHORITY, certs / "ca" / REVOKED, pins)
    own = signing(TlsFiles.in_folder(whose(certs)))
    with pytest.raises(CertificateError, match=f"^worker a: {reason}"):
        verify("a", own.certificate, MESSAGE, own.sign(MESSAGE))


@pytest.mark.parametrize(("days", "reason"), [(-1, "is valid from"), (366, "expired on")])
def test_a_certificate_out_of_date_is_refused(certs: Path, days: int, reason: str) -> None:
    own = signing(TlsFiles.in_folder(certs / "a"))
    verify = verifier(certs / "ca" / AUTHORITY, now=lambda: datetime.now(UTC) + timedelta(days))
    with pytest.raises(CertificateError, match=f"worker a: its certificate {reason}"):
        verify("a", own.certificate, MESSAGE, own.sign(MESSAGE))


def test_a_worker_that_is_not_pinned_is_refused(certs: Path) -> None:
    own = signing(TlsFiles.in_folder(certs / "a"))
    verify = verifier(certs / "ca" / AUTHORITY, pins={"b": "sha256:" + "0" * 64})
    with pytest.raises(CertificateError, match="worker a: it is not among the peers"):
        verify("a", own.certificate, MESSAGE, own.sign(MESSAGE))


@pytest.mark.parametrize(
    "changed", ["message", "signature", "no signature", "certificate", "no certificate", "longer certificate"]
)
def test_nothing_that_was_changed_is_believed(certs: Path, changed: str) -> None:
    own = signing(TlsFiles.in_folder(certs / "a"))
    certificate, message, signature = own.certificate, MESSAGE, own.sign(MESSAGE)
    match changed:
        case "message":
            message += b"\0"
        case "signature":
            signature = signature[:-1] + bytes([signature[-1] ^ 1])
        case "no signature":
            signature = b""
        case "certificate":
            certificate = certificate[:-1] + bytes([certificate[-1] ^ 1])
        case "no certificate":
            certificate = b""
        case "longer certificate":
            certificate += b"\0"
    with pytest.raises(CertificateError, match=r"^worker a: [^\n]+$"):
        verifier(certs / "ca" / AUTHORITY)("a", certificate, message, signature)


def test_a_key_of_another_certificate_does_not_sign(certs: Path) -> None:
    issue(Authority(certs / "ca"), certs / "b", "b")
    files = TlsFiles(certs / "a" / CERTIFICATE, certs / "b" / KEY, certs / "a" / AUTHORITY)
    with pytest.raises(CertificateError, match="is not the key of"):
        signing(files)


# The file of peers.


def test_the_command_prints_lines_that_the_file_of_peers_takes(certs: Path) -> None:
    issue(Authority(certs / "ca"), certs / "b", "b.example")
    done = CliRunner().invoke(app, ["certs", "fingerprint", str(certs / "a"), str(certs / "b" / CERTIFICATE)])
    assert done.exit_code == 0, done.output
    path = certs / "peers.toml"
    path.write_text(done.output)
    expected = {
        name: fingerprint(read_certificate(certs / folder / CERTIFICATE))
        for name, folder in (("a", "a"), ("b.example", "b"))
    }
    assert peers_file(path) == expected


def test_the_command_prints_nothing_where_one_is_no_worker(certs: Path) -> None:
    issue(Authority(certs / "ca"), certs / "o", "o", Role.ADMIN)
    done = CliRunner().invoke(app, ["certs", "fingerprint", str(certs / "a"), str(certs / "o")])
    assert done.exit_code == 2
    assert "the certificate is admin/o's; peers are workers" in done.output
    assert "sha256" not in done.output


def test_the_authority_has_no_line(certs: Path) -> None:
    with pytest.raises(CertificateError, match="must hold one URI"):
        peers_line(read_certificate(certs / "ca" / AUTHORITY))


GOOD = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "names no worker; `fedpft certs fingerprint`"),
        ("a = ", "is not TOML"),
        ("a = 1", 'a must be "sha256:" and 64 hexadecimal digits, got 1'),
        (f"a = '{GOOD[:-1]}'", "a must be"),
        (f"a = '{GOOD[:-1]}G'", "a must be"),
        (f"a = '{GOOD}'\nb = '{GOOD}'", "a and b have the same key"),
        (f"a.b = '{GOOD}'", 'a name with a dot needs quotes, as "a.x"'),
        (f"'a/b' = '{GOOD}'", "name 'a/b' must be"),
        (f"a = '{GOOD}'\na = '{GOOD}'", "is not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_of_peers_is_said(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "peers.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        peers_file(path)
    assert str(path) in str(caught.value)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_peers_that_is_not_there_or_not_text_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        peers_file(tmp_path / "none.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        peers_file(tmp_path / "binary")
