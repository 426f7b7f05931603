"""Workers that drop out of a sum at each of its steps, for good or for a while, with five of which four must
stay: what simulation says of those that are left, or a clear end from which the same command goes on."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.config.file import load_config
from common.data.examples import Columns, read_examples
from common.errors import CannotTrain
from common.model.adapter import Adapted
from coordinator.campaign.schedule import select
from experiments.clients import ClientTask, LocalClients, RoundTask, SubModel, Trained
from experiments.simulation import simulate
from tests.experiments.test_simulation import digest
from tests.faults.conftest import Make
from tests.faults.federation import MORE_WORKERS
from tests.faults.secure import SecureFederation, frozen, waiting_at

pytestmark = pytest.mark.faults

# One round of five; the threshold is 4, and so is the minimum.
FIVE: dict[str, Any] = {
    "privacy.colluding": 1,
    "rounds.count": 1,
    "rounds.workers": 5,
    "rounds.minimum": 4,
    "rounds.grace_seconds": 1.0,
    "realignment.every": 0,
}
ALL = frozenset(MORE_WORKERS)
LAST, LAST_TWO = "worker-5", ("worker-4", "worker-5")


class Without(LocalClients):
    """Trains all but these."""

    def __init__(self, gone: frozenset[str]) -> None:
        self._gone = gone

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        trained = super().train(here, elsewhere, task, clients)
        for client, update in zip(clients, trained, strict=True):
            yield CannotTrain("gone") if client.client in self._gone else update


@pytest.fixture
def five(make: Make) -> Callable[..., SecureFederation]:
    def made(**settings: Any) -> SecureFederation:
        federation = make(kind=SecureFederation, workers=MORE_WORKERS, settings=FIVE | settings)
        assert isinstance(federation, SecureFederation)
        return federation

    return made


def simulated(federation: SecureFederation, survivors: frozenset[str]) -> str:
    """Digest of the adapter of a simulated run in which the others cannot train."""
    config = load_config(federation.folder / "run.toml")
    directory = federation.folder / "simulated"
    config = config.model_copy(update={"run": config.run.model_copy(update={"directory": directory})})
    clients = {n: read_examples(federation.material.folder / f"{n}.csv", Columns()) for n in MORE_WORKERS}
    simulate(config, clients, trained_by=Without(ALL - survivors))
    return digest(directory)


def hold(federation: SecureFederation, until: Path, call: str, *workers: str) -> None:
    """These workers stand still before the call, until the file is there."""
    for name in workers:
        federation.habits[name] = partial(waiting_at, federation.noted, until, call)


def died(federation: SecureFederation, *names: str) -> None:
    """Wait for it."""
    for name in names:
        assert federation.ended(name) == -9, federation.logs()


# Where it dies, at whose call another waits for that, and who is in the sum.
DROPS = {
    "before its keys": ("call-made/OfferKeys", "", ALL - {LAST}),
    "after its keys": ("reply-received/OfferKeys", "", ALL - {LAST}),
    "after its shares": ("reply-received/OfferShares", "", ALL - {LAST}),
    "in the middle of its upload": ("chunk-sent/update", "", ALL - {LAST}),
    "after its upload": ("reply-received/SubmitUpdate", "", ALL),
    "before it endorses": ("step/secure-endorsement", "EndorseSurvivors", ALL),
    "before it opens": ("step/secure-openings", "OpenShares", ALL),
}


@pytest.mark.parametrize("when", DROPS)
def test_the_sum_goes_on_without_one_that_drops_out_for_good(
    when: str, five: Callable[..., SecureFederation]
) -> None:
    point, call, survivors = DROPS[when]
    federation = five()
    federation.faults[LAST] = [point]
    federation.gone.add(LAST)
    go = federation.folder / "go"
    if call:
        hold(federation, go, call, "worker-1")
    federation.start_all()
    died(federation, LAST)
    go.touch()
    federation.supervise()
    ended = federation.summed()
    assert ended.survivors == (survivors,)
    assert ended.tries == (1,)
    assert ended.adapter == simulated(federation, survivors)
    assert federation.left(without=(LAST,)) == []


@pytest.mark.parametrize(
    "point", ["call-made/OfferKeys", "reply-received/OfferKeys", "reply-received/OfferShares"]
)
def test_a_try_with_one_drop_too_many_is_made_again_with_other_keys(
    point: str, five: Callable[..., SecureFederation]
) -> None:
    """Both are back later: the same workers are asked, and no key of the first try is seen again."""
    # The second try waits for those that are missed; it need not take both otherwise.
    federation = five(**{"rounds.grace_seconds": 6.0})
    federation.faults |= {name: [point] for name in LAST_TWO}
    federation.gone |= set(LAST_TWO)
    federation.start_all()
    died(federation, *LAST_TWO)
    for _ in federation.until("the first try is short"):
        if "try 1" in federation.log("coordinator"):
            break
    federation.gone.clear()
    for name in LAST_TWO:
        federation.start(name)
    federation.supervise()
    ended = federation.summed()
    assert ended.survivors == (ALL,)
    assert ended.tries > (1,)
    assert ended.adapter == simulated(federation, ALL)
    keys = list(federation.keys_by_try().values())
    assert len(keys) > 1
    assert sum(map(len, keys)) == len(set().union(*keys)), "a key of one try was seen in another"
    assert federation.left() == []


def test_too_many_that_stay_away_are_named_and_the_same_command_goes_on(
    five: Callable[..., SecureFederation],
) -> None:
    federation = five(**{"rounds.tries": 1})
    federation.faults |= {name: ["reply-received/OfferShares"] for name in LAST_TWO}
    federation.gone |= set(MORE_WORKERS) | {"coordinator"}
    federation.start_all()
    assert federation.ended("coordinator") == 1
    told = federation.log("coordinator")
    assert "round 1 missed its minimum" in told
    assert all(name in told.rpartition("missing: ")[2] for name in LAST_TWO)
    assert "worker-1" not in told.rpartition("missing: ")[2].partition('"')[0]
    assert "Traceback" not in told
    for name in MORE_WORKERS:
        federation.ended(name)
    federation.gone.clear()
    federation.start_all()
    federation.supervise()
    ended = federation.summed()
    assert ended.survivors == (ALL,)
    assert ended.adapter == simulated(federation, ALL)
    keys = list(federation.keys_by_try().values())
    assert sum(map(len, keys)) == len(set().union(*keys))
    assert federation.left() == []


@pytest.mark.parametrize(
    ("point", "call"),
    [("step/secure-endorsement", "EndorseSurvivors"), ("step/secure-openings", "OpenShares")],
)
def test_who_is_missing_at_the_opening_is_named_and_the_same_command_goes_on(
    point: str, call: str, five: Callable[..., SecureFederation]
) -> None:
    """The updates are decided on: there is no other try, but the sum opens whenever enough are back."""
    federation = five(**{"rounds.tries": 1, "rounds.deadline_seconds": 8.0})
    federation.faults |= {name: [point] for name in LAST_TWO}
    go = federation.folder / "go"
    hold(federation, go, call, "worker-1", "worker-2")
    federation.gone |= set(MORE_WORKERS) | {"coordinator"}
    federation.start_all()
    died(federation, *LAST_TWO)
    go.touch()
    assert federation.ended("coordinator") == 1
    told = federation.log("coordinator").rpartition("missing: ")[2]
    assert "worker-4, worker-5; started again, the run waits for them" in told
    for name in MORE_WORKERS:
        federation.ended(name)
    federation.gone.clear()
    federation.start_all()
    federation.supervise()
    ended = federation.summed()
    assert (ended.survivors, ended.tries) == ((ALL,), (1,))
    assert ended.adapter == simulated(federation, ALL)
    assert federation.left() == []


@pytest.mark.parametrize(
    ("call", "decided"),
    [("OfferShares", "roster"), ("EndorseSurvivors", "survivors"), ("OpenShares", "endorsers")],
)
@pytest.mark.parametrize("with_coordinator", [False, True])
def test_all_workers_can_be_restarted_in_any_step(
    call: str, decided: str, with_coordinator: bool, five: Callable[..., SecureFederation]
) -> None:
    federation = five(**{"rounds.grace_seconds": 60.0})
    go = federation.folder / "go"
    hold(federation, go, call, *MORE_WORKERS)
    federation.start_all()
    for _ in federation.until(f"the {decided} are decided on"):
        if decided in frozen(federation):
            break
    victims = (*MORE_WORKERS, *(("coordinator",) if with_coordinator else ()))
    for name in victims:
        federation.kill(name)
    go.touch()
    federation.supervise()
    assert set(federation.kills) == set(victims)
    ended = federation.summed()
    assert (ended.survivors, ended.tries) == ((ALL,), (1,))
    assert ended.adapter == simulated(federation, ALL)
    assert federation.left() == []


def test_a_try_that_cannot_be_is_said_so_and_is_made_once_more_workers_are_back(
    five: Callable[..., SecureFederation],
) -> None:
    """Of five, four are drawn, and two of them go: with those that are left two sums could be opened."""
    settings = {"rounds.sample": 4, "rounds.minimum": 3, "rounds.tries": 2}
    federation = five(**settings)
    drawn = select(load_config(federation.folder / "run.toml"), 1, MORE_WORKERS)
    going = drawn[-2:]
    federation.faults |= {name: ["reply-received/OfferKeys"] for name in going}
    federation.gone |= set(MORE_WORKERS) | {"coordinator"}
    federation.start_all()
    died(federation, *going)
    assert federation.ended("coordinator") == 1
    told = federation.log("coordinator")
    assert "round 1 cannot be tried again with 3 workers: of 5 that were asked in its tries 4" in told
    for name in MORE_WORKERS:
        federation.ended(name)
    federation.gone.clear()
    federation.start_all()
    federation.supervise()
    ended = federation.summed()
    # All four of the first try are there again, and with them three would do.
    assert ended.survivors == (frozenset(drawn),)
    assert ended.tries == (2,)
    assert federation.left() == []
