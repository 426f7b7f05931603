"""A worker's training step: against a loop written by hand, the sub-FM against the FM, and what counts.

    python -m benchmarks.step_time [--json FILE]

Batches of 16 texts of BBC News, float32, on the packaged MiniLM and its sub-FM (75 % of the FFN's neurons
cut), LoRA of rank 8 on attention. A contestant goes through the same batches, tokenised beforehand;
seconds are of a step, everything that it does for a pass included. The loop by hand is what anybody would
write: forward, loss, backward, clipping, AdamW. "Half the compute" is what the paper says of the sub-FM.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.measuring import Ratio, Spread, Target, benchmark_parser, interleave, report, table, timed
from common.data.batches import Batch, Dataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounter
from common.model.ffn import ffns_of
from common.model.submodel import build
from common.model.tasks import loss
from common.records import AdapterSpec, AdapterTargets, TaskKind, TrainingSpec
from coordinator.algorithms.compression import (
    config_of,
    cut,
    ffn_widths,
    plan_ffn_pruning,
    plan_layer_drop,
)
from coordinator.algorithms.saliency import l2_norm
from coordinator.modelling.foundation import load_foundation
from experiments.packaged import bbc_news, packaged_model, tweets
from worker.train import fine_tune

KIND = TaskKind.TEXT_CLASSIFICATION
SPEC = AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1)
TRAINING = TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0)
SEED = 7


@dataclass(frozen=True)
class Models:
    """The FM, and what workers could train in its place."""

    fm: PreTrainedModel
    sub_fm: PreTrainedModel
    layer_drop: PreTrainedModel


def models_of(fm: PreTrainedModel) -> Models:
    """FedPFT's sub-FM and FedOT's emulator."""
    plans = plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], 0.75), plan_layer_drop(fm, 0.75)
    built = (build(config_of(fm, p), KIND, ffn_widths(fm, p), cut(fm, p)) for p in plans)
    return Models(fm, *built)


def by_hand(adapted: Adapted, batches: Sequence[Batch]) -> Callable[[], None]:
    """The minimal loop."""
    lora, _, head = adapted.parameter_groups()

    def run() -> None:
        adapted.model.train()
        groups = [{"params": lora, "lr": 2e-3}, {"params": head, "lr": 5e-3}]
        optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
        for batch in batches:
            assert batch.labels is not None
            value = loss(adapted.model(**batch.inputs).logits, batch.labels, KIND)
            optimizer.zero_grad()
            value.backward()
            torch.nn.utils.clip_grad_norm_([*lora, *head], 1.0)
            optimizer.step()

    return run


def worker(adapted: Adapted, data: Dataset, counted: bool) -> Callable[[], None]:
    """The worker's own training, from an adapter to the change of it."""
    start = adapted.tensors()
    ffns = dict(enumerate(ffns_of(adapted.base))) if counted else {}

    def run() -> None:
        fine_tune(adapted, start, data, TRAINING, factor=1.0, seed=SEED, counter=ZeroCounter(ffns))

    return run


def steps(models: Models, data: Dataset, repeats: int) -> dict[str, list[float]]:
    """Seconds of a step by contestant."""
    batches = list(data.shuffled(TRAINING.batch_size, SEED))
    fm, sub_fm, dropped = (Adapted(m, KIND, SPEC) for m in (models.fm, models.sub_fm, models.layer_drop))
    contestants = {
        "FM by hand": by_hand(fm, batches),
        "layers dropped, by hand": by_hand(dropped, batches),
        "sub-FM by hand": by_hand(sub_fm, batches),
        # On the very model that the loop by hand trains.
        "worker": worker(sub_fm, data, counted=False),
        "worker, counting": worker(sub_fm, data, counted=True),
    }
    found = interleave({name: timed(work) for name, work in contestants.items()}, repeats)
    return {name: [one / len(batches) for one in seconds] for name, seconds in found.items()}


@dataclass(frozen=True)
class Ungrouped(Dataset):
    """The same rows in batches by chance alone."""

    data: Dataset

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Sequence[int]) -> Batch:
        """As the data set's own."""
        return self.data.batch(indices)


def grouping(model: PreTrainedModel, data: Dataset, repeats: int) -> dict[str, list[float]]:
    """Seconds of a pass over texts of different lengths, in grouped batches and others."""
    adapted = Adapted(model, KIND, SPEC)
    ways = {"grouped by length": data, "by chance": Ungrouped(data)}
    contestants = {name: timed(worker(adapted, way, counted=True)) for name, way in ways.items()}
    return interleave(contestants, repeats)


def padding(data: Dataset) -> float:
    """Share of a pass's places that hold no token."""
    batches = list(data.shuffled(TRAINING.batch_size, SEED))
    places = sum(batch.inputs["input_ids"].numel() for batch in batches)
    return 1 - sum(int(batch.inputs["attention_mask"].sum()) for batch in batches) / places


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 128], help="tokens of a text [64 128]")
    parser.add_argument("--steps", type=int, default=4, help="of a pass [4]")
    parser.add_argument("--repeats", type=int, default=7, help="passes of every contestant [7]")
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    targets: list[Target] = []
    texts = options.steps * TRAINING.batch_size
    news = bbc_news()
    labels = tuple(sorted(set(news.label_names or ())))
    news = news.take([i * len(news) // texts for i in range(texts)])
    for length in options.lengths:
        loaded = load_foundation(str(packaged_model()), KIND, labels, 0)
        data = encode(loaded.processor, news, KIND, length, labels)
        found = steps(models_of(loaded.model), data, options.repeats)
        figures[str(length)] = {
            name: {"milliseconds": Spread.of([1000 * one for one in seconds])}
            | {f"over {other}": Ratio.of(seconds, found[other]) for other in ("FM by hand", "sub-FM by hand")}
            for name, seconds in found.items()
        }
        rate = {
            n: TRAINING.batch_size * 1000 / f["milliseconds"].median for n, f in figures[str(length)].items()
        }
        columns = (f"{length} tokens", "ms a step", "examples/s", "× FM by hand", "× sub-FM by hand")
        rows = [
            (n, f["milliseconds"], round(rate[n], 1), f["over FM by hand"], f["over sub-FM by hand"])
            for n, f in figures[str(length)].items()
        ]
        print(table(columns, rows) + "\n", flush=True)
        counting = Ratio.of(found["worker, counting"], found["worker"])
        figures[str(length)]["counting"] = counting
        targets += [
            Target(
                f"worker's step over the loop by hand, {length} tokens",
                figures[str(length)]["worker"]["over sub-FM by hand"].value,
                1.05,
                False,
            ),
            Target(f"step with APoZ counting over one without, {length} tokens", counting.value, 1.03, False),
        ]
    what = f"sub-FM's step over the FM's, {length} tokens"
    over = figures[str(length)]["sub-FM by hand"]["over FM by hand"].value
    targets.append(Target(what, over, 0.70, False))
    loaded = load_foundation(str(packaged_model()), KIND, ("a",), 0)
    corpus = tweets()
    short = Examples("tweets", (corpus.texts or [])[:512], label_names=["a"] * 512)
    data = encode(loaded.processor, short, KIND, 128, ("a",))
    seconds = grouping(models_of(loaded.model).sub_fm, data, max(1, options.repeats // 4))
    figures["grouping"] = {
        "seconds": {name: Spread.of(values) for name, values in seconds.items()},
        "ratio": Ratio.of(seconds["grouped by length"], seconds["by chance"]),
        "padding": {"grouped by length": padding(data), "by chance": padding(Ungrouped(data))},
    }
    padded = [
        (n, s, f"{figures['grouping']['padding'][n]:.0%}") for n, s in figures["grouping"]["seconds"].items()
    ]
    print(table(("512 tweets", "s a pass", "padding"), padded))
    report(options.json, figures, targets)


if __name__ == "__main__":
    main()
