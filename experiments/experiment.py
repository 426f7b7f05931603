"""An experiment from beginning to end: its folder, its cells, its measured steps."""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from common.config.file import parse_config
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.errors import ConfigError
from common.model.adapter import Adapted
from common.runtime import seeds
from common.storage.files import write_atomically
from coordinator.context import adapter_spec
from coordinator.modelling.building import Recipe, SubModelBuilder
from coordinator.modelling.foundation import load_foundation
from experiments.catalogue import Experiment, Scale
from experiments.cells import Cell, ExperimentSetup
from experiments.clients import Clients
from experiments.headline import ACCURACY
from experiments.running import Work, run_all
from experiments.sources import Sizes, Source, deal_out
from experiments.steps import StepCost, measure_steps
from experiments.tuned import method_of
from experiments.tuning import found_by_method, stages, write_best

EXPERIMENT_FILE = "experiment.json"
STEPS_FILE = "steps.json"
FULL_FINE_TUNING = "full-fine-tuning"
_STEP_REPEATS = 20
_STEP_BATCH = 16


@dataclass(frozen=True)
class Wanted:
    """What an experiment is run with; None is the experiment's own."""

    experiment: Experiment
    quick: bool
    folder: Path
    model: str
    source: Source
    scale: Scale
    """With the user's changes in it."""
    variants: tuple[str, ...]
    settings: Mapping[str, Any]
    """Further keys of run.toml, for all variants."""
    parallel: int
    threads: int
    engine: str
    keep_runs: bool = False
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Keys of run.toml by method (`experiments.tuned.METHODS`); a variant's own and `settings` go before."""


def conduct(wanted: Wanted, console: Console, trained_by: Callable[[], Clients] | None = None) -> None:
    """Run what is not done yet of the experiment in its folder.

    Raises ConfigError, DataError and ModelError for what cannot be run, RunFailed when a process dies.
    """
    setup = _setup(wanted)
    for split in wanted.scale.splits:
        _ = Cell(split, "", 1).concentration
    _begin(wanted, setup)
    if wanted.experiment.is_search:
        methods = [wanted.experiment.variant(name) for name in wanted.variants]
        for cells in stages(setup.folder, methods, wanted.scale):
            run_all(setup, cells, wanted.parallel, console, trained_by)
        _write_best(wanted, setup)
        return
    cells = [
        Work(Cell(split, name, seed), _of_variant(wanted, name))
        for seed in wanted.scale.all_seeds
        for split in wanted.scale.splits
        for name in wanted.variants
    ]
    run_all(setup, cells, wanted.parallel, console, trained_by)
    steps = wanted.folder / STEPS_FILE
    if wanted.experiment.measures_steps and not steps.exists():
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("timing a worker's step")
            costs = _measure(wanted, setup, lambda done, of: progress.update(bar, completed=done, total=of))
        write_atomically(steps, json.dumps({n: asdict(c) for n, c in costs.items()}, indent=1).encode())


def _write_best(wanted: Wanted, setup: ExperimentSetup) -> None:
    """What a search came to, as a file."""
    cells = {}
    for file in sorted((setup.folder / "cells").glob("*/*/seed-*.json")):
        figures = json.loads(file.read_text())
        cell = figures["cell"]
        cells[cell["split"], cell["variant"], cell["seed"]] = figures
    about = json.loads((wanted.folder / EXPERIMENT_FILE).read_text())
    told = {"data": wanted.source.name, "model": wanted.model, "metric": setup.metric}
    write_best(setup.folder, found_by_method(cells), told | {"command": about["command"]})


def _of_variant(wanted: Wanted, name: str) -> dict[str, Any]:
    """A variant's settings, and what was found for its method; what the user sets is not looked up."""
    own = wanted.experiment.variant(name).settings
    found = wanted.tuned.get(method_of(own), {})
    return {key: value for key, value in found.items() if key not in wanted.settings} | dict(own)


def _setup(wanted: Wanted) -> ExperimentSetup:
    scale = wanted.scale
    return ExperimentSetup(
        wanted.folder.resolve(),
        wanted.folder.resolve().parent / "sub-fms",
        wanted.model,
        wanted.source,
        scale.clients,
        scale.sample if scale.sample < scale.clients else None,
        scale.rounds,
        Sizes(scale.train, scale.test, scale.public),
        scale.score_every,
        wanted.threads,
        {
            "task.max_length": 64,
            **wanted.source.settings(),
            **wanted.experiment.settings,
            **scale.settings,
            **wanted.settings,
        },
        wanted.keep_runs,
        scale.validation,
        wanted.source.metric,
        wanted.experiment.scores_before,
    )


def _begin(wanted: Wanted, setup: ExperimentSetup) -> None:
    """Write what the folder holds; found there, it must be the same.

    Raises ConfigError when the folder is of something else.
    """
    fixed = {
        "experiment": wanted.experiment.name,
        "model": wanted.model,
        "data": wanted.source.name,
        "clients": setup.clients,
        "sample": setup.sample,
        "rounds": setup.rounds,
        "sizes": asdict(setup.sizes),
        "score_every": setup.score_every,
        "threads": setup.threads,
        "settings": {key: str(value) for key, value in setup.settings.items()},
    }
    if setup.metric != ACCURACY:
        fixed["metric"] = setup.metric
    if wanted.scale.validation:
        # Not how many trials: more of them go on from those that are done.
        fixed["validation"] = wanted.scale.validation
    file = wanted.folder / EXPERIMENT_FILE
    before: dict[str, Any] = {}
    if file.exists():
        before = json.loads(file.read_text())
        if other := [key for key in fixed if before["fixed"].get(key) != fixed[key]]:
            raise ConfigError(
                f"{wanted.folder} holds an experiment with another {', '.join(other)}; "
                "name another --folder, or remove it"
            )
    known = before.get("variants", [])
    about = {
        "fixed": fixed,
        "quick": wanted.quick,
        # In the catalogue's order, with those of earlier calls.
        "variants": [v.name for v in wanted.experiment.variants if v.name in {*known, *wanted.variants}],
        "command": "fedpft " + shlex.join(sys.argv[1:]),
        "engine": wanted.engine,
        "begun": before.get("begun", datetime.now(UTC).isoformat(timespec="seconds")),
        "machine": machine(),
        "versions": {name: version(name) for name in ("fedpft", "torch", "transformers", "peft")},
    }
    write_atomically(file, json.dumps(about, indent=1).encode())


def machine() -> str:
    """Processors, their number, and the system: what a figure's repetition depends on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2]
            for line in info.read_text(encoding="utf-8", errors="replace").splitlines()
            if "model name" in line
        ]
        model = names[0].strip() if names else model
    return f"{os.cpu_count()} × {model}, {platform.system()}"


def _measure(
    wanted: Wanted, setup: ExperimentSetup, on_step: Callable[[int, int], None]
) -> dict[str, StepCost]:
    """A worker's step by variant, and one of full-model fine-tuning beside them."""
    torch.set_num_threads(setup.threads)
    place = setup.folder / "steps"
    data = deal_out(setup.source, place, setup.clients, None, 1, setup.sizes)
    models: dict[str, Adapted] = {}
    batch = None
    for name in (FULL_FINE_TUNING, *wanted.variants):
        settings = {} if name == FULL_FINE_TUNING else wanted.experiment.variant(name).settings
        common = {
            "model.path": setup.model,
            "task.labels": data.labels,
            "data.public.path": data.public,
            # Of pairs, their second column is told.
            "data.test.path": data.test,
        }
        config = parse_config(common | setup.settings | dict(settings), "the experiment")
        task = config.task
        head = seeds.derive(1, "head")
        loaded = load_foundation(setup.model, task.kind, task.labels, head, config.model.dtype)
        fm, processor = loaded.model, loaded.processor
        public = encode(
            processor,
            read_examples(data.public, Columns(label=None), task.kind),
            task.kind,
            task.max_length,
            None,
        )
        if batch is None:
            columns = Columns(pair="pair" if task.pairs else None)
            test = encode(
                processor,
                read_examples(data.test, columns, task.kind),
                task.kind,
                task.max_length,
                task.labels,
            )
            batch = next(test.shuffled(_STEP_BATCH, 1))
        if name == FULL_FINE_TUNING:
            models[name] = _all_trained(fm, config)
            continue
        builder = SubModelBuilder(fm, task.kind, public, Recipe(config.sub_fm, config.alignment, seed=1))
        _, module = builder.cut(lambda step, steps: None)
        models[name] = Adapted(module, task.kind, adapter_spec(config), new=loaded.new_modules)
    assert batch is not None
    return measure_steps(models, batch, _STEP_REPEATS, on_step)


def _all_trained(fm: Any, config: Any) -> Adapted:
    """The FM with everything trained and no adapter: what federated learning without PEFT does."""
    spec = replace(adapter_spec(config), targets=type(config.adapter.targets).NONE)
    adapted = Adapted(fm, config.task.kind, spec)
    adapted.model.requires_grad_(True)
    return adapted
