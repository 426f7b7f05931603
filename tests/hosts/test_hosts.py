"""Services on hosts of their own, in network namespaces: slow and lossy links, and one that is cut."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from common.records import Phase
from common.run_status import Event
from coordinator.campaign.status import open_run
from tests.hosts.network import Network, NoNamespaces
from tests.integration.federation import Federation
from tests.services import ROOT

DELAY, LOSS = 0.05, 0.01
CUT_SECONDS = 20.0
NAME, PORT = "coordinator.example", 7070
WORKERS = (1, 2, 3)
CUT = "worker-3"

SETTINGS = {
    "rounds.count": 3,
    # So that files are of many packets, of which some get lost.
    "adapter.rank": 64,
    "rounds.deadline_seconds": 600.0,
    # A cut worker is lost after 3 s and waited for: so all rounds have all workers.
    "rounds.grace_seconds": 60.0,
    "server.heartbeat_seconds": 1.0,
    "server.keepalive_seconds": 4.0,
}


@dataclass
class Hosts(Federation):
    """A federation whose processes run on the network's hosts."""

    network: Network = field(kw_only=True)

    def place(self, name: str) -> list[str]:
        return self.network.on(name)

    def fedpft(self, host: str, *arguments: str) -> str:
        """What the command prints on the host."""
        done = subprocess.run(
            [*self.place(host), sys.executable, "-m", "cli", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def events(self, kind: str) -> list[Event]:
        """What has happened so far, of one kind."""
        if not (self.run / "run.sqlite").exists():
            return []
        store, _ = open_run(self.run)
        try:
            return [event for event in store.events.all(0) if event.kind == kind]
        finally:
            store.close()


@pytest.fixture
def network() -> Iterator[Network]:
    """A coordinator's, three workers' and nothing else."""
    hosts = {"coordinator": NAME} | {f"worker-{n}": f"worker-{n}.example" for n in WORKERS}
    try:
        with Network(hosts, DELAY, LOSS) as built:
            yield built
    except NoNamespaces as error:
        pytest.skip(str(error))


def undisturbed(folder: Path, model: Path) -> str:
    """The adapter of the same run on loopback, in plain text."""
    folder.mkdir()
    federation = Federation(folder, model, SETTINGS)
    try:
        address = federation.start_coordinator()["address"]
        for number in WORKERS:
            federation.start_worker(number, address)
        federation.wait()
        return federation.status().adapter_sha256
    finally:
        federation.end()


@pytest.mark.hosts
def test_a_run_over_slow_and_lossy_links_outlives_a_cut_and_ends_with_the_same_bits(
    network: Network, tmp_path: Path, model_folder: Path
) -> None:
    folder = tmp_path / "hosts"
    folder.mkdir()
    certs = folder / "certs"
    tls = certs / "coordinator-hub"
    settings = SETTINGS | {
        "server.listen": f"0.0.0.0:{PORT}",
        "tls.certificate": str(tls / "tls.crt"),
        "tls.key": str(tls / "tls.key"),
        "tls.ca": str(tls / "ca.crt"),
        "admission.workers": tuple(f"worker-{n}" for n in WORKERS),
    }
    hosts = Hosts(folder, model_folder, settings, cold=True, network=network)
    try:
        issue = ("certs", "issue", "--authority", str(certs), "--role")
        hosts.fedpft("coordinator", "certs", "init", "--authority", str(certs))
        hosts.fedpft("coordinator", *issue, "coordinator", "--name", "hub", "--san", NAME)
        hosts.fedpft("coordinator", *issue, "admin", "--name", "owner")
        for n in WORKERS:
            hosts.fedpft("coordinator", *issue, "worker", "--name", f"worker-{n}")

        hosts.start_coordinator()
        address = f"{NAME}:{PORT}"
        assert seconds_to_connect(hosts, CUT) > 4 * DELAY
        identity = {n: ("--tls", str(certs / f"worker-worker-{n}")) for n in WORKERS}
        data = str(hosts.write_data(CUT, 60, 3))
        hosts.fedpft(CUT, "doctor", "--coordinator", address, *identity[3], "--data", data)
        for n in WORKERS:
            hosts.start_worker(n, address, *identity[n], "--keepalive", "4")

        link = network.links[CUT]
        for _ in hosts.until("round 2 is open"):
            for name, process in hosts.processes.items():
                assert process.poll() is None, hosts.log(name)
            if any(event.round == 2 for event in hosts.events("round_opened")):
                break
        link.cut()
        began = time.time()
        time.sleep(CUT_SECONDS / 2)
        owner = ("--coordinator", address, "--tls", str(certs / "admin-owner"))
        assert f"{CUT} (lost" in hosts.fedpft("coordinator", "status", *owner, "--json")
        time.sleep(max(0.0, began + CUT_SECONDS - time.time()))
        link.mend()

        mended = time.time()
        hosts.wait()

        assert hosts.status().phase is Phase.FINISHED
        updates = {(e.round, e.worker): e.time for e in hosts.events("update_received")}
        assert updates.keys() == {(r, f"worker-{n}") for r in (1, 2, 3) for n in WORKERS}
        # The others reported during the cut, the one behind it afterwards: it did strike in the round.
        assert updates[2, CUT] > mended
        assert all(began < updates[2, f"worker-{n}"] < mended for n in WORKERS if f"worker-{n}" != CUT)
        assert [(e.round, e.worker) for e in hosts.events("worker_lost")] == [(2, CUT)]
        assert [e.worker for e in hosts.events("worker_returned")] == [CUT]
        assert not hosts.events("round_short")
        assert all(one.lost > 0 for one in network.links.values())
        assert link.swallowed > 0
        assert hosts.status().adapter_sha256 == undisturbed(tmp_path / "loopback", model_folder)
    finally:
        hosts.end()


def seconds_to_connect(hosts: Hosts, host: str) -> float:
    """How long a TCP handshake with the coordinator takes from the host: one way there, one back."""
    script = (
        "import socket, time; b = time.monotonic(); "
        f"socket.create_connection(({NAME!r}, {PORT})); print(time.monotonic() - b)"
    )
    return float(subprocess.check_output([*hosts.place(host), sys.executable, "-c", script]))
