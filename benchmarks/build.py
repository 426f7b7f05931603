"""Building the sub-FM: seconds and memory of every way, against the FM's own forward pass.

    python -m benchmarks.build [--json FILE]

The packaged MiniLM on BBC News, 64 tokens, batches of 16, 75 % of the neurons cut. Beside each other in
one run: forward passes of the FM, ways to choose neurons on 4 batches, cutting, the closed form on 16
batches, and 20 steps by gradient. What a way costs is told as so many forward passes of one batch.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.aggregation import extra_memory
from benchmarks.measuring import Spread, benchmark_parser, figure, interleave, report, table, timed
from common.config.choices import AlignmentMethod, Saliency
from common.config.method import AlignmentSection, SubModelSection
from common.data.batches import Dataset
from common.data.encoding import encode
from common.records import TaskKind
from coordinator.modelling.building import Recipe, SubModelBuilder
from coordinator.modelling.foundation import load_foundation
from experiments.packaged import bbc_news, packaged_model

KIND = TaskKind.TEXT_CLASSIFICATION
FORWARD, STEPS, BATCHES = "FM's forward pass, 16 batches", 20, 16


class Bench:
    """The FM, public data, and what is measured on them."""

    def __init__(self) -> None:
        loaded = load_foundation(str(packaged_model()), KIND, ("a", "b"), 0)
        self.fm = loaded.model
        self.public: Dataset = encode(loaded.processor, bbc_news().take(range(0, 2225, 4)), KIND, 64, None)

    def forward(self) -> None:
        """What everything is told in."""
        batches = self.public.endless(16, 1)
        with torch.no_grad():
            for _ in range(BATCHES):
                self.fm(**next(batches).inputs)

    def builder(self, saliency: Saliency, method: AlignmentMethod) -> SubModelBuilder:
        """Of the default settings, but for these."""
        settings = SubModelSection(saliency=saliency)
        alignment = AlignmentSection(method=method, steps=STEPS)
        return SubModelBuilder(self.fm, KIND, self.public, Recipe(settings, alignment, seed=7))

    def contestants(self) -> dict[str, Callable[[], None]]:
        """By what a table calls them."""
        found: dict[str, Callable[[], None]] = {FORWARD: self.forward}
        for saliency in Saliency:
            builder = self.builder(saliency, AlignmentMethod.GRADIENT)
            found[f"choose by {saliency}, and cut"] = lambda b=builder: b.cut(_silent)  # type: ignore[misc]
        for method, told in (
            (AlignmentMethod.CLOSED_FORM, f"align in closed form, {BATCHES} batches"),
            (AlignmentMethod.GRADIENT, f"align by gradient, {STEPS} steps"),
        ):
            found[told] = self._align(self.builder(Saliency.L2, method))
        return found

    def _align(self, builder: SubModelBuilder) -> Callable[[], None]:
        plan, _ = builder.cut(_silent)

        def run() -> None:
            builder.align(plan, builder.cut(_silent)[1], _silent)

        return run


def _silent(step: int, steps: int) -> None:
    """Progress that nobody looks at."""


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=1, help="of everything, after a warm-up [1]")
    options = parser.parse_args()
    bench = Bench()
    memory: dict[str, float] = {}

    def weighed(name: str, work: Callable[[], None]) -> Callable[[], float]:
        def run() -> float:
            with extra_memory() as extra:
                seconds = timed(work)()
            memory[name] = extra[0] / 1e6
            return seconds

        return run

    contestants = {name: weighed(name, work) for name, work in bench.contestants().items()}
    found = interleave(contestants, options.repeats)
    passes = Spread.of(found[FORWARD]).median / BATCHES
    figures: dict[str, Any] = {
        name: {
            "seconds": Spread.of(seconds),
            "forward_passes": Spread.of(seconds).median / passes,
            "megabytes": memory[name],
        }
        for name, seconds in found.items()
    }
    columns = ("what", "s", "forward passes of one batch", "MB more")
    rows = [
        (name, f["seconds"], figure(f["forward_passes"]), figure(f["megabytes"]))
        for name, f in figures.items()
    ]
    print(table(columns, rows))
    report(options.json, figures)


if __name__ == "__main__":
    main()
