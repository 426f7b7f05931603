"""What the coordinator sees of workers' updates: each one, or sums, as secure aggregation opens them.

Sums are made by the very functions of workers and coordinator (`common.model.ring_update`): clipped, weighed,
rounded to the ring, added there, and taken back. A test holds them equal to those of a simulated run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor

from common.config.privacy import PrivacySection
from common.model.apoz import ZeroCounts, from_tensors
from common.model.ring_update import SCALARS, as_ring, mean_tensors, read_scalars, ring_tensors
from common.model.update import APOZ, DELTA, Prefixed, update_tensors
from common.secagg.context import ring_step
from common.secagg.records import SecureRound, VectorSpec
from common.secure_task import SecureSpec
from worker.train import LocalUpdate


@dataclass(frozen=True)
class View:
    """Sums of `workers` updates; of one: the update itself.

    `settings` are keys of run.toml under which workers train for it: where they hide more than secure
    sums do, as by noise, that is said here.
    """

    name: str
    title: str
    workers: int
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_sum(self) -> bool:
        """Whether no single update is seen."""
        return self.workers > 1


PLAIN = View("plain", "each update", 1)
VIEWS = MappingProxyType(
    {view.name: view for view in (PLAIN, *(View(f"sum-{n}", f"sum of {n}", n) for n in (3, 5, 10)))}
)


@dataclass(frozen=True)
class Opened:
    """What one look shows: the workers' mean change, weighed by examples, and their summed counts."""

    workers: tuple[str, ...]
    delta: Mapping[str, Tensor]
    counts: Mapping[int, ZeroCounts]


def opened(
    view: View, updates: Mapping[str, LocalUpdate], examples: Mapping[str, int], privacy: PrivacySection
) -> Iterator[Opened]:
    """Every look that `view` gives at these workers' updates, the workers taken in the order of `updates`.

    Those left over are in no sum. `privacy` holds clip, ring and weights.
    """
    names = list(updates)
    for first in range(0, len(names) - view.workers + 1, view.workers):
        group = names[first : first + view.workers]
        if view.is_sum:
            yield _summed(tuple(group), [updates[n] for n in group], [examples[n] for n in group], privacy)
        else:
            alone = updates[group[0]]
            yield Opened((group[0],), alone.delta, alone.counts)


def _summed(
    names: tuple[str, ...], updates: Sequence[LocalUpdate], examples: Sequence[int], privacy: PrivacySection
) -> Opened:
    within = _round(names, updates[0], privacy)
    spec = SecureSpec(within.minimum, privacy.bits, within.by_examples, privacy.most_examples, signed=False)
    total: dict[str, Tensor] = {}
    for update, count in zip(updates, examples, strict=True):
        weight = min(count, privacy.most_examples) if within.by_examples else 1
        for name, tensor in ring_tensors(update.delta, update.counts, weight, update.loss, within).items():
            if name in total:
                words = as_ring(total[name])
                words += as_ring(tensor)
            else:
                total[name] = tensor
    weight = read_scalars(total[SCALARS], spec, len(updates)).weight
    mean = dict(mean_tensors(total, within, weight))
    counts = from_tensors(dict(Prefixed(mean, APOZ)))
    return Opened(names, dict(Prefixed(mean, DELTA)), counts)


def _round(names: tuple[str, ...], like: LocalUpdate, privacy: PrivacySection) -> SecureRound:
    """What clips and rounds; the digests that workers compare have no part in it."""
    bits, colluding = privacy.bits, privacy.colluding_of(len(names))
    vectors = {
        name: VectorSpec(name, tuple(t.shape), bits if name.startswith(DELTA) else 64)
        for name, t in update_tensors(like.delta, like.counts).items()
    } | {SCALARS: VectorSpec(SCALARS, (3,), 64)}
    digest, ordered = bytes(32), tuple(sorted(names))
    return SecureRound(
        run_id="attacks",
        run_digest=digest,
        task_digest=digest,
        round=1,
        attempt=1,
        drawn=ordered,
        electorate=ordered,
        colluding=colluding,
        threshold=(needed := privacy.needed_of(len(names))),
        minimum=needed,
        clip=privacy.clip,
        step=ring_step(privacy.clip, bits, len(names)),
        by_examples=privacy.weights == "examples",
        most_examples=privacy.most_examples,
        vectors=tuple(vectors[name] for name in sorted(vectors)),
    )
