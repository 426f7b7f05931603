"""What trackers are told of a run, read out of its store: nothing of a single worker."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.listing import first_few
from common.privacy.gaussian import divergence, epsilon_at
from common.records import Phase
from common.run_status import AT_WORKERS, Evaluation
from coordinator.storage.store import ALL_WORKERS, Store, StoredUpdate

# Events whose values are figures of their round, and the group that these stand in.
_TOLD_BY_EVENTS = {
    "stand_in_judged": "stand_in",
    "stand_in_broken": "stand_in",
    "aligned": "alignment",
    "corrected": "correction",
    "correction_left_out": "correction",
}
# Where files lie says nothing about the result, and who listens where is nobody's business.
_LEFT_OUT = frozenset({"run.directory", "data.root", "data.public.path", "data.test.path", "sub_fm.path"})
_SERVICE = frozenset({"server", "tls", "admission", "limits", "tracking"})
# Of fewer workers a mean is what one of them told.
_LEAST_WORKERS = 2

Parameter = str | int | float | bool


@dataclass(frozen=True)
class Figure:
    """A value after a round; round 0 is before the first."""

    name: str
    round: int
    value: float


def figures(store: Store, config: RunConfig) -> list[Figure]:
    """All that is known and will not change, by round, then by name; what is not finite is left out."""
    found = [
        *_scores(store),
        *_losses(store, config),
        *_gaps(store),
        *_bytes(store),
        *_sizes(store),
        *_privacy(store, config),
        *_of_events(store),
    ]
    # What was done anew after a rewind stands later among events, and takes the place of what was before.
    unique = {(figure.round, figure.name): figure for figure in found if math.isfinite(figure.value)}
    return [unique[key] for key in sorted(unique)]


def parameters(config: RunConfig) -> dict[str, Parameter]:
    """What the run is set to, under dotted keys; without paths, and without the service around it."""
    told = dict(_flat(config, ""))
    return told | {"model.path": Path(config.model.path).name}


def _flat(section: BaseModel, prefix: str) -> Iterator[tuple[str, Parameter]]:
    for name in type(section).model_fields:
        key, value = f"{prefix}{name}", getattr(section, name)
        if value is None or key in _LEFT_OUT | _SERVICE:
            continue
        if isinstance(value, BaseModel):
            yield from _flat(value, f"{key}.")
        elif isinstance(value, tuple):
            yield key, first_few(map(str, value), 100)
        elif isinstance(value, bool | int | float):
            yield key, value
        else:
            yield key, str(value)


def _scores(store: Store) -> Iterator[Figure]:
    together = [v for v in store.validations.all() if v.workers and not v.worker]
    evaluations: tuple[Evaluation, ...] = (*store.evaluations(), *(v.as_evaluation for v in together))
    for e in evaluations:
        values = {"accuracy": e.accuracy, "loss": e.loss} | e.told
        yield from (Figure(f"{e.model}/{name}", e.round, value) for name, value in values.items())
    yield from (Figure(f"{AT_WORKERS}/count", v.round, v.workers) for v in together)


def _losses(store: Store, config: RunConfig) -> Iterator[Figure]:
    """The mean training loss of a round's workers, by examples; they tell none under differential privacy."""
    for number in range(1, max(store.adapters(), default=0) + 1):
        workers = store.survivors(number) or []
        yield Figure("training/workers", number, len(workers))
        updates = store.accepted(number)
        if not config.private and updates and len(workers) >= _LEAST_WORKERS:
            yield Figure("training/loss", number, _mean_loss(updates))


def _mean_loss(updates: list[StoredUpdate]) -> float:
    if updates[0].worker == ALL_WORKERS:
        return updates[0].loss
    total = sum(u.examples for u in updates)
    return sum(u.loss * u.examples for u in updates) / total if total else math.nan


def _gaps(store: Store) -> Iterator[Figure]:
    for gap in store.gaps():
        values = {"drift": gap.drift, "cosine": gap.cosine, "norm_ratio": gap.norm_ratio}
        yield from (Figure(f"gradient_gap/{name}", gap.round, value) for name, value in values.items())


def _bytes(store: Store) -> Iterator[Figure]:
    """Of all workers together, once no more are counted: the next round has begun, or the run is finished."""
    finished = store.outcome() == Phase.FINISHED
    down: dict[int, int] = {}
    up: dict[int, int] = {}
    for counts in store.traffic.by_worker().values():
        for count in counts:
            down[count.round] = down.get(count.round, 0) + count.bytes_down
            up[count.round] = up.get(count.round, 0) + count.bytes_up
    for number in down:
        if finished or store.last_try(number + 1):
            yield Figure("bytes/down", number, down[number])
            yield Figure("bytes/up", number, up[number])


def _sizes(store: Store) -> Iterator[Figure]:
    if (stored := store.sub_model()) is None:
        return
    facts, base = stored[2], stored[0].base
    yield Figure("models/fm_parameters", 0, facts.fm_parameters)
    yield Figure("models/sub_fm_parameters", 0, facts.sub_fm_parameters)
    yield Figure("models/adapter_parameters", 0, facts.adapter_parameters)
    yield Figure("models/fm_bytes", 0, facts.fm_bytes)
    yield Figure("models/sub_fm_bytes", 0, base.size)


def _privacy(store: Store, config: RunConfig) -> Iterator[Figure]:
    """What the run promises for all its rounds together; where noise is on sums, what these have come to."""
    if (dp := dp_spec(config)) is None:
        return
    yield Figure("privacy/epsilon", 0, dp.epsilon)
    yield Figure("privacy/delta", 0, dp.delta)
    releases = store.secure.releases.all()
    for made, release in enumerate(releases, start=1):
        spent = epsilon_at(divergence(each.noise for each in releases[:made]), dp.delta)
        yield Figure("privacy/epsilon_spent", release.round, spent)


def _of_events(store: Store) -> Iterator[Figure]:
    for event in reversed(store.events.last_of(tuple(_TOLD_BY_EVENTS), _MOST_EVENTS)):
        group = _TOLD_BY_EVENTS[event.kind]
        yield from (Figure(f"{group}/{name}", event.round, value) for name, value in event.values.items())


# Far more than a run has rounds.
_MOST_EVENTS = 100_000
