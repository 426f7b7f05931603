"""How far honest workers' updates differ in norm: what a default for aggregation.norm_limit must allow.

`python -m benchmarks.update_norms`: tweets on the packaged MiniLM, from an equal split to a very uneven one,
3 to 100 workers. Prints the largest norm of a round over the round's median.
"""

import argparse
import statistics
import tempfile
from itertools import product
from pathlib import Path

import torch

from common.config.file import parse_config
from common.data.examples import Columns, read_examples
from common.model.update import DELTA, Prefixed
from common.storage.tensors import TensorFile
from coordinator.algorithms.outliers import norm
from coordinator.storage.store import Store
from experiments.packaged import packaged_model
from experiments.simulation import simulate
from experiments.sources import Sizes, Source, deal_out

ROUNDS = 2
WORKERS = (3, 10, 30, 100)
# Concentrations of a Dirichlet distribution over the classes; None: equal shares.
SPLITS = (None, 1.0, 0.1)


def ratios(folder: Path, workers: int, concentration: float | None, seed: int, examples: int) -> list[float]:
    """Largest norm over median, by round."""
    source = Source("tweets")
    data = deal_out(source, folder / "data", workers, concentration, seed, Sizes(examples, 64, 64))
    config = parse_config(
        {
            "run.directory": folder / "run",
            "run.seed": seed,
            "model.path": str(packaged_model()),
            "task.labels": data.labels,
            "task.max_length": 32,
            "alignment.steps": 0,
            "gradient_gap.batches": 0,
            "rounds.count": ROUNDS,
            "rounds.workers": workers,
        }
        | source.settings(),
        "the benchmark",
    )
    clients = {path.stem: read_examples(path, Columns()) for path in data.workers}
    found: list[float] = []
    # Rounds one by one: files of earlier ones are given up.
    for count in range(1, ROUNDS + 1):
        rounds = config.rounds.model_copy(update={"count": count})
        here = config.run.model_copy(update={"directory": folder / f"run-{count}"})
        simulate(config.model_copy(update={"rounds": rounds, "run": here}), clients)
        store = Store.existing(here.directory)
        updates = store.updates(count)
        norms = [norm(Prefixed(TensorFile(store.artifacts.path(u.sha256)), DELTA)) for u in updates]
        found.append(max(norms) / statistics.median(norms))
        store.close()
    return found


def main() -> None:
    """Print a line for each split and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--examples", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    worst = 0.0
    for concentration, workers in product(SPLITS, WORKERS):
        split = "equal" if concentration is None else f"Dirichlet {concentration:g}"
        found = []
        for seed in range(1, options.seeds + 1):
            with tempfile.TemporaryDirectory() as folder:
                found += ratios(Path(folder), workers, concentration, seed, options.examples)
        worst = max(worst, *found)
        told = ", ".join(f"{ratio:.2f}" for ratio in found)
        print(f"{split:>14}, {workers:3} workers: largest norm / median by round: {told}", flush=True)
    print(f"worst: {worst:.2f}")


if __name__ == "__main__":
    main()
