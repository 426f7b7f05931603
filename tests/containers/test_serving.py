"""One coordinator for many runs, as containers: started once, used again and again, killed in the middle.

`make test-containers` runs this after the other; the images are built already then.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.containers.engine import COMPOSE, Engine, Federation
from tests.waiting import until

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3600)]

AT = ("--coordinator", "coordinator:7070", "--tls", "/tls")
# Small: it is services that are looked at.
SMALL = ("rounds.count=2", "alignment.steps=5", "realignment.every=0", "task.max_length=16")


class Served:
    """The services, and what their owner asks of them."""

    def __init__(self, federation: Federation) -> None:
        self.federation = federation

    def submit(self, label: str, *settings: str) -> str:
        """A run's id."""
        given = [word for setting in (*SMALL, *settings) for word in ("--set", setting)]
        command = ("submit", "/etc/fedpft/submit.toml", "--label", label, *given, *AT)
        return self.federation.owner(*command).split()[-1]

    def runs(self) -> dict[str, dict[str, Any]]:
        """All runs by id."""
        return {run["run"]: run for run in json.loads(self.federation.owner("runs", "--json", *AT))}

    def finished(self, *runs: str) -> None:
        """Wait until these are; another end fails at once."""

        def moved() -> object:
            return [(run, found["state"], found["facts"]) for run, found in self.runs().items()]

        for _ in until(f"{runs} are finished", moved, told=self.federation.logs, patience=400, pause=5):
            states = {run: self.runs()[run]["state"] for run in runs}
            assert set(states.values()) <= {"queued", "running", "finished"}, self.runs()
            if set(states.values()) == {"finished"}:
                return


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    """A server and two workers; a third is added later."""
    federation = Federation(Engine.find(), (COMPOSE.parent / "compose.serve.yaml",))
    federation.build()
    federation.compose("down", "--volumes", check=False)
    try:
        federation.compose("up", "--detach", "files", "certificates", "coordinator", "worker-1", "worker-2")
        yield Served(federation)
    finally:
        federation.compose("down", "--volumes", check=False)


def test_services_that_were_started_once_see_all_runs_to_their_end(served: Served) -> None:
    federation = served.federation
    two = ("rounds.workers=2", "rounds.minimum=2", 'admission.workers=["worker-1", "worker-2"]')
    for number in (1, 2, 3):
        served.finished(served.submit(f"run {number}", *two, f"run.seed={number}"))
    since = {name: federation.inspect(name)["State"]["StartedAt"] for name in ("worker-1", "worker-2")}
    federation.compose("up", "--detach", "worker-3")
    one = ("rounds.workers=1", "rounds.minimum=1")
    both = [
        served.submit("two workers", *two),
        served.submit("the new one", *one, 'admission.workers=["worker-3"]'),
    ]
    for _ in until("both are under way", served.runs, told=federation.logs, patience=300, pause=2):
        if all(served.runs()[run]["state"] == "running" for run in both):
            break
    federation.call("kill", "coordinator")
    federation.call("start", "coordinator")
    served.finished(*both)
    found = served.runs()
    assert len(found) == 5 and {run["state"] for run in found.values()} == {"finished"}
    assert all(run["facts"]["score"].startswith("accuracy 0.") for run in found.values())
    # No worker was started again for any of it.
    for name, started in since.items():
        state = federation.inspect(name)["State"]
        assert (state["Running"], state["StartedAt"]) == (True, started)
    history = federation.exec("worker-1", "fedpft", "worker", "history", "--folder", "/data/cache", "--json")
    assert [run["outcome"] for run in json.loads(history)] == ["finished"] * 4
