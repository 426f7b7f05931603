"""What a run's privacy comes to, in lines for people: status, page, report, model card."""

from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.privacy.gaussian import divergence, epsilon_at
from common.private_task import DpSpec, DpUnit
from common.secagg.context import threshold
from coordinator.storage.store import Store


def lines(config: RunConfig, store: Store) -> tuple[str, ...]:
    """Nothing where the coordinator sees every update as it is."""
    return (*_of_sums(config, store), *_of_dp(config, store))


def _of_sums(config: RunConfig, store: Store) -> list[str]:
    privacy = config.privacy
    if not privacy.secure:
        return []
    drawn = config.rounds.sample or config.rounds.workers
    needed = max(config.rounds.minimum, privacy.needed_of(drawn))
    colluding = privacy.colluding_of(drawn)
    losses = "" if config.private else " losses"
    told = [
        f"sums of {needed} to {drawn} workers: updates, activation counts,{losses} and numbers of examples "
        f"are seen added up alone, as long as at most {colluding} of {drawn} workers tell the coordinator "
        f"what they know; {threshold(drawn, colluding)} must open a sum"
    ]
    if privacy.insecure_keys:
        told.append(
            "keys are not signed (privacy.insecure_keys): whoever runs the coordinator could read everything"
        )
    sums = store.secure.sums()
    if sums:
        last = max(sums)
        clipped = sum(total.clipped for total in sums.values())
        smallest = min(total.workers for total in sums.values())
        scaled = f", {clipped} updates of which were scaled down to the clip" if clipped else ""
        told.append(f"{len(sums)} rounds summed up to round {last}, of {smallest} workers at least{scaled}")
    return told


def _of_dp(config: RunConfig, store: Store) -> list[str]:
    dp = dp_spec(config)
    if dp is None:
        return []
    if dp.unit is DpUnit.WORKER:
        return _of_workers(config, store, dp)
    done = max(store.adapters(), default=0)
    return [
        f"differential privacy of each example of a worker: epsilon {dp.epsilon:g}, delta {dp.delta:g} for "
        f"{dp.rounds} rounds, of which {done} are done; each worker adds the noise itself and tells no loss"
    ]


def spent(dp: DpSpec, store: Store) -> float:
    """Epsilon of a worker that was in all sums so far, those of rounds that were gone back on among them."""
    return epsilon_at(divergence(release.noise for release in store.secure.releases.all()), dp.delta)


def _of_workers(config: RunConfig, store: Store, dp: DpSpec) -> list[str]:
    made = len(store.secure.releases.all())
    drawn = (
        config.rounds.sample + config.rounds.over_select if config.rounds.sample else config.rounds.workers
    )
    if config.privacy.secure:
        honest = max(config.rounds.minimum, config.privacy.needed_of(drawn)) - config.privacy.colluding_of(
            drawn
        )
        whose = f"each worker adds its share of the noise, and {honest} of a sum's are enough"
    else:
        whose = "the coordinator adds the noise: it sees every update and has to be trusted"
    return [
        f"differential privacy of each worker: epsilon {spent(dp, store):.2f} of {dp.epsilon:g}, delta "
        f"{dp.delta:g}, after {made} of {dp.rounds} sums, for a worker that was in all of them; {whose}"
    ]
