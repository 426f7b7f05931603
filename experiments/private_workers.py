"""What hiding each worker as a whole costs in accuracy: the head on BBC News, dealt out to many workers.

python -m experiments.private_workers [SEEDS]

The documents, model and head are those of `private_head`, the noise and the integers those of a run.
"""

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.model import passes
from common.model.adapter import Adapted, plus
from common.model.ring_update import l2_norm
from common.privacy.discrete import Integers
from common.privacy.gaussian import noise_for_rounds
from common.privacy.noise import SecretDraws
from common.privacy.whole_worker import Grid, central_grid, factor_within, integers, noised, shared_grid
from common.records import LocalOptimizer, TrainingSpec
from common.runtime import seeds
from common.secagg.context import default_colluding, threshold
from experiments.private_head import DELTA, TEST, Documents, read_documents
from worker.train import fine_tune

DOCUMENTS, ROUNDS = 1600, 4
TRAINING = TrainingSpec(8, 8, 0.0, 10.0, 0.0, 1.0, optimizer=LocalOptimizer.SGD)


@dataclass(frozen=True)
class Place:
    """Who adds the noise: the workers, each a share of it, or the coordinator."""

    workers: bool
    epsilon: float
    clip: float

    def mean(self, deltas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Of updates scaled down to the clip, with noise."""
        n, noise = len(deltas), noise_for_rounds(self.epsilon, DELTA, ROUNDS)
        if self.workers:
            colluding = default_colluding(n)
            grid = shared_grid(noise, self.clip, n, threshold(n, colluding) - colluding, 32)
        else:
            grid = central_grid(noise, self.clip)
        factors = [factor_within(delta, l2_norm(delta), grid) for delta in deltas]
        draws = SecretDraws()
        return {
            name: self._noised(
                [integers(delta[name], factor) for delta, factor in zip(deltas, factors, strict=True)],
                grid,
                draws,
            ).reshape(tensor.shape)
            for name, tensor in deltas[0].items()
        }

    def _noised(self, parts: Sequence[Integers], grid: Grid, draws: SecretDraws) -> Tensor:
        total = np.sum(parts, axis=0)
        for _ in range(len(parts) if self.workers else 1):
            total = noised(total, grid, draws)
        return torch.from_numpy((total * (grid.step / len(parts))).astype(np.float32))


def accuracy(
    model: Adapted, read: Tensor, classes: Tensor, workers: int, place: Place | None, seed: int
) -> float:
    """On the test documents, after all rounds; without a place of noise as it would be without privacy."""
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=draw)[: TEST + DOCUMENTS]
    test, *parts = order.split([TEST, *[DOCUMENTS // workers] * workers])
    data = [Documents(read[part], classes[part]) for part in parts]
    adapter = {name: torch.zeros_like(tensor) for name, tensor in model.tensors().items()}
    for number in range(ROUNDS):
        deltas = []
        for worker, own in enumerate(data):
            own_seed = seeds.derive(seed, "private-workers", worker, number) % 2**62
            factor = 1 - number / ROUNDS
            deltas.append(fine_tune(model, adapter, own, TRAINING, factor=factor, seed=own_seed).delta)
        if place is None:
            mean = {name: torch.stack([d[name] for d in deltas]).mean(0) for name in deltas[0]}
        else:
            mean = place.mean(deltas)
        adapter = plus(adapter, mean)
    model.load(adapter)
    with torch.no_grad():
        scores = passes.logits(model.model, {"input_ids": read[test]})
    return float((scores.argmax(-1) == classes[test]).float().mean())


def main(count: int, clip: float = 1.0) -> None:
    """Print mean and spread over so many splits."""
    torch.set_num_threads(1)
    model, read, classes = read_documents()
    for workers in (20, 100, 400):
        # Of secure sums 128 workers are the most.
        places = (False, True) if workers <= 100 else (False,)
        noises = [Place(by, epsilon, clip) for by in places for epsilon in (8.0, 3.0)]
        for place in (None, *noises):
            found = [accuracy(model, read, classes, workers, place, seed) for seed in range(1, count + 1)]
            spread = statistics.stdev(found) if count > 1 else 0.0
            print(f"{workers} workers, {place}: {statistics.mean(found):.3f} ± {spread:.3f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3, *map(float, sys.argv[2:3]))
