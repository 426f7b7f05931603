"""One of five clients does harm: the mean suffers, the robust rules do not."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from common.config.file import parse_config
from common.data.examples import Columns, Examples, read_examples
from experiments.bad_clients import BOOST, Attack, SomeBadClients, flip_labels, poison
from experiments.simulation import simulate
from tests.conftest import LABELS, write_model, write_table

log = logging.getLogger(__name__)

# What the project promises: with a robust rule no more accuracy is lost than this.
MOST_LOST = 0.05
BAD = "worker-3"

Accuracy = Callable[[str, Attack | None], float]


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory: pytest.TempPathFactory) -> Accuracy:
    """The tuned FM's accuracy on 400 texts after 10 rounds of five clients, by rule and attack."""
    folder = tmp_path_factory.mktemp("bad-clients")
    model = write_model(folder / "model")
    clients = {
        f"worker-{n}": read_examples(write_table(folder / f"worker-{n}.csv", 120, n), Columns())
        for n in range(1, 6)
    }
    values: dict[str, Any] = {
        "model.path": str(model),
        "task.labels": LABELS,
        "task.max_length": 16,
        "data.public.path": write_table(folder / "public.csv", 64, 90, labelled=False),
        "data.test.path": write_table(folder / "test.csv", 400, 91),
        "alignment.method": "closed-form",
        "alignment.steps": 0,
        "gradient_gap.batches": 0,
        "adapter.dropout": 0.0,
        "training.epochs": 4,
        "training.batch_size": 8,
        "training.learning_rate": 5e-3,
        "training.head_learning_rate": 1e-2,
        "rounds.count": 10,
        "rounds.workers": 5,
        "rounds.minimum": 5,
        "compute.threads": 1,
    }
    seen: dict[tuple[str, Attack | None], float] = {}

    def measure(rule: str, attack: Attack | None) -> float:
        if (rule, attack) not in seen:
            settings: dict[str, Any] = {"aggregation.rule": rule}
            if rule == "mean, within a norm":
                settings = {"aggregation.norm_limit": 4.0, "rounds.minimum": 3}
            own: dict[str, Examples] = dict(clients)
            if attack is Attack.LABEL_FLIP:
                own[BAD] = flip_labels(own[BAD], LABELS)
            config = parse_config(values | settings | {"run.directory": folder / f"{rule}-{attack}"}, "test")
            trained_by = None if attack is None else SomeBadClients(frozenset({BAD}), attack)
            scores = simulate(config, own, trained_by=trained_by).evaluations
            seen[rule, attack] = next(e.accuracy for e in scores if e.model == "fm")
            log.info("%s, %s: %.4f", rule, attack or "clean", seen[rule, attack])
        return seen[rule, attack]

    return measure


@pytest.mark.slow
def test_the_clean_run_learns_and_an_attack_on_the_mean_undoes_it(accuracy: Accuracy) -> None:
    """Otherwise the figures below would say nothing."""
    clean = accuracy("mean", None)
    assert clean > 0.95
    assert accuracy("mean", Attack.SIGN_FLIP) < clean - 0.2


# In `make test-all`, too.
USUAL = {("median", Attack.LABEL_FLIP), ("multi-krum", Attack.SIGN_FLIP)}


@pytest.mark.parametrize(
    ("rule", "attack"),
    [
        pytest.param(rule, attack, marks=pytest.mark.slow if (rule, attack) in USUAL else pytest.mark.attacks)
        for rule in ("median", "trimmed-mean", "multi-krum")
        for attack in Attack
    ],
)
def test_a_robust_rule_loses_no_more_than_it_may(accuracy: Accuracy, rule: str, attack: Attack) -> None:
    assert accuracy(rule, attack) >= accuracy("mean", None) - MOST_LOST


@pytest.mark.slow
@pytest.mark.parametrize("attack", [Attack.SIGN_FLIP, Attack.NOISE])
def test_the_mean_bears_what_is_far_too_large_within_a_norm_limit(accuracy: Accuracy, attack: Attack) -> None:
    assert accuracy("mean, within a norm", attack) >= accuracy("mean", None) - MOST_LOST


def test_flipped_labels_are_all_wrong() -> None:
    examples = Examples("a list", ["a", "b", "c"], label_names=["x", "y", "z"])
    assert flip_labels(examples, ("x", "y", "z")) == replace(examples, label_names=["y", "z", "x"])


def test_poison_is_what_it_is_called() -> None:
    delta = {"a": torch.tensor([1.0, -2.0]), "b": torch.ones(100)}
    assert torch.equal(poison(delta, Attack.SIGN_FLIP, 0)["a"], torch.tensor([-10.0, 20.0]))
    assert torch.equal(poison(delta, Attack.LABEL_FLIP, 0)["a"], delta["a"])
    noise = poison(delta, Attack.NOISE, 0)
    assert torch.allclose(noise["b"].norm(), BOOST * delta["b"].norm())
    cosine = torch.nn.functional.cosine_similarity(noise["b"], delta["b"], dim=0)
    assert abs(cosine) < 0.5
