"""A round's updates where each worker is promised privacy and the coordinator adds the noise: their mean."""

from common.config.run import RunConfig
from common.errors import RunFailed
from common.private_task import DpUnit
from common.runtime.fault_points import Point, reach
from coordinator.campaign import announcements
from coordinator.campaign.privacy_told import spent
from coordinator.context import RunContext
from coordinator.modelling.noised_sums import noised_mean
from coordinator.storage.secure import StoredSum
from coordinator.storage.store import Store, StoredUpdate


def tell_spent(run: RunContext) -> None:
    """As metrics: what was promised of each worker, and what has been told of one that was in all sums."""
    dp = run.spec.dp
    if dp is None or dp.unit is not DpUnit.WORKER:
        return
    run.metrics.epsilon.labels(dp.unit).set(dp.epsilon)
    run.metrics.delta.labels(dp.unit).set(dp.delta)
    run.metrics.epsilon_spent.set(spent(dp, run.store))


def adds_noise(config: RunConfig) -> bool:
    """Whether the coordinator does."""
    return config.privacy.dp.unit is DpUnit.WORKER and not config.privacy.secure


def require_promise_left(config: RunConfig, store: Store, number: int) -> None:
    """Before a round is asked for: raise RunFailed when the run's promise is used up, by rounds that were
    gone back on."""
    if config.privacy.dp.unit is not DpUnit.WORKER or store.secure.sum_of(number) is not None:
        return
    made, planned = len(store.secure.releases.all()), config.rounds.count
    if made >= planned:
        raise RunFailed(
            f"round {number}: {made} sums with noise have been told of the {planned} that privacy.dp.epsilon "
            "is for; those that were gone back on count, too. Another run, of other rounds or another "
            "epsilon, begins anew, and its epsilon adds to this one's"
        )


async def noised(run: RunContext, number: int, updates: list[StoredUpdate]) -> list[StoredUpdate]:
    """The updates' mean with noise, as if one worker had sent it, committed; the updates where none is
    added."""
    store, config = run.store, run.config
    if not adds_noise(config) or store.secure.sum_of(number) is not None:
        return updates
    file, release = await run.compute.run(
        noised_mean, store, config.privacy.dp, config.rounds, number, updates
    )
    reach(Point.STEP, "noised")
    total = StoredSum(file.sha256, len(updates), len(updates), 0.0, 0)
    store.secure.commit_sum(number, file, total, release)
    announcements.noised(run, number, total, release)
    accepted = store.accepted(number)
    assert accepted is not None
    return accepted
