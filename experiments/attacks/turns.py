"""One turn of an attack: the engine's run on dealt-out data, attacked, and the raw figures written down."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.config.file import parse_config
from common.config.run import RunConfig
from common.data.encoding import encode
from common.data.examples import Columns, Examples, join, read_examples
from common.errors import DataError
from common.runtime import seeds
from common.storage.files import write_atomically
from coordinator.modelling.foundation import foundation_of
from experiments.attacks import membership, properties
from experiments.attacks.scale import AttackSetup
from experiments.attacks.views import PLAIN, VIEWS, Opened, View, opened
from experiments.attacks.watching import FirstRound, first_round
from experiments.cells import with_built
from experiments.simulation import OnProgress, simulate
from experiments.sources import Sizes, Source, deal_out
from experiments.splitting import SplitData

MEMBERSHIP, LABELS, WORTH = "membership", "labels", "worth"
_SHADOW = "shadow-"
# Chance within one worker's shares of the classes: most have one large class, none is empty everywhere.
_CONCENTRATION = 1.0


@dataclass(frozen=True)
class Turn:
    """Which attack, with which seed; of membership: with how many examples a worker."""

    attack: str
    seed: int
    size: int = 0

    @property
    def place(self) -> Path:
        """Of its result, within the experiment's folder, without an ending."""
        what = Path(self.attack) / f"{self.size}-examples" if self.size else Path(self.attack)
        return what / f"seed-{self.seed}"

    @property
    def file(self) -> Path:
        """Where its result lies, within the experiment's folder."""
        return Path("cells") / self.place.with_suffix(".json")

    def __str__(self) -> str:
        told = f", {self.size} examples a worker" if self.size else ""
        return f"{self.attack}{told}, seed {self.seed}"


def turns(setup: AttackSetup) -> list[Turn]:
    """All of a run, the largest first."""
    scale = setup.scale
    return [
        turn
        for seed in scale.all_seeds
        for turn in (
            Turn(WORTH, seed),
            *(Turn(MEMBERSHIP, seed, size) for size in reversed(scale.sizes)),
            Turn(LABELS, seed),
        )
    ]


def play(setup: AttackSetup, turn: Turn, on_progress: OnProgress) -> dict[str, Any]:
    """The turn's figures, also written to its file. What a broken-off one left is removed first.

    Raises ConfigError, DataError, ModelError, RunFailed for what cannot be run.
    """
    torch.set_num_threads(setup.threads)
    folder = setup.folder / "runs" / turn.place
    shutil.rmtree(folder, ignore_errors=True)
    attacks: dict[str, Callable[[AttackSetup, Turn, Path, OnProgress], dict[str, Any]]] = {
        MEMBERSHIP: _membership,
        LABELS: _labels,
        WORTH: _worth,
    }
    figures = {"seed": turn.seed, "size": turn.size} | attacks[turn.attack](setup, turn, folder, on_progress)
    write_atomically(setup.folder / turn.file, json.dumps(figures).encode())
    shutil.rmtree(folder)
    return figures


def _config(
    setup: AttackSetup, turn: Turn, data: SplitData, source: Source, own: Mapping[str, Any]
) -> RunConfig:
    """As `fedpft experiment` configures its runs."""
    values: dict[str, Any] = {
        "run.directory": data.public.parent.parent / "run",
        "run.seed": turn.seed,
        "model.path": setup.model,
        "task.labels": data.labels,
        "task.max_length": 64,
        "data.public.path": data.public,
        "rounds.count": 1,
        "realignment.every": 0,
        "realignment.learning_rate": 3e-4,
        "gradient_gap.batches": 0,
        "compute.threads": setup.threads,
    }
    given = dict(setup.scale.settings) | dict(setup.settings)
    return parse_config(values | source.settings() | given | dict(own), "the attacks")


def _first_round(
    setup: AttackSetup, config: RunConfig, clients: Mapping[str, Examples], on_progress: OnProgress
) -> FirstRound:
    config, _, _ = with_built(config, setup.sub_fms, on_progress)
    return first_round(config, clients, on_progress)


def _membership(setup: AttackSetup, turn: Turn, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Every text's scores, for each view: its worker, whether it was trained on, and one by each attack."""
    scale, random = setup.scale, np.random.default_rng(seeds.derive(turn.seed, "members"))
    each = max(scale.sizes) + scale.others
    # So that what is dealt out, and so the sub-FM, is the same for all sizes.
    sizes = Sizes(scale.workers * each, 2, scale.public)
    data = deal_out(setup.texts, folder / "data", scale.workers, None, turn.seed, sizes)
    trained, texts, workers, member = {}, [], [], []
    for path in data.workers:
        own = read_examples(path, Columns())
        if len(own) < turn.size + scale.others:
            raise DataError(f"{setup.texts.name} gives a worker {len(own)} texts; {each} are needed")
        own = own.take(random.permutation(len(own)).tolist())
        judged = min(turn.size, scale.judged)
        trained[path.stem] = own.take(list(range(turn.size)))
        texts.append(own.take([*range(judged), *range(len(own) - scale.others, len(own))]))
        workers += [path.stem] * (judged + scale.others)
        member += [True] * judged + [False] * scale.others
    found: dict[str, Any] = {}
    for settings, views in _by_settings():
        config = _config(setup, turn, data, setup.texts, {"rounds.workers": scale.workers} | dict(settings))
        seen = _first_round(setup, config, trained, on_progress)
        task = config.task
        encoded = encode(
            foundation_of(config).processor, join("texts", texts), task.kind, task.max_length, data.labels
        )
        candidates = membership.Candidates(encoded, tuple(workers), tuple(member))
        examples = dict.fromkeys(trained, turn.size)
        looks = {view.name: list(opened(view, seen.updates, examples, config.privacy)) for view in views}
        found |= _judged(seen, candidates, looks, on_progress)
    return {"views": found}


def _by_settings() -> list[tuple[Mapping[str, Any], list[View]]]:
    """The views by what workers train under: one run serves all that share it."""
    groups: list[tuple[Mapping[str, Any], list[View]]] = []
    for view in VIEWS.values():
        same = next((views for settings, views in groups if settings == view.settings), None)
        if same is None:
            groups.append((view.settings, [view]))
        else:
            same.append(view)
    return groups


def _judged(
    seen: FirstRound,
    candidates: membership.Candidates,
    looks: Mapping[str, list[Opened]],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """By view, of which there must be two looks, or there is nothing to compare with."""
    looks = {view: several for view, several in looks.items() if len(several) > 1}
    together = [look for several in looks.values() for look in several]
    adapted = seen.sub_model.adapted()
    adapted.load(seen.start)
    on_progress("judging by gradients", 0, 1)
    by_gradient = membership.gradient_scores(adapted, candidates.data, together)
    found: dict[str, Any] = {}
    first = 0
    for view, several in looks.items():
        rows, own = membership.own_look(candidates, several)
        columns = slice(first, first := first + len(several))
        on_progress("judging by losses", len(found), len(looks))
        by_loss = membership.loss_scores(adapted, seen.start, candidates, several)
        found[view] = {
            "workers": [candidates.workers[i] for i in rows],
            "member": [candidates.member[i] for i in rows],
            membership.GRADIENT: membership.calibrated(by_gradient[rows, columns], own).tolist(),
            membership.LOSS: membership.calibrated(by_loss[rows], own).tolist(),
        }
    return found


def _labels(setup: AttackSetup, turn: Turn, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Every worker's shares of the classes, and what each attack takes them for, for each view."""
    scale, random = setup.scale, np.random.default_rng(seeds.derive(turn.seed, "shadows"))
    sizes = Sizes(scale.label_train, scale.known, scale.public)
    data = deal_out(setup.documents, folder / "data", scale.label_workers, _CONCENTRATION, turn.seed, sizes)
    clients = {path.stem: read_examples(path, Columns()) for path in data.workers}
    held = read_examples(data.test, Columns())
    own = held.take(random.permutation(len(held))[: scale.known].tolist())
    usual = round(float(np.mean([len(examples) for examples in clients.values()])))
    shadows = {f"{_SHADOW}{i}": _draw(own, usual, random) for i in range(1, scale.label_workers + 1)}
    counted = {"rounds.workers": len(clients) + len(shadows), "rounds.count": 2, "realignment.every": 1}
    found: dict[str, Any] = {}
    for settings, views in _by_settings():
        config = _config(setup, turn, data, setup.documents, counted | dict(settings))
        seen = _first_round(setup, config, clients | shadows, on_progress)
        sizes_of = {name: len(examples) for name, examples in (clients | shadows).items()}
        known = np.stack([_shares(examples, data.labels) for examples in shadows.values()])
        of_shadows = list(
            opened(PLAIN, {name: seen.updates[name] for name in shadows}, sizes_of, config.privacy)
        )
        victims = {name: seen.updates[name] for name in clients}
        true = {name: _shares(examples, data.labels) for name, examples in clients.items()}
        for view in views:
            looks = list(opened(view, victims, sizes_of, config.privacy))
            if not looks:
                continue
            classes = len(data.labels)
            bias = properties.shares_by_bias(
                properties.bias_changes(of_shadows, classes), known, properties.bias_changes(looks, classes)
            )
            counts = properties.shares_by_counts(
                properties.rates_at_rest(of_shadows), known, properties.rates_at_rest(looks)
            )
            found[view.name] = [
                {
                    "look": number,
                    "worker": worker,
                    "true": true[worker].tolist(),
                    "mean": np.average(
                        [true[name] for name in look.workers],
                        axis=0,
                        weights=[sizes_of[name] for name in look.workers],
                    ).tolist(),
                    properties.BIAS: bias[number].tolist(),
                    properties.COUNTS: counts[number].tolist(),
                }
                for number, look in enumerate(looks)
                for worker in look.workers
            ]
    everybody = np.average(list(true.values()), axis=0, weights=[len(e) for e in clients.values()])
    return {"views": found, "everybody": everybody.tolist(), "classes": list(data.labels)}


def _shares(examples: Examples, labels: tuple[str, ...]) -> properties.Shares:
    names = examples.label_names or []
    return np.array([names.count(label) / len(examples) for label in labels])


def _draw(own: Examples, count: int, random: np.random.Generator) -> Examples:
    """So many of the coordinator's own documents, again and again the same ones, by shares of chance."""
    names = own.label_names or []
    present = sorted(set(names))
    shares = random.dirichlet([_CONCENTRATION] * len(present))
    chances = np.array([shares[present.index(name)] / names.count(name) for name in names])
    return own.take(random.choice(len(own), size=count, p=chances / chances.sum()).tolist())


def _worth(setup: AttackSetup, turn: Turn, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """Accuracies of FM and sub-FM, before and after the rounds, and of an FM that was tuned whole."""
    scale = setup.scale
    sizes = Sizes(scale.tuned_train, scale.tuned_test, scale.public)
    data = deal_out(setup.texts, folder / "data", scale.tuned_workers, None, turn.seed, sizes)
    clients = {path.stem: read_examples(path, Columns()) for path in data.workers}
    run = {
        "rounds.workers": len(clients),
        "rounds.count": scale.tuned_rounds,
        "data.test.path": data.test,
    }
    scores: dict[tuple[str, int, str], float] = {}
    for name, own in (("ours", {}), ("whole", {"sub_fm.construction": "full"})):
        config = _config(
            setup, turn, data, setup.texts, run | own | {"run.directory": folder / f"run-{name}"}
        )
        config, _, _ = with_built(config, setup.sub_fms, on_progress)
        done = simulate(
            config,
            clients,
            on_progress,
            score_every=scale.tuned_rounds,
            score_sub_fm=True,
            score_before=True,
        )
        scores |= {(name, e.round, e.model): e.accuracy for e in done.evaluations}
    last = scale.tuned_rounds
    return {
        "tests": len(read_examples(data.test, Columns())),
        "fm_before": scores["ours", 0, "fm"],
        "sub_fm_before": scores["ours", 0, "sub_fm"],
        "sub_fm_tuned": scores["ours", last, "sub_fm"],
        "plugged_in": scores["ours", last, "fm"],
        "fm_tuned": scores["whole", last, "fm"],
    }
