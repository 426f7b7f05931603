"""What `fedpft doctor` looks at: each check tells what it found and, when that is wrong, what to do."""

import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from common.address import Address, require_free
from common.errors import AddressError, CertificateError
from common.trust.certificates import AUTHORITY, CERTIFICATE, KEY, parse_certificate, read_certificate

_CONNECT_SECONDS = 5.0
_FREE_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Finding:
    """`check` is what was looked at, `found` what is there; `fix` is empty when that is well."""

    check: str
    found: str
    fix: str = ""
    notes: tuple[str, ...] = ()
    """What may be meant, and may not."""

    @property
    def ok(self) -> bool:
        """Whether there is nothing to do."""
        return not self.fix


def versions(needed: Iterable[str] | None = None) -> Finding:
    """The installed packages against those that this version needs, as requirements such as "torch>=2.8"."""
    wrong = []
    for requirement in map(Requirement, requires("fedpft") or [] if needed is None else needed):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(there, prereleases=True):
            wrong.append(f"{requirement.name} is {there}, not {requirement.specifier}")
    if wrong:
        return Finding("versions", "; ".join(wrong), "pip install -c constraints.txt fedpft, in its own venv")
    return Finding("versions", f"fedpft {version('fedpft')}, torch {version('torch')}")


def name_resolution(address: Address) -> Finding:
    """Whether the coordinator's name has an address here."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(
            "name resolution",
            f"{address.host} has no address here: {error.strerror or error}",
            "correct the name, or add it to the DNS or to /etc/hosts",
        )
    return Finding("name resolution", f"{address.host} is {found[0][4][0]}")


def port(address: Address) -> Finding:
    """Whether something answers there."""
    try:
        with socket.create_connection((address.host, address.port), timeout=_CONNECT_SECONDS):
            return Finding("port", f"{address} is open")
    except ConnectionRefusedError:
        fix = "start the coordinator; see that server.listen is no loopback address, and the port right"
        return Finding("port", f"nothing listens on {address}", fix)
    except TimeoutError:
        fix = f"open TCP port {address.port} in the firewalls between here and there"
        return Finding("port", f"no answer from {address} within {_CONNECT_SECONDS:.0f} s", fix)
    except OSError as error:
        fix = "look at this host's network and routes"
        return Finding("port", f"{address}: {error.strerror or error}", fix)


def tls(address: Address, folder: Path | None) -> Finding:
    """A handshake with the coordinator, with the certificate in `folder`, or without one."""
    if folder is None:
        if _speaks_tls(address):
            fix = "ask the owner for a certificate, and name its folder: --tls DIR"
            return Finding("TLS", f"{address} speaks TLS, and no certificate is given", fix)
        return Finding("TLS", f"{address} speaks plain text, as this side does")
    try:
        context = ssl.create_default_context(cafile=str(folder / AUTHORITY))
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    except (OSError, ssl.SSLError) as error:
        return Finding("TLS", f"{folder}: {_reason(error)}", _REISSUE)
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), _CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as wrapped,
        ):
            # Under TLS 1.3 a refused certificate shows only once something is read.
            wrapped.settimeout(_CONNECT_SECONDS)
            version_spoken = wrapped.version()
            if not wrapped.recv(1):
                found = f"the coordinator refuses {folder / CERTIFICATE}"
                return Finding("TLS", found, _REISSUE)
            return Finding("TLS", f"{version_spoken} with {address}, each side known to the other")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            "TLS", f"the coordinator's certificate: {error.verify_message}", _fix_for(error, address)
        )
    except ssl.SSLError as error:
        if error.reason == "WRONG_VERSION_NUMBER":
            fix = "set [tls] in the coordinator's run.toml, or leave out --tls and say --insecure"
            return Finding("TLS", f"{address} speaks plain text", fix)
        return Finding("TLS", f"the coordinator refuses {folder / CERTIFICATE}: {_reason(error)}", _REISSUE)
    except OSError as error:
        return Finding("TLS", f"{address}: {error.strerror or error}", "see the check of the port")


_REISSUE = "fedpft certs issue --role worker --name NAME, with the authority that the coordinator trusts"


def _fix_for(error: ssl.SSLCertVerificationError, address: Address) -> str:
    # OpenSSL's numbers: 62 and 64 are names and addresses that are not in the certificate, 9 and 10 dates.
    if error.verify_code in (62, 64):
        return f"issue the coordinator's certificate with --san {address.host}, or use a name that it has"
    if error.verify_code in (9, 10):
        return "set this host's clock, or renew the coordinator's certificate"
    return f"take {AUTHORITY} of the authority that issued the coordinator's certificate"


def _speaks_tls(address: Address) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), _CONNECT_SECONDS) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except ssl.SSLError as error:
        return error.reason != "WRONG_VERSION_NUMBER"
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return (error.reason if isinstance(error, ssl.SSLError) else error.strerror) or str(error)


def clock(address: Address | None, folder: Path, now: datetime | None = None) -> Finding:
    """This host's clock against the dates of both sides' certificates."""
    now = now or datetime.now(UTC)
    try:
        certificates = {
            str(folder / name): read_certificate(folder / name) for name in (CERTIFICATE, AUTHORITY)
        }
        if address is not None and (pem := _peer_certificate(address)):
            certificates[f"the coordinator {address}"] = parse_certificate(pem, str(address))
    except CertificateError as error:
        return Finding("clock", str(error), "see the check of TLS")
    for origin, certificate in certificates.items():
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now < begins:
            found = f"here it is {now:%Y-%m-%d %H:%M} UTC, and {origin} is valid from {begins:%Y-%m-%d %H:%M}"
            return Finding("clock", found, "set this host's clock: timedatectl set-ntp true")
        if now >= ends:
            found = f"here it is {now:%Y-%m-%d}, and {origin} expired on {ends:%Y-%m-%d}"
            return Finding("clock", found, "renew the certificate, if this host's clock is right")
    return Finding("clock", f"{now:%Y-%m-%d %H:%M} UTC, within the dates of all certificates")


def _peer_certificate(address: Address) -> bytes | None:
    try:
        return ssl.get_server_certificate((address.host, address.port), timeout=_CONNECT_SECONDS).encode()
    except OSError:
        return None


def disk(folder: Path, needed: int = _FREE_BYTES) -> Finding:
    """Whether `folder` can be written, and has `needed` bytes left."""
    there = folder
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Finding("disk", f"{there} is a file", "name another folder")
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        fix = f"let user {os.getuid()} write there, or name another folder"
        return Finding("disk", f"{there}: {error.strerror}", fix)
    found = f"{free / 1e9:.1f} GB free in {there}"
    if free < needed:
        return Finding("disk", found, f"make room, or name another folder: {needed / 1e9:.1f} GB are wanted")
    return Finding("disk", found)


def device(name: str) -> Finding:
    """Whether torch computes there."""
    import torch

    from common.runtime.compute import device_problem

    if (problem := device_problem(name)) is not None:
        there = torch.cuda.device_count()
        other = f"one of {there} GPUs" if there else "install a torch and a driver for the GPU"
        fix = f"take cpu, or {other}"
        return Finding("device", f"{name}: {problem}", fix)
    return Finding("device", f"torch computes on {name}")


def listening(what: str, address: Address) -> Finding:
    """Whether this host can listen there."""
    try:
        require_free(address)
    except AddressError as error:
        found, _, fix = str(error).partition("; ")
        return Finding(what, found, fix or "choose another address")
    return Finding(what, f"{address} is free")
