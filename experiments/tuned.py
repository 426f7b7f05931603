"""What `fedpft experiment tune` found: every method's best settings by data set, for the packaged models."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.config.choices import Construction
from common.errors import ConfigError
from common.records import AdapterTargets
from experiments.paper import FEDOT, FEDPETUNING, FEDPFT

HEAD_ONLY = "head-only"
METHODS = (FEDPETUNING, FEDOT, FEDPFT, HEAD_ONLY)
BEST_FILE = "best.json"
Settings = Mapping[str, Any]


# What all methods with an adapter came to on tweets, each by itself.
_ADAPTER_ON_TWEETS: Settings = MappingProxyType(
    {
        "training.optimizer": "adamw",
        "training.learning_rate": 5e-3,
        "training.head_learning_rate": 1e-2,
        "training.epochs": 1,
        "training.batch_size": 16,
    }
)

# Data set → method → keys of run.toml. What is not here keeps the defaults.
TUNED: Mapping[str, Mapping[str, Settings]] = MappingProxyType(
    {
        # fedpft experiment tune --quick
        # On validation data, by the defaults in brackets: FedPETuning 0.807 (0.803), FedOT 0.782 (0.762),
        # FedPFT 0.810 (0.787), head only 0.722 (0.559); more epochs for the head were not tried.
        "tweets": {
            FEDPETUNING: _ADAPTER_ON_TWEETS,
            FEDOT: _ADAPTER_ON_TWEETS,
            FEDPFT: _ADAPTER_ON_TWEETS,
            HEAD_ONLY: {
                "training.optimizer": "sgd",
                "training.head_learning_rate": 2.0,
                "training.epochs": 2,
                "training.batch_size": 16,
                "training.weight_decay": 0.0,
            },
        },
        "bbc-news": {
            # fedpft experiment tune --quick --data bbc-news --clients 3 --sample 3 --only head-only
            # The demo's clients and rounds; 0.878 on validation data, by AdamW's default 0.587. Rates from 50
            # to 500 hardly differ. Methods with an adapter keep the defaults: their search is not done.
            HEAD_ONLY: {
                "training.optimizer": "sgd",
                "training.head_learning_rate": 200.0,
                "training.epochs": 2,
                "training.batch_size": 8,
                "training.weight_decay": 0.0,
            },
        },
    }
)


def method_of(settings: Settings) -> str:
    """The method that a run with these settings is, by its sub-FM and its adapter."""
    if settings.get("adapter.targets") == AdapterTargets.NONE:
        return HEAD_ONLY
    match settings.get("sub_fm.construction"):
        case Construction.FULL:
            return FEDPETUNING
        case Construction.LAYER_DROP:
            return FEDOT
    return FEDPFT


def settings_of(given: str | None, data: str, packaged: bool) -> Mapping[str, Settings]:
    """Settings by method: those of a search's folder, none for "none", else the catalogue's for the data set.

    The catalogue knows the packaged model alone. Raises ConfigError for a folder that holds no search.
    """
    if given == "none" or (given is None and not packaged):
        return {}
    return TUNED.get(data, {}) if given is None else read_tuned(Path(given))


def read_tuned(path: Path) -> dict[str, Settings]:
    """Settings by method out of a search's best.json, or out of its folder. Raises ConfigError."""
    file = path / BEST_FILE if path.is_dir() else path
    try:
        methods = json.loads(file.read_text())["methods"]
        return {method: dict(found["settings"]) for method, found in methods.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: not what `fedpft experiment tune` writes: {error!r}".replace("\n", " ")
        ) from None
