"""What a run's privacy comes to, in lines for people: status, page, report, model card."""

from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.secagg.context import threshold
from coordinator.storage.store import Store


def lines(config: RunConfig, store: Store) -> tuple[str, ...]:
    """Nothing where the coordinator sees every update as it is."""
    return (*_of_sums(config, store), *_of_examples(config, store))


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


def _of_examples(config: RunConfig, store: Store) -> list[str]:
    dp = dp_spec(config)
    if dp is None:
        return []
    done = max(store.adapters(), default=0)
    return [
        f"differential privacy of each example of a worker: epsilon {dp.epsilon:g}, delta {dp.delta:g} for "
        f"{dp.rounds} rounds, of which {done} are done; each worker adds the noise itself and tells no loss"
    ]
