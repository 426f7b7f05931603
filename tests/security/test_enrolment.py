"""Invitations: what they are good for, once, and nothing else; over real sockets, from real processes."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fedpft.v1 import enrolment_pb2 as pb
from fedpft.v1 import enrolment_pb2_grpc
from grpc import StatusCode
from typer.testing import CliRunner

from cli.main import app
from common.address import Address
from common.errors import CertificateError, NotAllowed
from common.trust.authority import Authority
from common.trust.certificates import identity_of, read_certificate
from common.trust.enrolment import Candidate, Invitation, Invitations
from common.trust.identity import Identity, Role
from common.trust.tls import Tls, TlsFiles

GUEST = Identity(Role.WORKER, "hospital-a")
NOWHERE = Address("127.0.0.1", 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Authority.create(tmp_path / "ca", "test")
    return tmp_path / "ca"


@contextmanager
def serving(folder: Path) -> Iterator[Address]:
    """`fedpft certs serve` as a process, on a free port."""
    command = [sys.executable, "-m", "cli", "certs", "serve", "--authority", str(folder)]
    command += ["--san", "127.0.0.1", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if found := re.search(r"enrolment at ([^\s\"]+)", line):
                    yield Address.parse(found[1])
                    break
            else:
                pytest.fail("it did not start")
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def fedpft(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["certs", *map(str, arguments)])
    return result.exit_code, result.output


def invited(folder: Path, address: Address, name: str = GUEST.name, *more: object) -> Path:
    out = folder.parent / f"{name}.invitation"
    code, said = fedpft(
        "invite",
        "--role",
        "worker",
        "--name",
        name,
        "--at",
        address,
        "--authority",
        folder,
        "--out",
        out,
        *more,
    )
    assert code == 0, said
    return out


def request_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    # Asks for more than it is invited to: that must count for nothing.
    asked = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("fedpft://admin/owner")])
    return (
        builder.add_extension(asked, False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def ask(address: Address, authority: bytes, secret: str, request: bytes) -> StatusCode:
    with grpc.secure_channel(str(address), grpc.ssl_channel_credentials(authority)) as channel:
        stub = enrolment_pb2_grpc.EnrolmentServiceStub(channel)
        try:
            stub.Enrol(pb.EnrolRequest(secret=secret, signing_request=request), timeout=10)
        except grpc.RpcError as error:
            assert isinstance(error, grpc.Call)
            return error.code()
    return StatusCode.OK


def test_a_guest_gets_a_certificate_once_for_a_key_that_stays(folder: Path, tmp_path: Path) -> None:
    with serving(folder) as address:
        invitation = invited(folder, address)
        assert invitation.stat().st_mode & 0o777 == 0o600
        code, said = fedpft("enrol", invitation, "--out", tmp_path / "guest")
        assert code == 0, said
        assert Tls(TlsFiles.in_folder(tmp_path / "guest"), Role.WORKER).identity == GUEST
        assert (tmp_path / "guest" / "tls.key").stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in (tmp_path / "guest").iterdir()) == [
            "ca.crt",
            "tls.crt",
            "tls.key",
        ]

        code, said = fedpft("enrol", invitation, "--out", tmp_path / "thief")
        assert code == 2
        assert "used up" in said
        assert not (tmp_path / "thief" / "tls.crt").exists()
    # The authority knows it, so it can be revoked; and it keeps nothing that lets another in.
    code, said = fedpft("revoke", "worker/hospital-a", "--authority", folder)
    assert code == 0, said
    secret = Invitation.read(invitation).secret
    assert not any(secret.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_stranger_gets_nothing_and_the_guest_still_gets_in(folder: Path, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with serving(folder) as address:
        path = invited(folder, address)
        invitation = Invitation.read(path)
        authority = invitation.authority
        for secret in ("", invitation.secret[:-1], invitation.secret + "=", "../../ca"):
            assert ask(address, authority, secret, request_of(key)) is StatusCode.PERMISSION_DENIED
        assert ask(address, authority, "x" * 100_000, b"") is StatusCode.INVALID_ARGUMENT
        weak = rsa.generate_private_key(65537, 2048)
        tampered = bytearray(request_of(key))
        tampered[len(tampered) // 2] ^= 1
        for request in (b"no request", request_of(weak), bytes(tampered)):
            assert ask(address, authority, invitation.secret, request) is StatusCode.INVALID_ARGUMENT
        # Without TLS nobody is heard, and whose authority is another's does not speak.
        Authority.create(tmp_path / "other", "other")
        other = (tmp_path / "other" / "ca.crt").read_bytes()
        assert ask(address, other, invitation.secret, request_of(key)) is StatusCode.UNAVAILABLE
        with grpc.insecure_channel(str(address)) as channel, pytest.raises(grpc.RpcError):
            enrolment_pb2_grpc.EnrolmentServiceStub(channel).Enrol(pb.EnrolRequest(), timeout=5)

        # None of it used the invitation up; what the request asks for besides does not count.
        answer = ask(address, authority, invitation.secret, request_of(key))
        assert answer is StatusCode.OK
        _, said = fedpft("list", "--authority", folder)
        assert "worker/hospital-a" in said
        assert "admin/" not in said


def test_a_flood_of_guesses_is_held_off(folder: Path) -> None:
    request = request_of(ec.generate_private_key(ec.SECP256R1()))
    with serving(folder) as address:
        authority = (folder / "ca.crt").read_bytes()
        answers = [ask(address, authority, f"guess-{n}", request) for n in range(40)]
    assert answers[0] is StatusCode.PERMISSION_DENIED
    assert answers.count(StatusCode.RESOURCE_EXHAUSTED) >= 20


def test_an_enrolment_service_of_another_authority_is_not_told_the_secret(
    folder: Path, tmp_path: Path
) -> None:
    Authority.create(tmp_path / "false", "false")
    with serving(tmp_path / "false") as address:
        code, said = fedpft("enrol", invited(folder, address), "--out", tmp_path / "guest")
        assert code == 2
        assert "authority" in said


@pytest.fixture
def invitations(folder: Path) -> Invitations:
    return Invitations(Authority(folder), folder)


def test_the_same_key_may_ask_again(invitations: Invitations) -> None:
    secret = invitations.invite(GUEST, NOWHERE).secret
    request = request_of(ec.generate_private_key(ec.SECP256R1()))
    first = invitations.enrol(secret, request)
    assert identity_of(first) == GUEST
    assert invitations.enrol(secret, request).serial_number == first.serial_number
    with pytest.raises(NotAllowed, match="used up"):
        invitations.enrol(secret, request_of(ec.generate_private_key(ec.SECP256R1())))


def test_an_invitation_ends(invitations: Invitations, folder: Path) -> None:
    secret = invitations.invite(GUEST, NOWHERE).secret
    (path,) = (folder / "invited").iterdir()
    told = json.loads(path.read_text())
    told["expires"] = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    path.write_text(json.dumps(told))
    with pytest.raises(NotAllowed, match="over since"):
        invitations.enrol(secret, request_of(ec.generate_private_key(ec.SECP256R1())))


def test_a_coordinator_is_not_invited(invitations: Invitations) -> None:
    with pytest.raises(CertificateError, match="certs issue"):
        invitations.invite(Identity(Role.COORDINATOR, "hub"), NOWHERE)


def test_an_answer_that_is_another_ones_is_not_taken(
    invitations: Invitations, folder: Path, tmp_path: Path
) -> None:
    invitation = invitations.invite(GUEST, NOWHERE)
    candidate = Candidate(invitation, tmp_path / "guest")
    of_another_key = invitations.enrol(invitation.secret, request_of(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(CertificateError, match="another key"):
        candidate.accept(of_another_key.public_bytes(serialization.Encoding.PEM))
    key = x509.load_pem_x509_csr(candidate.request()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    of_another_name = Authority(folder).certify(Identity(Role.ADMIN, "owner"), key)
    with pytest.raises(CertificateError, match="certificate of admin/owner"):
        candidate.accept(of_another_name.public_bytes(serialization.Encoding.PEM))
    other = Authority.create(tmp_path / "other", "other").certify(GUEST, key)
    with pytest.raises(CertificateError, match="another authority"):
        candidate.accept(other.public_bytes(serialization.Encoding.PEM))
    # An attempt that broke off goes on with the same key.
    again = Candidate(invitation, tmp_path / "guest")
    mine = Authority(folder).certify(GUEST, key)
    again.accept(mine.public_bytes(serialization.Encoding.PEM))
    assert read_certificate(tmp_path / "guest" / "tls.crt").serial_number == mine.serial_number


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 3}', "[" * 100_000, "\0"])
def test_what_is_no_invitation_is_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "it").write_text(content)
    code, said = fedpft("enrol", tmp_path / "it", "--out", tmp_path / "guest")
    assert code == 2
    assert "holds no invitation" in said.replace("\n", " ")
    assert not (tmp_path / "guest").exists()


def test_who_finds_nobody_is_told_what_must_run_and_keeps_the_invitation(
    folder: Path, tmp_path: Path
) -> None:
    with serving(folder) as address:
        pass
    file, out = invited(folder, address), tmp_path / "guest"
    code, said = fedpft("enrol", file, "--out", out)
    assert code == 2
    assert f"`fedpft certs serve` must be running at {address}" in " ".join(said.split())
    assert file.exists()
    assert not (out / "tls.crt").exists()
