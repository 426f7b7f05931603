"""Every experiment's variants are runs that the configuration allows; the paper's figures are complete."""

import pytest

from common.config.file import parse_config
from experiments import paper
from experiments.catalogue import EXPERIMENTS, HEAD_ONLY, Experiment
from experiments.cells import Cell

COMMON = {
    "model.path": "m",
    "task.labels": ("a", "b"),
    "data.public.path": "p.csv",
    "data.test.path": "t.csv",
    "gradient_gap.batches": 0,
    "rounds.workers": 100,
}


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
@pytest.mark.parametrize("quick", [False, True])
def test_every_variant_is_a_valid_run_of_its_own(experiment: Experiment, quick: bool) -> None:
    scale = experiment.scale(quick)
    common = COMMON | dict(experiment.settings) | dict(scale.settings)
    chosen = experiment.chosen(quick)
    configs = {
        name: parse_config(common | dict(experiment.variant(name).settings), "test").model_dump_json()
        for name in chosen
    }
    assert len(set(configs.values())) == len(chosen), "two variants are the same run"
    assert experiment.reference in chosen
    assert HEAD_ONLY in chosen, "every table tells how much of a result is the adapter's"
    assert scale.sample <= scale.clients and scale.rounds % 1 == 0
    for split in scale.splits:
        assert Cell(split, chosen[0], 1).concentration is None or split != "iid"


def test_with_its_seed_a_search_has_no_tweet_that_another_experiment_tests_on() -> None:
    # The test data are drawn first: with as many set aside, what comes after is in nobody's.
    most = max(
        e.scale(quick).test for e in EXPERIMENTS.values() for quick in (True, False) if not e.is_search
    )
    assert {EXPERIMENTS["tune"].scale(quick).test >= most for quick in (True, False)} == {True}
    assert list(EXPERIMENTS["tune"].quick.all_seeds) == [1]


def test_the_full_forms_have_the_papers_clients() -> None:
    for name in ("compare", "ratio", "alignment", "saliency", "theory", "cost"):
        scale = EXPERIMENTS[name].full
        assert (scale.clients, scale.sample) == (100, 10)
    assert EXPERIMENTS["compare"].full.splits == ("iid", "dirichlet-1", "dirichlet-5", "dirichlet-10")


def test_the_papers_tables_are_whole() -> None:
    methods = {paper.FEDPETUNING, paper.FEDOT, paper.FEDPFT}
    assert all(set(found) == methods for found in paper.IID.values()) and len(paper.IID) == 10
    for by_method in paper.DIRICHLET.values():
        assert set(by_method) == methods
        assert all(len(figures) == len(paper.CONCENTRATIONS) for figures in by_method.values())
    assert all(figures[paper.NONE] < figures[paper.FEDPFT] for figures in paper.ABLATION.values())
