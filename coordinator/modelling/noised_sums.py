"""Updates that the coordinator sees → their mean with noise that hides each worker. Blocking."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from common.config.dp import DpSection, counting_noise, noise_beside_count, noise_of
from common.config.method import RoundsSection
from common.model.ring_update import l2_norm
from common.model.update import DELTA, Prefixed
from common.privacy.discrete import Integers, discrete_gaussians
from common.privacy.noise import SecretDraws
from common.privacy.whole_worker import Grid, central_grid, factor_within, integers, noised
from common.records import ArtifactKind, ArtifactRef
from common.runtime.compute import one_thread
from common.storage.tensor_header import in_file_order
from coordinator.modelling.round_files import opened
from coordinator.storage.releases import Release
from coordinator.storage.store import Store, StoredUpdate

# How fast the clip follows (Andrew et al. 2021, section 3).
_RATE = 0.2


@one_thread()
def noised_mean(
    store: Store, dp: DpSection, rounds: RoundsSection, number: int, updates: Sequence[StoredUpdate]
) -> tuple[ArtifactRef, Release]:
    """The mean of a round's updates, all of one weight, each scaled down to the clip, with the noise that the
    promise takes; as a file like one of theirs, and what that told."""
    draws, noise = SecretDraws(), noise_of(dp, rounds.count)
    clip = clip_of(dp, store.secure.releases.all(), number)
    counting = None if dp.clip_quantile is None else counting_noise(rounds.minimum)
    grid = central_grid(noise if counting is None else noise_beside_count(noise, counting), clip)
    ordered = sorted(updates, key=lambda update: update.worker)
    deltas = [Prefixed(opened(store, update, len(updates)), DELTA) for update in ordered]
    norms = [l2_norm(delta) for delta in deltas]
    factors = [factor_within(delta, norm, grid) for delta, norm in zip(deltas, norms, strict=True)]
    schema = {
        name: spec for name, spec in opened(store, ordered[0]).schema().items() if name.startswith(DELTA)
    }

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name in in_file_order(schema):
            bare = name.removeprefix(DELTA)
            parts = (integers(d[bare], factor) for d, factor in zip(deltas, factors, strict=True))
            total = sum(parts, start=np.zeros(math.prod(schema[name].shape), dtype=np.int64))
            yield name, _mean(total, grid, len(deltas), draws).reshape(schema[name].shape)

    file = store.artifacts.add_each(ArtifactKind.UPDATE, schema, tensors())
    below = None if counting is None else _share_below(norms, clip, counting, draws)
    return file, Release(number, clip, noise, below)


def clip_of(dp: DpSection, releases: Sequence[Release], number: int) -> float:
    """The largest norm in a round. Where it follows the norms, C exp(-0.2 (b - q)) from the round before, b
    the share of updates below its clip C and q the share that is wanted (Andrew et al. 2021, algorithm 1)."""
    before = [release for release in releases if release.round == number - 1]
    if dp.clip_quantile is None or not before or before[-1].below is None:
        return dp.clip
    return before[-1].clip * math.exp(-_RATE * (before[-1].below - dp.clip_quantile))


def _mean(total: Integers, grid: Grid, workers: int, draws: SecretDraws) -> Tensor:
    return torch.from_numpy((noised(total, grid, draws) * (grid.step / workers)).astype(np.float32))


def _share_below(norms: Sequence[float], clip: float, counting: int, draws: SecretDraws) -> float:
    """Of the updates, those whose norm is at most the clip, with noise of deviation `counting` on how many
    more these are than the others: a worker's being there changes that by 1."""
    more = sum(1 if norm <= clip else -1 for norm in norms)
    return ((more + int(discrete_gaussians(draws, counting, 1)[0])) / len(norms) + 1) / 2
