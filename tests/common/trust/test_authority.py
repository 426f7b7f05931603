"""The certificate authority: what it issues, what it refuses, what it revokes."""

import os
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from common.errors import CertificateError
from common.trust.authority import REVOKED, Authority
from common.trust.certificates import (
    AUTHORITY,
    CERTIFICATE,
    KEY,
    identity_of,
    read_certificate,
    read_revocations,
)
from common.trust.identity import Identity, Role

WORKER = Identity(Role.WORKER, "clinic-a")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "certs", "test")


def alternatives(folder: Path) -> x509.SubjectAlternativeName:
    certificate = read_certificate(folder / CERTIFICATE)
    return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value


@pytest.mark.parametrize(
    ("role", "purpose", "names"),
    [
        (Role.COORDINATOR, "sslserver", ["a.example", "10.0.0.1", "2001:db8::1"]),
        (Role.WORKER, "sslclient", []),
        (Role.ADMIN, "sslclient", []),
    ],
)
def test_openssl_takes_a_certificate_for_its_roles_purpose_and_no_other(
    authority: Authority, tmp_path: Path, role: Role, purpose: str, names: list[str]
) -> None:
    authority.issue(Identity(role, "n"), tmp_path / "n", names)
    assert identity_of(read_certificate(tmp_path / "n" / CERTIFICATE)) == Identity(role, "n")
    for tried in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", tried, "-CAfile", AUTHORITY, CERTIFICATE]
        verdict = subprocess.run(command, cwd=tmp_path / "n", capture_output=True, text=True, check=False)
        assert (verdict.returncode == 0) is (tried == purpose), verdict.stderr
    assert set(names) <= set(
        map(
            str,
            alternatives(tmp_path / "n").get_values_for_type(x509.DNSName)
            + alternatives(tmp_path / "n").get_values_for_type(x509.IPAddress),
        )
    )


def test_a_workers_certificate_names_no_host(authority: Authority, tmp_path: Path) -> None:
    authority.issue(WORKER, tmp_path / "w")
    assert [type(name) for name in alternatives(tmp_path / "w")] == [x509.UniformResourceIdentifier]
    with pytest.raises(CertificateError, match="--san is for coordinators only"):
        authority.issue(WORKER, tmp_path / "v", ["coordinator.example"])
    assert not (tmp_path / "v").exists()


def test_keys_are_their_owners_alone_whatever_the_umask(authority: Authority, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        authority.issue(WORKER, tmp_path / "w")
        Authority.create(tmp_path / "other", "other")
    finally:
        os.umask(before)
    for key in (tmp_path / "w" / KEY, tmp_path / "other" / "ca.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o700


@pytest.mark.parametrize("there", [CERTIFICATE, KEY, AUTHORITY])
def test_nothing_is_overwritten(authority: Authority, tmp_path: Path, there: str) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / there).write_text("precious")
    with pytest.raises(CertificateError, match="is there already"):
        authority.issue(WORKER, tmp_path / "w")
    assert [p.name for p in (tmp_path / "w").iterdir()] == [there]
    assert (tmp_path / "w" / there).read_text() == "precious"
    key = (tmp_path / "certs" / "ca.key").read_bytes()
    with pytest.raises(CertificateError, match="is there already"):
        Authority.create(tmp_path / "certs", "again")
    assert (tmp_path / "certs" / "ca.key").read_bytes() == key


def test_a_link_in_place_of_a_key_is_not_followed(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / KEY).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CertificateError, match="is there already"):
        authority.issue(WORKER, tmp_path / "w")
    assert not (tmp_path / "elsewhere").exists()


def test_lifetimes_are_as_asked_and_end_within_the_authoritys(authority: Authority, tmp_path: Path) -> None:
    assert authority.issue(WORKER, tmp_path / "w", days=3).expires - datetime.now(UTC) < timedelta(days=3)
    with pytest.raises(CertificateError, match="--days must be <= "):
        authority.issue(WORKER, tmp_path / "v", days=3651)


@pytest.mark.parametrize("name", ["", "a b", "host:1", "-a.example", "a..b", "*", "é.example", "a" * 254])
def test_a_name_that_is_no_host_is_refused(authority: Authority, tmp_path: Path, name: str) -> None:
    with pytest.raises(CertificateError, match="--san must be"):
        authority.issue(Identity(Role.COORDINATOR, "c"), tmp_path / "c", [name])


def test_revoking_by_identity_and_by_serial_is_kept_in_a_signed_list(
    authority: Authority, tmp_path: Path
) -> None:
    first, second, other = (
        authority.issue(identity, tmp_path / str(i))
        for i, identity in enumerate([WORKER, WORKER, Identity(Role.WORKER, "clinic-b")])
    )
    assert [issued.serial for issued in authority.revoke(f"{first.serial:X}")] == [first.serial]
    assert {i.serial for i in authority.issued() if i.revoked} == {first.serial}
    assert [issued.serial for issued in authority.revoke("worker/clinic-a")] == [second.serial]
    assert authority.revoke("worker/clinic-a") == []
    again = Authority(tmp_path / "certs")
    assert {i.serial: i.revoked for i in again.issued()} == {
        first.serial: True,
        second.serial: True,
        other.serial: False,
    }
    with pytest.raises(CertificateError, match="no certificate 'worker/clinic-c' was issued here"):
        authority.revoke("worker/clinic-c")
    command = ["openssl", "crl", "-in", REVOKED, "-CAfile", AUTHORITY, "-noout"]
    assert subprocess.run(command, cwd=tmp_path / "certs", check=False).returncode == 0


def test_a_list_that_another_authority_signed_is_refused(authority: Authority, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other", "test")
    with pytest.raises(CertificateError, match="is not signed by this authority"):
        read_revocations(tmp_path / "other" / REVOKED, [read_certificate(tmp_path / "certs" / AUTHORITY)])


def test_an_authority_with_another_ones_key_is_refused(authority: Authority, tmp_path: Path) -> None:
    Authority.create(tmp_path / "other", "test")
    (tmp_path / "other" / "ca.key").rename(tmp_path / "certs" / "ca.key")
    with pytest.raises(CertificateError, match=r"ca\.key is not the key of"):
        Authority(tmp_path / "certs")


def test_where_no_authority_is_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"ca\.crt cannot be read: No such file"):
        Authority(tmp_path)
