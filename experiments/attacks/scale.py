"""How large a run of the attacks is, and on what."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from experiments.sources import BBC_NEWS, Source

QUESTION = (
    "What do a worker's update, and sums of several, tell the coordinator of the data behind them; and what "
    "does a worker have in its sub-FM?"
)


@dataclass(frozen=True)
class Scale:
    """Numbers of seeds, workers and examples. `sizes` are the examples a worker trains on, smallest first.

    Membership: of every worker `judged` texts at most that it trained on, and `others` that nobody did.
    Labels: `label_train` documents over `label_workers`; as many shadow workers draw from `known` labelled
    documents of the coordinator's own. Worth: `tuned_train` texts over `tuned_workers`, `tuned_test` to
    score on.
    """

    seeds: int = 5
    first_seed: int = 1
    sizes: tuple[int, ...] = (1, 8, 16, 100)
    workers: int = 30
    judged: int = 10
    others: int = 10
    label_workers: int = 20
    label_train: int = 1200
    known: int = 100
    tuned_workers: int = 5
    tuned_rounds: int = 5
    tuned_train: int = 2000
    tuned_test: int = 4000
    public: int = 1000
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_seeds(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)


FULL = Scale()
QUICK = replace(
    FULL, seeds=2, tuned_rounds=4, tuned_train=1000, tuned_test=1500, settings={"alignment.steps": 50}
)


def scaled(
    quick: bool,
    first_seed: int,
    *,
    seeds: int | None = None,
    clients: int | None = None,
    rounds: int | None = None,
    train: int | None = None,
    test: int | None = None,
) -> Scale:
    """The full or the quick form with the user's numbers; `train` and `test` are of labels and worth."""
    given = {
        "seeds": seeds,
        "workers": clients,
        "label_workers": clients,
        "tuned_rounds": rounds,
        "label_train": train,
        "tuned_train": train,
        "tuned_test": test,
    }
    changed: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return replace(QUICK if quick else FULL, first_seed=first_seed, **changed)


@dataclass(frozen=True)
class AttackSetup:
    """Where a run of the attacks lies, and what all of it shares. `settings` are keys of run.toml.

    `texts` are for membership and worth, `documents`, of several classes, for labels.
    """

    folder: Path
    model: str
    scale: Scale
    settings: Mapping[str, Any]
    threads: int
    texts: Source = field(default_factory=lambda: Source("tweets"))
    documents: Source = field(default_factory=lambda: Source(BBC_NEWS))

    @property
    def sub_fms(self) -> Path:
        """Where built sub-FMs are kept, also those of other experiments."""
        return self.folder.parent / "sub-fms"
