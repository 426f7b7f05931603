"""A worker's training step on the sub-FM against the same step on the whole FM.

    python -m benchmarks.step_time [--json FILE]

Interleaved, with medians: machine noise hits both alike. Float32, batch 16 of 64 tokens.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from common.batches import Batch
from common.model.adapter import Adapted
from common.model.families import ffns_of
from common.model.submodel import build
from common.model.tasks import loss
from common.records import AdapterSpec, AdapterTargets, TaskKind
from coordinator.algorithms.compression import (
    config_of,
    cut,
    ffn_widths,
    plan_ffn_pruning,
    plan_layer_drop,
)
from coordinator.algorithms.saliency import l2_norm
from coordinator.foundation import load_foundation
from experiments.packaged import packaged_model

KIND = TaskKind.TEXT_CLASSIFICATION
TARGETS = (AdapterTargets.ATTENTION, AdapterTargets.ATTENTION_FFN)


def step(adapted: Adapted, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one optimiser step."""
    assert batch.labels is not None
    begun = time.perf_counter()
    value = loss(adapted.model(**batch.inputs).logits, batch.labels, KIND)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return time.perf_counter() - begun


def contestants(targets: AdapterTargets) -> dict[str, Adapted]:
    """The FM, FedPFT's sub-FM and FedOT's emulator, each with a fresh adapter."""
    fm, _ = load_foundation(str(packaged_model()), KIND, ("a", "b"), 0)
    spec = AdapterSpec(targets, 8, 32.0, 0.1)
    plans = {
        "sub_fm": plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], 0.75),
        "layer_drop": plan_layer_drop(fm, 0.75),
    }
    models = {
        name: build(config_of(fm, plan), KIND, ffn_widths(fm, plan), cut(fm, plan))
        for name, plan in plans.items()
    }
    return {name: Adapted(model, KIND, spec) for name, model in ({"fm": fm} | models).items()}


def measure(targets: AdapterTargets, repeats: int) -> dict[str, float]:
    """Median milliseconds of a step by model."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30000, (16, 64), generator=draw)
    batch = Batch(
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)},
        torch.randint(2, (16,), generator=draw),
    )
    models = contestants(targets)
    optimizers = {}
    for name, adapted in models.items():
        adapted.model.train()
        trainable = [p for group in adapted.parameter_groups() for p in group]
        optimizers[name] = torch.optim.AdamW(trainable, lr=1e-4)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(repeats + 3):
        for name, adapted in models.items():
            took = step(adapted, batch, optimizers[name])
            if repeat >= 3:
                seconds[name].append(took)
    return {name: 1000 * statistics.median(values) for name, values in seconds.items()}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=30, help="steps of each model [30]")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    result = {}
    for targets in TARGETS:
        medians = measure(targets, options.repeats)
        ratios = {name: value / medians["fm"] for name, value in medians.items()}
        result[str(targets)] = {"milliseconds": medians, "ratio_to_fm": ratios}
        told = ", ".join(f"{n} {v:.0f} ms ({ratios[n]:.2f} x FM)" for n, v in medians.items())
        print(f"{targets}: {told}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
