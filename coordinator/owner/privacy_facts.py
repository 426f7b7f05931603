"""What a result promises of the data that it was tuned on, for an export's privacy.json."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.privacy.gaussian import divergence, epsilon_at
from common.private_task import DpSpec, DpUnit
from coordinator.storage.releases import Release

PRIVACY_FILE = "privacy.json"


def privacy_facts(config: RunConfig, rounds: int, releases: Sequence[Release] = ()) -> dict[str, Any] | None:
    """Of a result after so many rounds, and sums with noise; None where nothing is promised."""
    dp = dp_spec(config)
    if dp is None:
        return None
    return (
        _by_worker(config, dp, rounds, releases)
        if dp.unit is DpUnit.WORKER
        else _by_example(config, dp, rounds)
    )


def _by_worker(config: RunConfig, dp: DpSpec, rounds: int, releases: Sequence[Release]) -> dict[str, Any]:
    secure = config.privacy.secure
    follows = config.privacy.dp.clip_quantile
    return {
        "unit": str(dp.unit),
        "relation": "one worker's update is there, or is zero, in every round; who takes part is no secret",
        "epsilon": dp.epsilon,
        "epsilon_spent": epsilon_at(divergence(release.noise for release in releases), dp.delta),
        "delta": dp.delta,
        "rounds_promised": dp.rounds,
        "rounds_done": rounds,
        "sums_told": len(releases),
        "mechanism": "updates scaled down to the clip, of equal weight, rounded to integers and summed; "
        "exact discrete Gaussian noise on the sum",
        "clip": dp.clip if follows is None else f"from {dp.clip:g} on, following the quantile {follows:g}",
        "noise": dp.noise,
        "accountant": "Rényi divergences of the Gaussian (Canonne, Kamath and Steinke 2020)",
        "noise_added_by": "each worker its share, inside secure aggregation" if secure else "the coordinator",
        "secure_sums": secure,
        "trusted": "no more than the tolerated number of workers in league with the coordinator"
        if secure
        else "the coordinator, who sees every update",
        "not_covered": [
            "that a worker took part, and in which rounds",
            "the numbers of examples, where the coordinator is told them",
            "one person's data at several workers",
            "settings that were chosen by looking at these data in other runs",
            "public data, the owner's test data, and what the foundation model was pre-trained on",
        ],
    }


def _by_example(config: RunConfig, dp: DpSpec, rounds: int) -> dict[str, Any]:
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
