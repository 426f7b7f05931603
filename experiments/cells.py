"""One cell of an experiment: a variant on one split of the data with one seed, run and written down."""

import fcntl
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from common.config.file import parse_config
from common.config.run import RunConfig
from common.data.encoding import encode
from common.data.examples import Columns, read_examples
from common.errors import ConfigError, RunFailed
from common.records import ArtifactKind
from common.run_status import Evaluation, reported
from common.runtime import seeds
from common.storage.files import write_atomically
from coordinator.campaign.best import result_round
from coordinator.modelling.building import ABOUT_FILE, Recipe, SubModelBuilder
from coordinator.modelling.data import read_source
from coordinator.modelling.foundation import foundation_of
from coordinator.storage.store import Store
from experiments.clients import Clients
from experiments.headline import ACCURACY, value_of
from experiments.simulation import OnProgress, Simulated, simulate
from experiments.sources import Sizes, Source, deal_out
from experiments.splitting import SplitData, held_out

_SECONDS_FILE = "seconds.json"


@dataclass(frozen=True)
class Cell:
    """Which variant on which split ("iid" or "dirichlet-CONCENTRATION") with which seed."""

    split: str
    variant: str
    seed: int

    @property
    def file(self) -> Path:
        """Where its result lies, within the experiment's folder."""
        return Path("cells") / self.split / self.variant / f"seed-{self.seed}.json"

    @property
    def concentration(self) -> float | None:
        """The Dirichlet's; None for equal shares. Raises ConfigError for any other split."""
        if self.split == "iid":
            return None
        kind, _, value = self.split.partition("-")
        try:
            if kind != "dirichlet" or float(value) <= 0:
                raise ValueError
        except ValueError:
            raise ConfigError(f"split must be iid or dirichlet-A with A > 0, got {self.split}") from None
        return float(value)


@dataclass(frozen=True)
class ExperimentSetup:
    """What all cells of an experiment share.

    `metric` is what runs are compared by. With `validation`, that share of the clients' data is scored on
    instead of the test data.

    `settings` are keys of run.toml; `sub_fms` is where built sub-FMs are kept for other cells, also
    those of other experiments.
    """

    folder: Path
    sub_fms: Path
    model: str
    source: Source
    clients: int
    sample: int | None
    rounds: int
    sizes: Sizes
    score_every: int
    threads: int
    settings: dict[str, Any]
    keep_runs: bool = False
    validation: float = 0.0
    metric: str = ACCURACY
    score_before: bool = False


def run_cell(
    setup: ExperimentSetup,
    cell: Cell,
    settings: dict[str, Any],
    on_progress: OnProgress,
    trained_by: Clients | None = None,
) -> dict[str, Any]:
    """The cell's figures, also written to its file. What a broken-off run left is removed first.

    Raises ConfigError, DataError, ModelError for what cannot be run.
    """
    # Before anything is built: their number is part of the result.
    torch.set_num_threads(setup.threads)
    place = setup.folder / "runs" / cell.split / cell.variant / f"seed-{cell.seed}"
    shutil.rmtree(place, ignore_errors=True)
    data = deal_out(setup.source, place / "data", setup.clients, cell.concentration, cell.seed, setup.sizes)
    if setup.validation:
        drawn = numpy.random.default_rng(seeds.derive(cell.seed, "validation"))
        data = held_out(data, setup.validation, drawn)
    config = parse_config(_settings(setup, cell, data, place / "run") | settings, "the experiment")
    config, hidden_error, building = with_built(config, setup.sub_fms, on_progress)
    labels = Columns(pair="pair" if config.task.pairs else None)
    clients = {path.stem: read_examples(path, labels, config.task.kind) for path in data.workers}
    figures: dict[str, Any]
    try:
        outcome = simulate(
            config,
            clients,
            on_progress,
            score_every=setup.score_every,
            score_before=setup.score_before,
            trained_by=trained_by,
        )
        figures = _figures(config, outcome, hidden_error, building, setup.metric)
    except RunFailed as error:
        if not setup.validation:
            raise
        # Rates that training runs away with are a finding of a search.
        figures = {"failed": str(error), "score": None, "scores": []}
    figures |= {
        "cell": asdict(cell),
        "training": config.training.model_dump(mode="json"),
        "settings": settings,
        "clients": len(clients),
        "examples": sum(len(examples) for examples in clients.values()),
    }
    write_atomically(setup.folder / cell.file, json.dumps(figures, indent=1, default=str).encode())
    if not setup.keep_runs:
        shutil.rmtree(place)
    return figures


def _settings(setup: ExperimentSetup, cell: Cell, data: SplitData, run: Path) -> dict[str, Any]:
    return {
        "run.directory": run,
        "run.seed": cell.seed,
        "model.path": setup.model,
        "task.labels": data.labels,
        "data.public.path": data.public,
        "data.test.path": data.test,
        "rounds.workers": setup.clients,
        "rounds.sample": setup.sample,
        "rounds.count": setup.rounds,
        "gradient_gap.batches": 0,
        "realignment.learning_rate": 3e-4,
        "compute.threads": setup.threads,
    } | setup.settings


def with_built(
    config: RunConfig, sub_fms: Path, on_progress: OnProgress
) -> tuple[RunConfig, tuple[float, float] | None, float]:
    """The configuration with its sub-FM built ahead, once for all cells that share it.

    Also the hidden-state error before and after, and the seconds that the building took.
    """
    if not (config.prunes and config.aligns_layers) or config.sub_fm.path is not None:
        return config, None, 0.0
    assert config.data.public is not None and config.data.public.path is not None
    shared = {
        "model": config.model.path,
        "task": [config.task.kind, config.task.max_length],
        "public": hashlib.sha256(config.data.public.path.read_bytes()).hexdigest(),
        "sub_fm": config.sub_fm.model_dump(mode="json"),
        "alignment": config.alignment.model_dump(mode="json"),
        "seed": config.run.seed,
        "compute": config.compute.model_dump(mode="json"),
    }
    out = sub_fms / hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:16]
    out.mkdir(parents=True, exist_ok=True)
    # Another process may be building the same.
    with _locked(out / "lock"):
        if not (out / ABOUT_FILE).exists():
            begun = time.monotonic()
            _build(config, out, on_progress)
            write_atomically(out / _SECONDS_FILE, json.dumps(time.monotonic() - begun).encode())
    about = json.loads((out / ABOUT_FILE).read_text())
    seconds = float(json.loads((out / _SECONDS_FILE).read_text())) if (out / _SECONDS_FILE).exists() else 0.0
    config = config.model_copy(update={"sub_fm": config.sub_fm.model_copy(update={"path": out})})
    return config, (about["hidden_error_before"], about["hidden_error_after"]), seconds


def _build(config: RunConfig, out: Path, on_progress: OnProgress) -> None:
    """As `fedpft build` does it, but with the run's own data and seed."""
    task = config.task
    loaded = foundation_of(config)
    assert config.data.public is not None
    dataset = encode(
        loaded.processor, read_source(config.data.public, config), task.kind, task.max_length, None
    )
    builder = SubModelBuilder(loaded.model, task.kind, dataset, Recipe.of(config))
    plan, sub_fm = builder.cut(_named(on_progress, "cutting"))
    error = builder.align(plan, sub_fm, _named(on_progress, "aligning"), out / "checkpoint.safetensors")
    builder.save(out, plan, sub_fm, error)
    (out / "checkpoint.safetensors").unlink(missing_ok=True)


def _named(on_progress: OnProgress, what: str) -> Callable[[int, int], None]:
    return lambda step, steps: on_progress(what, step, steps)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _figures(
    config: RunConfig,
    outcome: Simulated,
    hidden_error: tuple[float, float] | None,
    building: float,
    metric: str,
) -> dict[str, Any]:
    """What the run came to."""
    store = Store(config.run.directory)
    try:
        stored = store.sub_model()
        assert stored is not None
        reference, _, facts = stored
        done, result = max(store.adapters()), result_round(store, config)
        rounds = range(1, done + 1)
        updates = [store.updates(number) for number in rounds]
        adapters, received = (
            store.artifacts.sizes(ArtifactKind.ADAPTER),
            store.artifacts.sizes(ArtifactKind.UPDATE),
        )
        correction = store.corrections.of(result)
        losses = [sum(u.loss * u.examples for u in us) / sum(u.examples for u in us) for us in updates]
        return {
            "scores": [asdict(e) for e in outcome.evaluations],
            "accuracy": (final := _final(outcome.evaluations, result)).accuracy,
            "score": value_of(asdict(final), metric),
            "metric": metric,
            "adapter_sha256": store.adapters()[result],
            "parameters": asdict(facts),
            "bytes": {
                "once": reference.base.size + sum(artifact.size for artifact in reference.processor),
                "down": sum(adapters) / len(adapters),
                "up": sum(received) / len(received),
                "patches": sum(store.artifacts.sizes(ArtifactKind.NEURON_PATCH)),
            },
            "seconds": dict(outcome.seconds) | ({"building": building} if building else {}),
            "trained_examples": sum(u.examples for us in updates for u in us) * config.training.epochs,
            "losses": losses,
            "gaps": [asdict(gap) for gap in store.gaps()],
            "alignments": store.alignments.all(),
            "correction": None if correction is None else [correction.before, correction.after],
            "hidden_error": hidden_error,
        }
    finally:
        store.close()


def _final(evaluations: tuple[Evaluation, ...], result: int) -> Evaluation:
    """The score of the FM that is the run's result."""
    last = reported(evaluations, result)
    assert last is not None
    return last
