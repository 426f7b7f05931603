"""`fedpft experiment tune` on a small model: on workers' data alone, resumed, used by others."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from rich.console import Console
from typer.testing import CliRunner

from cli.main import app
from common.config.file import parse_config
from common.data.examples import Columns, read_examples
from common.errors import ConfigError, DataError
from experiments import cells as cells_module
from experiments.catalogue import EXPERIMENTS, HEAD_ONLY
from experiments.clients import LocalClients
from experiments.experiment import conduct
from experiments.report.of_experiment import document
from experiments.search import first_design
from experiments.sources import Sizes, Source, deal_out
from experiments.splitting import held_out
from experiments.tuned import METHODS, TUNED, method_of, read_tuned, settings_of
from experiments.tuning import found_by_method
from tests.conftest import write_table
from tests.experiments.test_experiment import FAST, results, wanted

ONE = {"seeds": 1, "trials": 8, "validation": 0.5, "score_every": 2}


def texts_of(path: Path) -> list[str]:
    return read_examples(path, Columns()).texts or []


def test_what_is_validated_on_is_taken_from_the_workers_and_the_test_data_are_gone(tmp_path: Path) -> None:
    source = Source(str(write_table(tmp_path / "own.csv", 120, 1)))
    before = deal_out(source, tmp_path / "dealt", 4, 1.0, 1, Sizes(60, 20, 20))
    private = sorted(text for path in before.workers for text in texts_of(path))
    sizes = [len(texts_of(path)) for path in before.workers]
    held = set(texts_of(before.test))
    after = held_out(before, 0.5, numpy.random.default_rng(1))
    drawn = texts_of(after.test)
    assert not before.test.exists() and not held & set(drawn)
    left = [texts_of(path) for path in after.workers]
    assert sorted([*drawn, *(text for part in left for text in part)]) == private
    assert [len(part) for part in left] == [n - min(round(n / 2), n - 1) for n in sizes]
    assert all(left)


def test_workers_of_one_example_each_have_none_to_spare(tmp_path: Path) -> None:
    source = Source(str(write_table(tmp_path / "own.csv", 40, 1)))
    data = deal_out(source, tmp_path / "dealt", 3, None, 1, Sizes(3, 10, 10))
    with pytest.raises(DataError, match="too few examples to keep some of them for validation"):
        held_out(data, 0.5, numpy.random.default_rng(1))


@pytest.mark.slow
def test_a_search_is_resumed_reported_and_used(tmp_path: Path, model_folder: Path) -> None:
    order = wanted(tmp_path, model_folder, "tune", variants=("fedpft", HEAD_ONLY), scale=ONE)
    conduct(order, Console(quiet=True), LocalClients)
    done = results(order.folder)
    assert len(done) == 2 * ONE["trials"]
    best = json.loads((order.folder / "best.json").read_text())
    for method in order.variants:
        cells = [c for c in done.values() if c["cell"]["variant"].startswith(f"{method}+")]
        assert best["methods"][method]["trials"] == len(cells) == ONE["trials"]
        assert best["methods"][method]["validation"] == max(c["score"] for c in cells)
        # As the search itself sees them, though they come out of files.
        names = {c["cell"]["variant"]: c for c in cells}
        design = [t for t in first_design(method != HEAD_ONLY) if f"{method}+{t.name}" in names]
        found = found_by_method({("s", name, 1): c for name, c in names.items()})[method]
        assert len(design) == 6 and set(design) <= set(found.scores)
        assert best["methods"][method]["at_edge"] == found.edges
        chosen = best["methods"][method]["settings"]
        parse_config({"model.path": "m", "task.labels": ("a", "b"), "alignment.steps": 0} | chosen, "test")
        assert ("training.learning_rate" in chosen) == (method != HEAD_ONLY)

    # What is there is not run again, and gives the same; a missing trial is.
    gone = sorted((order.folder / "cells").rglob("*.json"))[0]
    written = {path: path.stat().st_mtime_ns for path in (order.folder / "cells").rglob("*.json")}
    gone.unlink()
    conduct(order, Console(quiet=True), LocalClients)
    assert results(order.folder) == done
    assert {p: p.stat().st_mtime_ns for p in written if p != gone} == {
        p: t for p, t in written.items() if p != gone
    }

    # More trials go on from those that are done.
    more = replace(order, scale=replace(order.scale, trials=ONE["trials"] + 2))
    conduct(more, Console(quiet=True), LocalClients)
    further = results(order.folder)
    assert len(further) == 2 * (ONE["trials"] + 2) and further.items() >= done.items()
    shutil.rmtree(order.folder / "cells")
    conduct(order, Console(quiet=True), LocalClients)
    assert results(order.folder) == done

    report = document(order.folder)
    tables = {part.name: part for part in report.tables}
    assert [row[0] for row in tables["best"].rows] == [
        order.experiment.variant(v).title for v in order.variants
    ]
    for method in order.variants:
        scores = [row[5] for row in tables[f"trials-{method}"].rows]
        assert len(scores) == ONE["trials"] and scores == sorted(scores, reverse=True)
    assert "best of 8 trials" in " ".join(report.lead)
    # Eight trials see no end of anything.
    assert any("Warning: the best lies at the edge" in t for s in report.sections for t in s.text)

    # Others train with it, and say so; what a user sets goes before it.
    tuned = read_tuned(order.folder)
    other = replace(
        wanted(tmp_path, model_folder, "cost", variants=("fedpft", HEAD_ONLY), scale={"seeds": 1}),
        tuned=tuned,
        settings=FAST | {"training.epochs": 3},
        experiment=replace(EXPERIMENTS["cost"], measures_steps=False),
    )
    conduct(other, Console(quiet=True), LocalClients)
    for figures in results(other.folder).values():
        found = dict(tuned[figures["cell"]["variant"]])
        assert figures["training"]["head_learning_rate"] == found["training.head_learning_rate"]
        assert figures["training"]["optimizer"] == found["training.optimizer"]
        assert figures["training"]["epochs"] == 3
    (table,) = (t for t in document(other.folder).tables if t.name == "training")
    assert [row[-1] for row in table.rows] == ["tuned", "tuned"] and table.rows[1][2] is None


def test_the_rate_of_neurons_in_full_is_told_where_there_are_any(tmp_path: Path, model_folder: Path) -> None:
    variants = ("neurons", "neurons-only", HEAD_ONLY)
    order = wanted(
        tmp_path,
        model_folder,
        "variants",
        variants=variants,
        scale={"seeds": 1},
        settings=FAST | {"training.neuron_learning_rate": 0.002, "training.learning_rate": 0.004},
    )
    conduct(order, Console(quiet=True), LocalClients)
    (table,) = (t for t in document(order.folder).tables if t.name == "training")
    assert [c.title for c in table.columns[1:4]] == ["optimiser", "LoRA's rate", "neurons' rate"]
    assert [row[2:4] for row in table.rows] == [(0.004, 0.002), (None, 0.002), (None, None)]


def test_rates_that_training_runs_away_with_are_the_last(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def simulate(config: Any, *rest: Any, **more: Any) -> Any:
        if config.training.optimizer == "sgd":
            raise cells_module.RunFailed("round 1 missed its minimum")
        return right(config, *rest, **more)

    right = cells_module.simulate
    monkeypatch.setattr(cells_module, "simulate", simulate)
    order = wanted(tmp_path, model_folder, "tune", variants=(HEAD_ONLY,), scale=ONE | {"trials": 6})
    conduct(order, Console(quiet=True), LocalClients)
    (trials,) = (t for t in document(order.folder).tables if t.name == f"trials-{HEAD_ONLY}")
    assert [row[0] for row in trials.rows] == ["adamw"] * 3 + ["sgd"] * 3
    assert [row[-1] for row in trials.rows] == [""] * 3 + ["diverged"] * 3
    assert json.loads((order.folder / "best.json").read_text())["methods"][HEAD_ONLY]["settings"][
        "training.optimizer"
    ] == ("adamw")
    # Elsewhere it ends the experiment.
    with pytest.raises(cells_module.RunFailed):
        conduct(
            wanted(
                tmp_path,
                model_folder,
                "ratio",
                variants=(HEAD_ONLY,),
                settings=FAST | {"training.optimizer": "sgd"},
            ),
            Console(quiet=True),
            LocalClients,
        )


@pytest.mark.parametrize("name", sorted(EXPERIMENTS))
@pytest.mark.parametrize("data", sorted(TUNED))
def test_every_variant_with_what_was_found_is_a_valid_run(name: str, data: str) -> None:
    for variant in EXPERIMENTS[name].variants:
        assert method_of(variant.settings) in METHODS
        common = {"model.path": "m", "task.labels": ("a", "b"), "data.public.path": "p", "rounds.workers": 9}
        found = TUNED[data].get(method_of(variant.settings), {})
        parse_config(common | dict(found) | dict(variant.settings) | {"gradient_gap.batches": 1}, "test")


def test_methods_are_told_by_sub_fm_and_adapter() -> None:
    found = {v.name: method_of(v.settings) for v in EXPERIMENTS["compare"].variants}
    assert {found[name] for name in ("fedpft-n", "fedpft-b", "fedpft-d")} == {"fedpft"}
    assert [found[m] for m in METHODS] == list(METHODS)


def test_the_catalogue_speaks_of_packaged_models_alone(tmp_path: Path) -> None:
    assert settings_of(None, "tweets", packaged=False) == {} == settings_of("none", "tweets", packaged=True)
    assert settings_of(None, "a file of one's own", packaged=True) == {}
    for content in ("", "{}", '{"methods": 3}'):
        (tmp_path / "best.json").write_text(content)
        with pytest.raises(ConfigError, match="not what `fedpft experiment tune` writes"):
            settings_of(str(tmp_path), "tweets", packaged=True)


def test_a_folder_that_holds_no_search_is_told_in_one_line(tmp_path: Path) -> None:
    command = ["experiment", "compare", "--tuned", str(tmp_path / "nowhere")]
    result = CliRunner().invoke(app, [*command, "--folder", str(tmp_path / "x")])
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert result.exit_code == 2 and len(lines) == 1 and "nowhere" in lines[0], result.output
