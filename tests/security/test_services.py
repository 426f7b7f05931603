"""Both services and the owner's commands as processes that know each other by certificates."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cli.main import app
from common.records import Phase
from common.trust.identity import Role
from tests.integration.federation import federation
from tests.security.guarded import COORDINATOR, Certificates
from tests.services import ROOT


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def settings(certificates: Certificates) -> dict[str, object]:
    """A short run that listens to other machines, for workers 1 and 2."""
    files = certificates.server_files(certificates.issue(COORDINATOR.role, COORDINATOR.name))
    return {
        "tls__certificate": str(files.certificate),
        "tls__key": str(files.key),
        "tls__ca": str(files.authority),
        "tls__revoked": str(files.revoked),
        "admission__workers": ("worker-1", "worker-2"),
        "server__listen": "0.0.0.0:0",
        "alignment__steps": 2,
        "realignment__every": 0,
        "rounds__count": 1,
        "rounds__workers": 2,
        "rounds__minimum": 2,
    }


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certs")


def test_a_run_with_certificates_from_start_to_end(
    certificates: Certificates, tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path / "run", model_folder, **settings(certificates)) as running:
        address = running.start_coordinator()["address"].replace("0.0.0.0", "127.0.0.1")
        owner = str(certificates.issue(Role.ADMIN, "owner"))

        def tls(name: str) -> tuple[str, str]:
            return "--tls", str(certificates.issue(Role.WORKER, name))

        tls_of_worker_1 = tls("worker-1")
        # Nothing but wait for those who are wrong: the run needs two workers.
        running.start_worker(1, address, *tls_of_worker_1)
        stranger = running.start_worker(3, address, *tls("worker-3"))
        posing = running.start_worker(4, address, *tls_of_worker_1)
        plain = running.start_worker(5, address, "--join-timeout", "0.1")
        for process in (stranger, posing, plain):
            assert process.wait(60) == 2
        assert "this run does not admit worker 'worker-3'" in running.log("worker-3")
        assert "the certificate is worker/worker-1's" in running.log("worker-4")
        assert "gave no usable answer" in running.log("worker-5")
        for number in (3, 4, 5):
            assert "Traceback" not in running.log(f"worker-{number}")
            del running.processes[f"worker-{number}"]

        shown = command("status", "--coordinator", address, "--tls", owner, "--json")
        assert shown.exit_code == 0 and '"worker-1"' in shown.output
        other = command("stop", "--coordinator", address, *tls_of_worker_1)
        assert other.exit_code == 2
        assert "a certificate of role admin is needed" in other.stderr

        running.start_worker(2, address, *tls("worker-2"))
        running.wait()
        assert running.status().phase is Phase.FINISHED
        for name in ("worker-1", "worker-2"):
            assert f"round 1: update of worker {name}" in running.log("coordinator")


def test_the_owner_stops_a_coordinator_by_an_admins_certificate(
    certificates: Certificates, tmp_path: Path, model_folder: Path
) -> None:
    with federation(tmp_path / "run", model_folder, **settings(certificates)) as running:
        address = running.start_coordinator()["address"].replace("0.0.0.0", "127.0.0.1")
        owner = str(certificates.issue(Role.ADMIN, "owner"))
        stopped = command("stop", "--coordinator", address, "--tls", owner)
        assert stopped.exit_code == 0, stopped.output
        running.wait()


def test_what_is_wrong_with_certificates_costs_one_line_before_anything_starts(
    certificates: Certificates, tmp_path: Path, model_folder: Path
) -> None:
    wrong = settings(certificates) | {"tls__key": str(certificates.issue(Role.WORKER, "w") / "tls.key")}
    with federation(tmp_path / "run", model_folder, **wrong) as running:
        process = running.start("coordinator", "coordinator", "--config", str(running.write_config()))
        assert process.wait(60) == 2
        assert "is not the key of" in running.log("coordinator")
        assert "Traceback" not in running.log("coordinator")


def test_a_list_of_admitted_workers_can_change_between_two_starts(
    certificates: Certificates, tmp_path: Path, model_folder: Path
) -> None:
    given = settings(certificates)
    with federation(tmp_path / "run", model_folder, **given) as running:
        running.start_coordinator()
        running.end()
        running.settings["admission.workers"] = ("worker-1", "worker-2", "worker-3")
        address = running.start_coordinator()["address"].replace("0.0.0.0", "127.0.0.1")
        running.start_worker(3, address, "--tls", str(certificates.issue(Role.WORKER, "worker-3")))
        for _ in running.until("worker 3 is let in"):
            if "joined run" in running.log("worker-3"):
                break


def test_who_speaks_plain_text_is_told_of_in_one_line(certificates: Certificates) -> None:
    """Without the lines that gRPC's core would write of the handshake."""
    owner = str(certificates.issue(Role.ADMIN, "owner"))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "cli", "status", "--coordinator", address, "--tls", owner]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {address} speaks plain text, not TLS; set [tls] there")
