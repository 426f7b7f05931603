"""What a result promises of the data that it was tuned on, for an export's privacy.json."""

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.config.dp import dp_spec
from common.config.run import RunConfig

PRIVACY_FILE = "privacy.json"


def privacy_facts(config: RunConfig, rounds: int) -> dict[str, Any] | None:
    """Of a result after so many rounds; None where nothing is promised of an example."""
    dp = dp_spec(config)
    if dp is None:
        return None
    return {
        "unit": str(dp.unit),
        "relation": "add or remove one example of one worker",
        "epsilon": dp.epsilon,
        "delta": dp.delta,
        "rounds_promised": dp.rounds,
        "rounds_done": rounds,
        "mechanism": "DP-SGD: Poisson batches, each example's gradient clipped, Gaussian noise in every step",
        "clip": dp.clip,
        "expected_batch_size": dp.batch_size,
        "passes_per_round": config.training.epochs,
        "noise": "of each worker's own finding, by its number of examples",
        "accountant": f"privacy loss distributions, dp-accounting {_version('dp-accounting')}",
        "noise_added_by": "each worker, before anything leaves it",
        "secure_sums": config.privacy.secure,
        "trusted": "by each worker its own machine and software; nobody else",
        "not_covered": [
            "the numbers of examples",
            "an example that several workers have, or several examples of one person",
            "settings that were chosen by looking at these data in other runs",
            "public data, the owner's test data, and what the foundation model was pre-trained on",
        ],
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "at each worker"
