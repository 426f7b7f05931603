"""What an alignment does to the sub-FM's hidden-state error, on public text and on the task's text.

    python -m benchmarks.alignment_error [--steps 200] [--json FILE]

Every way of aligning the packaged MiniLM's sub-FM (75 % of the neurons cut), beside each other: the
error after over the error before, and seconds. Public text is BBC News: half of it trains, the other
half tests. The task's are tweets, which no alignment has seen.
"""

import json
import time

from transformers import PreTrainedModel

from benchmarks.measuring import benchmark_parser
from common.config.choices import AlignmentMethod, Saliency
from common.config.method import AlignmentSection, SubModelSection
from common.data.batches import Dataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.records import TaskKind
from coordinator.algorithms.distillation import hidden_error
from coordinator.modelling.building import Recipe, SubModelBuilder
from coordinator.modelling.foundation import load_foundation
from experiments.packaged import bbc_news, packaged_model, tweets

KIND = TaskKind.TEXT_CLASSIFICATION
_BATCHES = 8


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--steps", type=int, default=200, help="steps of the gradient [200]")
    parser.add_argument("--length", type=int, default=64, help="tokens per text [64]")
    parser.add_argument(
        "--saliency", type=Saliency, nargs="+", default=[Saliency.L2], help="ways to choose neurons [l2]"
    )
    options = parser.parse_args()
    loaded = load_foundation(str(packaged_model()), KIND, ("a", "b"), 0)
    fm, tokenizer = loaded.model, loaded.processor

    def dataset(texts: list[str]) -> Dataset:
        return encode(tokenizer, Examples("packaged", texts), KIND, options.length, None)

    news = bbc_news().texts or []
    public, unseen = dataset(news[0::2]), dataset(news[1::2])
    task = dataset((tweets().texts or [])[:2000])
    rows = []
    for saliency in options.saliency:
        for method in AlignmentMethod:
            builder = SubModelBuilder(
                fm,
                KIND,
                public,
                Recipe(
                    SubModelSection(saliency=saliency),
                    AlignmentSection(method=method, steps=options.steps),
                    seed=7,
                ),
            )
            plan, sub_fm = builder.cut(lambda step, steps: None)
            sets = {"public": unseen, "task": task}
            before = {n: _error(fm, sub_fm, plan.compressed, d) for n, d in sets.items()}
            begun = time.perf_counter()
            builder.align(plan, sub_fm, lambda step, steps: None)
            seconds = time.perf_counter() - begun
            after = {n: _error(fm, sub_fm, plan.compressed, d) for n, d in sets.items()}
            rows.append(
                {
                    "saliency": str(saliency),
                    "method": str(method),
                    "seconds": round(seconds, 1),
                    **{f"{n}_before": round(before[n], 4) for n in sets},
                    **{f"{n}_after": round(after[n], 4) for n in sets},
                    **{f"{n}_ratio": round(after[n] / before[n], 3) for n in sets},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def _error(fm: PreTrainedModel, sub_fm: PreTrainedModel, layers: tuple[int, ...], data: Dataset) -> float:
    batches = data.endless(16, 1)
    return hidden_error(fm, sub_fm, layers, (next(batches) for _ in range(_BATCHES)))


if __name__ == "__main__":
    main()
