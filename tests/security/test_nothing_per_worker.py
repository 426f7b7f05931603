"""In a run of sums nobody but a worker itself learns its examples, losses or steps: everything that the owner
can read of a real run, with TLS, is searched for them."""

import json
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.records import JoinRequest, Progress
from common.trust.identity import Role
from tests.conftest import write_table
from tests.faults.federation import Material
from tests.faults.secure import THREE, SecureFederation, secured
from tests.otlp import Receiver
from tests.security.guarded import Certificates
from tests.security.test_services import command

pytestmark = pytest.mark.slow

# Prime, and of four digits: they stand nowhere by chance.
EXAMPLES = dict(zip(THREE, (1009, 1013, 1019), strict=True))
BATCH = 32


@dataclass(frozen=True)
class Own:
    """What is one worker's alone: numbers, as they could be written."""

    worker: str
    round: int
    loss: float

    @property
    def told(self) -> list[re.Pattern[str]]:
        digits = f"{self.loss:.5f}"
        # With three digits one may stand by chance; five are looked for.
        return [re.compile(rf"(?<![\d.]){re.escape(digits)}"), _alone(EXAMPLES[self.worker])]


def _alone(number: int) -> re.Pattern[str]:
    return re.compile(rf"(?<![\d.]){number}(?!\d)")


def note_own(folder: Path) -> None:
    """In a worker's process: write down the losses of its updates."""
    from worker.outbox import Outbox

    keep = Outbox.keep

    def kept(outbox: Outbox, question: str, header: Any, content: bytes) -> Any:
        name = outbox._update.parent.parent.name
        with (folder / "losses").open("a") as file:
            file.write(json.dumps([name, header.round, header.loss]) + "\n")
        return keep(outbox, question, header, content)

    Outbox.keep = kept  # type: ignore[method-assign]


def note_heard(folder: Path) -> None:
    """In the coordinator's process: write down what workers tell of themselves, as it came."""
    from coordinator.federation.inbox import Inbox
    from coordinator.federation.sessions import Sessions

    join, report, admit = Sessions.join, Sessions.report, Inbox.admit

    def note(*told: object) -> None:
        with (folder / "heard").open("a") as file:
            file.write(json.dumps(told) + "\n")

    def joined(sessions: Sessions, request: JoinRequest) -> Any:
        note("join", request.worker, request.examples, request.validation)
        return join(sessions, request)

    def reported(sessions: Sessions, session: Any, progress: Progress) -> Any:
        note("beat", session.worker, progress.activity, progress.step, progress.steps, progress.loss)
        return report(sessions, session, progress)

    def admitted(inbox: Inbox, worker: str, examples: int, header: Any) -> bool:
        note("header", worker, header.examples, header.loss, header.seconds)
        return admit(inbox, worker, examples, header)

    Sessions.join, Sessions.report, Inbox.admit = joined, reported, admitted  # type: ignore[method-assign]


@pytest.fixture
def material(tmp_path: Path) -> Material:
    """As the other federations', with data of these sizes."""
    made = Material.make(tmp_path / "material")
    for number, (name, examples) in enumerate(EXAMPLES.items(), 1):
        write_table(made.folder / f"{name}.csv", examples, number)
    return made


@pytest.fixture
def watched(tmp_path: Path, material: Material) -> Iterator[SecureFederation]:
    certificates = Certificates(tmp_path / "certs")
    settings, extra = secured(certificates, THREE)
    settings |= {
        "training.batch_size": BATCH,
        "server.page": "127.0.0.1:0",
        "server.heartbeat_seconds": 0.1,
    }
    federation = SecureFederation(tmp_path / "federation", material, settings=settings, extra=extra)
    for name in THREE:
        federation.habits[name] = partial(note_own, federation.noted)
    federation.habits["coordinator"] = partial(note_heard, federation.noted)
    certificates.issue(Role.ADMIN, "owner")
    yield federation
    federation.end()


def read(url: str) -> str:
    return str(urllib.request.urlopen(url, timeout=10).read().decode())


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_nothing_that_the_owner_can_read_is_of_a_single_worker(
    watched: SecureFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint)
    seen: dict[str, str] = {}
    with receiver.serving():
        watched.start("coordinator")
        endpoint = watched.endpoint()
        # Workers' own traces go where their owners say, which is not here.
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
        for name in THREE:
            watched.start(name)
        page = f"http://127.0.0.1:{endpoint['page_port']}/run.json"
        metrics = f"http://127.0.0.1:{endpoint['metrics_port']}/metrics"
        owner = str(tmp_path / "certs" / "admin-owner")

        def look() -> None:
            for what, url in (("page", page), ("metrics", metrics)):
                try:
                    seen[what] = seen.get(what, "") + read(url) + "\n"
                except OSError:
                    return
            if "status" not in seen and "update of worker" in watched.log("coordinator"):
                told = command("status", "--coordinator", watched.address, "--tls", owner, "--json")
                if told.exit_code == 0:
                    seen["status"] = told.output

        watched.supervise(each=look)
    assert {"page", "metrics", "status"} <= seen.keys()
    ended = watched.summed()
    assert ended.tries == (1, 1)
    seen["logs"] = "\n".join(str(line["message"]) for line in lines(watched.folder / "coordinator.log"))
    seen["spans"] = "\n".join(
        json.dumps([span.name, span.attributes, span.resource])
        for span in receiver.spans
        if span.service == "fedpft-coordinator"
    )
    assert seen["spans"]
    with watched.store() as store:
        tables = [
            row[0] for row in store.database.rows("SELECT name FROM sqlite_master WHERE type = 'table'")
        ]
        for table in tables:
            seen[f"table {table}"] = "\n".join(map(str, store.database.rows(f"SELECT * FROM {table}")))
        events = store.database.rows("SELECT kind, worker, figures FROM events WHERE worker != ''")
        assert all(store.workers()[name] == 0 for name in THREE)
        assert {u.examples for n in (1, 2) for u in store.updates(n)} == {0}
        assert {(u.loss, u.seconds) for n in (1, 2) for u in store.updates(n)} == {(0.0, 0.0)}
    assert {kind for kind, _, _ in events} >= {"worker_joined", "update_received", "worker_left"}
    for kind, name, figures in events:
        told = {figure: value for figure, value in json.loads(figures).items() if figure != "bytes"}
        assert not any(told.values()), f"{kind} of {name} tells {told}"

    losses = [Own(*told) for told in lines(watched.noted / "losses")]
    assert {(own.worker, own.round) for own in losses} == {(name, n) for name in THREE for n in (1, 2)}
    for own in losses:
        for pattern in own.told:
            found = {where: pattern.search(text) for where, text in seen.items()}
            assert not any(found.values()), f"{pattern.pattern} of {own.worker} in {found}"
    # What is searched for would be found: the sums are there.
    assert _alone(sum(EXAMPLES.values())).search(seen["table secure_sums"])
    assert f"{ended.sums[0][2]:.3f}" in seen["logs"]

    heard = lines(watched.noted / "heard")
    assert {tuple(told[2:]) for told in heard if told[0] == "join"} == {(0, 0)}
    assert {tuple(told[2:]) for told in heard if told[0] == "header"} == {(0, 0.0, 0.0)}
    beats = [told for told in heard if told[0] == "beat"]
    assert {"training", "uploading"} & {told[2] for told in beats}
    assert {(told[4], told[5]) for told in beats} == {(0, 0.0)}
    for name in THREE:
        # That it goes on, not how far: no more steps than times that it said so.
        said = [told[3] for told in beats if told[1] == name]
        assert all(step <= number for number, step in enumerate(said, 1)), said
    shown = [worker for line in seen["page"].splitlines() for worker in json.loads(line)["workers"]]
    assert {worker["name"] for worker in shown} == set(THREE)
    assert {worker["examples"] for worker in shown} == {0}
