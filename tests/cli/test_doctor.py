"""The doctor against planted faults: each is named, with what to do about it."""

import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import typer
from click.testing import Result
from grpc import aio
from typer.testing import CliRunner

from cli import checks
from cli.doctor import doctor
from common.address import Address
from common.config.file import template
from common.transport.rpc import new_server
from common.trust.authority import Authority
from common.trust.identity import Identity, Role
from common.trust.tls import Tls, TlsFiles
from tests.conftest import LABELS, write_table

app = typer.Typer()
app.command()(doctor)


def examine(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})


@contextlib.asynccontextmanager
async def serving(tls: Tls | None) -> AsyncIterator[Address]:
    server, address = new_server(Address("127.0.0.1", 0), tls=tls)
    assert isinstance(server, aio.Server)
    await server.start()
    try:
        yield address
    finally:
        await server.stop(0)


@pytest.fixture
def certificates(tmp_path: Path) -> Callable[[Role], Path]:
    """Folders with certificates of one authority."""
    authority = Authority.create(tmp_path / "authority", "test")

    def issue(role: Role) -> Path:
        authority.issue(Identity(role, "a"), tmp_path / role)
        return tmp_path / role

    return issue


async def in_thread(call: Callable[..., checks.Finding], *arguments: object) -> checks.Finding:
    """The server runs on this thread's event loop."""
    import asyncio

    return await asyncio.to_thread(call, *arguments)


async def test_a_well_host_has_nothing_to_do(certificates: Callable[[Role], Path], tmp_path: Path) -> None:
    import asyncio

    tls = Tls(TlsFiles.in_folder(certificates(Role.COORDINATOR)), Role.COORDINATOR)
    worker = certificates(Role.WORKER)
    data = write_table(tmp_path / "private.csv", 20)
    async with serving(tls) as address:
        options = ("--coordinator", f"localhost:{address.port}", "--tls", worker, "--data", data)
        done = await asyncio.to_thread(examine, *options, "--folder", tmp_path / "cache")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert all(line.startswith("ok") for line in lines)
    names = (
        *("versions", "name resolution", "port", "TLS", "clock", "disk", "device", "private data"),
        "run",
    )
    assert len(lines) == len(names)
    assert all(name in line for name, line in zip(names, lines, strict=True))


# --- planted faults: name, port, versions, disk, device, data ---


def test_an_unknown_host_is_named_and_the_rest_is_still_looked_at(tmp_path: Path) -> None:
    done = examine("--coordinator", "no-such-host.invalid:7070", "--folder", tmp_path)
    assert done.exit_code == 2
    assert "wrong  name resolution  no-such-host.invalid" in done.output
    assert "to do: correct the name, or add it to the DNS" in done.output
    assert "ok    device" in done.output


def test_a_closed_port_is_told_from_a_silent_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = Address("127.0.0.1", server.getsockname()[1])
    assert "nothing listens" in checks.port(closed).found
    assert "start the coordinator" in checks.port(closed).fix
    # A full queue of connections drops what comes, as a firewall does.
    monkeypatch.setattr(checks, "_CONNECT_SECONDS", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = Address(*server.getsockname())
        with contextlib.ExitStack() as waiting:
            for _ in range(4):
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(server.getsockname())
            silent = checks.port(address)
    assert "no answer" in silent.found
    assert "firewall" in silent.fix


def test_a_package_that_is_too_old_or_missing_is_named() -> None:
    found = checks.versions(["torch>=99", "no-such-package>=1", "pydantic>=2", 'ray>=99; extra == "ray"'])
    assert "torch is" in found.found and "not >=99" in found.found
    assert "no-such-package is missing" in found.found
    assert "pydantic" not in found.found and "ray" not in found.found
    assert "pip install" in found.fix


def test_a_full_disk_and_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    full = checks.disk(tmp_path / "not" / "there", needed=10**18)
    assert "GB free" in full.found and "make room" in full.fix
    (tmp_path / "file").write_text("")
    assert "is a file" in checks.disk(tmp_path / "file" / "cache").found


@pytest.mark.parametrize("name", ["cuda:7", "gpu"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    found = checks.device(name)
    assert name in found.found
    assert "take cpu" in found.fix


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--text-column", "review"], "text, label"), (["--label-column", "stars"], "text, label")],
)
def test_data_with_other_columns_is_named(options: list[str], says: str, tmp_path: Path) -> None:
    data = write_table(tmp_path / "private.csv", 20)
    done = examine("--coordinator", "127.0.0.1:1", "--data", data, "--folder", tmp_path, *options)
    assert "wrong  private data" in done.output
    assert says in done.output
    assert "correct the path or the columns' names" in done.output


def test_a_missing_data_file_is_named(tmp_path: Path) -> None:
    done = examine("--coordinator", "127.0.0.1:1", "--data", tmp_path / "none.csv", "--folder", tmp_path)
    assert "wrong  private data" in done.output and "none.csv" in done.output


# --- planted faults: TLS and clock ---


async def test_plain_text_on_one_side_is_named(certificates: Callable[[Role], Path]) -> None:
    tls = Tls(TlsFiles.in_folder(certificates(Role.COORDINATOR)), Role.COORDINATOR)
    async with serving(tls) as address:
        found = await in_thread(checks.tls, address, None)
    assert "speaks TLS, and no certificate is given" in found.found
    assert "--tls" in found.fix
    async with serving(None) as address:
        found = await in_thread(checks.tls, address, certificates(Role.WORKER))
        plain = await in_thread(checks.tls, address, None)
    assert "speaks plain text" in found.found and not found.ok
    assert plain.ok


async def test_a_name_that_is_not_in_the_certificate_is_named(
    certificates: Callable[[Role], Path],
) -> None:
    tls = Tls(TlsFiles.in_folder(certificates(Role.COORDINATOR)), Role.COORDINATOR)
    worker = certificates(Role.WORKER)
    server, address = new_server(Address("0.0.0.0", 0), tls=tls)
    assert isinstance(server, aio.Server)
    await server.start()
    # All of 127.0.0.0/8 is this host; the certificate has one address of it.
    found = await in_thread(checks.tls, Address("127.0.0.2", address.port), worker)
    await server.stop(0)
    assert "the coordinator's certificate" in found.found
    assert "--san 127.0.0.2" in found.fix


async def test_certificates_of_another_authority_are_named_on_either_side(
    certificates: Callable[[Role], Path], tmp_path: Path
) -> None:
    tls = Tls(TlsFiles.in_folder(certificates(Role.COORDINATOR)), Role.COORDINATOR)
    stranger = tmp_path / "stranger"
    Authority.create(tmp_path / "other", "other").issue(Identity(Role.WORKER, "a"), stranger)
    async with serving(tls) as address:
        unknown = await in_thread(checks.tls, address, stranger)
        # Trusts the coordinator, but is not trusted by it.
        (stranger / "ca.crt").write_bytes((tmp_path / Role.COORDINATOR / "ca.crt").read_bytes())
        refused = await in_thread(checks.tls, address, stranger)
    assert "the coordinator's certificate" in unknown.found and "take ca.crt" in unknown.fix
    assert "the coordinator refuses" in refused.found and "certs issue" in refused.fix


def test_a_key_of_another_certificate_is_named(certificates: Callable[[Role], Path]) -> None:
    worker, admin = certificates(Role.WORKER), certificates(Role.ADMIN)
    (worker / "tls.key").write_bytes((admin / "tls.key").read_bytes())
    found = checks.tls(Address("127.0.0.1", 1), worker)
    assert "KEY_VALUES_MISMATCH" in found.found and "certs issue" in found.fix


def test_a_clock_that_is_wrong_is_told_from_a_certificate_that_ran_out(
    certificates: Callable[[Role], Path],
) -> None:
    worker, now = certificates(Role.WORKER), datetime.now(UTC)
    assert checks.clock(None, worker, now).ok
    behind = checks.clock(None, worker, now - timedelta(days=400))
    assert "is valid from" in behind.found and "set this host's clock" in behind.fix
    expired = checks.clock(None, worker, now + timedelta(days=400))
    assert "expired on" in expired.found and "renew" in expired.fix


# --- the owner's host ---


@pytest.fixture
def taken() -> Iterator[Address]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield Address(*server.getsockname())


def test_the_owners_host_is_examined_by_its_configuration(tmp_path: Path, taken: Address) -> None:
    values = {
        "run.directory": str(tmp_path / "run"),
        "model.path": str(tmp_path / "model"),
        "task.labels": LABELS,
        "data.public.path": str(write_table(tmp_path / "public.csv", 10, labelled=False)),
        "data.test.path": str(tmp_path / "none.csv"),
        "server.listen": str(taken),
        "server.metrics": "127.0.0.1:0",
        "server.page": str(taken),
    }
    path = tmp_path / "run.toml"
    path.write_text(template(values))
    done = examine("--config", path)
    assert done.exit_code == 2
    wrong = [line.split()[1] for line in done.output.splitlines() if line.startswith("wrong")]
    assert wrong == ["port", "page", "model", "test"]
    assert "ok    public data  10 examples" in done.output


def test_one_side_is_to_be_named() -> None:
    done = examine()
    assert done.exit_code == 2
    assert "--coordinator HOST:PORT" in done.output
