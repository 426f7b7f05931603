"""What became of a worker's turn ends the waiting for it, and says why: by real processes."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.address import Address
from common.errors import FedPftError
from common.records import Phase
from common.run_status import Event, RunStatus
from coordinator.owner.admin_client import Admin
from tests.faults.federation import Federation, Material
from tests.field import habits

# One round's work is a second; a round that waits for nobody would last ten minutes.
SETTINGS: dict[str, Any] = {
    "alignment.steps": 0,
    "realignment.every": 0,
    "gradient_gap.batches": 0,
    "validation.every": 0,
    "adapter.rank": 8,
    "aggregation.optimizer": "none",
    "rounds.minimum": 1,
    "rounds.deadline_seconds": 600.0,
    "rounds.grace_seconds": 20.0,
}
GOOD, BAD = "worker-1", "worker-2"

Make = Callable[..., Federation]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material.make(tmp_path_factory.mktemp("material"))


@pytest.fixture
def make(tmp_path: Path, material: Material) -> Iterator[Make]:
    """Makes a federation of a good worker and one with a habit, and ends what is left of it."""
    made: list[Federation] = []

    def one(habit: Callable[[], None], **settings: Any) -> Federation:
        dotted = {key.replace("__", "."): value for key, value in settings.items()}
        made.append(Federation(tmp_path, material, SETTINGS | dotted, habits={BAD: habit}))
        return made[-1]

    yield one
    for federation in made:
        federation.end()


def statuses(federation: Federation) -> tuple[list[RunStatus], Callable[[], None]]:
    """What `fedpft status` would have shown so far, and what looks again."""
    seen: list[RunStatus] = []

    async def ask() -> None:
        async with Admin(Address.parse(federation.address)) as admin:
            seen.append(await admin.status())

    def look() -> None:
        try:
            asyncio.run(ask())
        except FedPftError:
            # It does not listen yet, or not any more.
            return

    return seen, look


def restarting(federation: Federation, name: str) -> Callable[[], None]:
    """A supervisor with `restart: on-failure`; `supervise` does the same after a SIGKILL only."""

    def look() -> None:
        if federation.processes[name].exitcode not in (None, 0):
            federation.start(name)

    return look


def events(federation: Federation, *kinds: str) -> list[Event]:
    with federation.store() as store:
        assert store.outcome() == Phase.FINISHED, federation.logs()
        return [e for e in store.events.all() if e.kind in kinds]


def closed_after(federation: Federation, round_number: int, since: float) -> float:
    """Seconds from a moment to the end of a round's last try."""
    with federation.store() as store:
        rows = store._rows("SELECT closed FROM tries WHERE round = ? ORDER BY try DESC", round_number)
    return float(rows[0][0]) - since


def accepted(federation: Federation, round_number: int) -> list[str]:
    with federation.store() as store:
        return [u.worker for u in store.accepted(round_number) or []]


@pytest.mark.parametrize(
    ("habit", "kind", "reason"),
    [
        (habits.sends_what_is_no_number, "update_refused", "holds NaN or infinite values"),
        (habits.says_a_loss_of_nan, "update_refused", "loss and seconds must be finite, got nan"),
        (habits.diverges, "worker_cannot", "training diverged: the loss is nan in step"),
        (habits.runs_out_of_memory, "worker_cannot", "out of memory"),
        (habits.cannot_fetch, "worker_cannot", "what the task names cannot be fetched"),
    ],
)
def test_a_turn_that_came_to_nothing_is_not_waited_for_and_the_worker_takes_part_in_the_next_round(
    make: Make, habit: Callable[[], None], kind: str, reason: str
) -> None:
    federation = make(habit)
    federation.start_all()
    federation.supervise()
    told = next(e for e in events(federation, kind) if e.worker == BAD)
    assert told.round == 1 and reason in told.text
    assert closed_after(federation, 1, told.time) < 5
    assert (accepted(federation, 1), accepted(federation, 2)) == ([GOOD], [GOOD, BAD])


def test_the_owner_sees_who_is_not_waited_for_and_why(make: Make) -> None:
    federation = make(habits.diverges)
    federation.habits[GOOD] = habits.hangs_in_training
    federation.start_all()
    seen, look = statuses(federation)
    ends = time.monotonic() + 30
    while not any("training diverged" in s.waiting_for for s in seen[-1:]):
        assert time.monotonic() < ends, federation.logs()
        look()
    assert seen[-1].waiting_for.startswith(f"updates of {GOOD}; not of {BAD} (training diverged: ")
    (line,) = [w.progress.trouble for w in seen[-1].workers if w.worker == BAD]
    assert "learning_rate" in line and "--device" in line


def test_a_worker_whose_training_diverges_says_what_to_do_and_keeps_nothing(make: Make) -> None:
    federation = make(habits.diverges, rounds__count=1)
    federation.start_all()
    federation.supervise()
    log = federation.log(BAD)
    assert "training diverged" in log and "lower training.learning_rate" in log and "Traceback" not in log
    assert not list((federation.folder / BAD / "outbox").glob("*"))


def test_a_run_that_lacks_a_workers_update_names_the_reason(make: Make) -> None:
    federation = make(habits.diverges, rounds__minimum=2, rounds__tries=1)
    federation.start_all()
    federation.processes["coordinator"].join(60)
    last = federation.log("coordinator").strip().splitlines()[-1]
    assert f"missing: {BAD} (training diverged" in last


@pytest.mark.parametrize("habit", [habits.is_killed_in_training, habits.is_killed_at_the_same_step])
def test_a_worker_that_is_killed_in_every_training_is_given_up_and_later_at_once(
    make: Make, habit: Callable[[], None]
) -> None:
    federation = make(habit)
    federation.start_all()
    federation.supervise()
    first, second = events(federation, "worker_given_up")
    assert first.text == f"worker {BAD} has died 3 times in round 1; going on without it"
    assert second.text == f"worker {BAD} has died again in round 2; going on without it"
    assert closed_after(federation, 1, first.time) < 5
    assert closed_after(federation, 2, second.time) < 5
    assert federation.kills[BAD] == 4
    assert accepted(federation, 2) == [GOOD]


def test_a_worker_that_ends_with_an_error_in_every_training_is_given_up(make: Make) -> None:
    federation = make(habits.ends_with_an_error_in_training, rounds__count=1)
    # The other one keeps the round open.
    federation.habits[GOOD] = habits.hangs_in_training
    federation.start_all()
    again = restarting(federation, BAD)
    ends = time.monotonic() + 60
    while "has left 3 times" not in federation.log("coordinator"):
        assert time.monotonic() < ends, federation.logs()
        again()
        time.sleep(0.02)


def test_a_worker_that_hangs_is_heard_and_all_the_same_not_waited_for_for_ever(make: Make) -> None:
    federation = make(habits.hangs_in_training, rounds__count=1, rounds__stall_seconds=3.0)
    federation.start_all()
    ends = time.monotonic() + 60
    while "has come no further" not in federation.log("coordinator"):
        assert time.monotonic() < ends, federation.logs()
        time.sleep(0.02)
    federation.processes.pop(BAD).kill()
    federation.supervise()
    (told,) = events(federation, "worker_given_up")
    assert told.text == f"worker {BAD} has come no further in round 1 for 3 s; going on without it"
    assert closed_after(federation, 1, told.time) < 5
    assert accepted(federation, 1) == [GOOD]


def test_a_try_that_a_failing_worker_made_short_is_repeated_with_one_that_comes_meanwhile(
    make: Make,
) -> None:
    """Not three times in a second with the one that fails."""
    federation = make(habits.says_a_loss_of_nan, rounds__minimum=2, rounds__tries=3)
    workers = federation.workers
    for ending in (".csv", "-aside.csv"):
        data = federation.material.folder / f"{GOOD}{ending}"
        data.with_name(f"worker-3{ending}").write_bytes(data.read_bytes())
    federation.habits["worker-3"] = habits.diverges
    for name in ("coordinator", BAD, "worker-3"):
        federation.start(name)
    while "try 1: 0 of at least 2 updates" not in federation.log("coordinator"):
        time.sleep(0.02)
    federation.workers = (*workers, "worker-3")
    federation.start(GOOD)
    federation.supervise()
    with federation.store() as store:
        assert store.outcome() == Phase.FINISHED, federation.logs()
    (short,) = events(federation, "round_short")
    assert f"{BAD} (its update was refused" in short.text and "worker-3 (training diverged" in short.text
