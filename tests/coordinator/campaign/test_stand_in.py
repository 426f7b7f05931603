"""The sub-FM judged as a stand-in, by what matters and before anything is tuned on it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config.file import parse_config
from common.errors import RunFailed
from common.run_status import Event, GradientGap
from coordinator.campaign import stand_in
from coordinator.context import RunContext
from coordinator.storage.store import Store
from experiments.simulation import simulate
from tests.conftest import write_table
from tests.contexts import context
from tests.experiments.test_simulation import data
from tests.families import write_family


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "run")
    yield opened
    opened.close()


def gap(drift: float) -> GradientGap:
    return GradientGap(0, 1 - drift, 1.0, drift, ())


def judged(run: RunContext, *found: Any) -> Event:
    stand_in.judge(run, *found)
    (event,) = run.store.events.last_of(stand_in.KINDS, 1)
    return event


@pytest.mark.parametrize(
    ("drift", "perplexities", "broken"),
    [
        (0.9, None, False),
        (0.91, None, True),
        (math.nan, None, True),
        (None, (40.0, 400.0), False),
        (None, (40.0, 401.0), True),
        (None, (40.0, math.inf), True),
        (None, (math.inf, math.inf), True),
        (0.1, (40.0, 401.0), True),
    ],
)
def test_what_is_no_stand_in(
    store: Store, drift: float | None, perplexities: tuple[float, float] | None, broken: bool
) -> None:
    run = context(store)
    event = judged(run, None if drift is None else gap(drift), perplexities)
    assert event.kind == ("stand_in_broken" if broken else "stand_in_judged")
    assert ("lower sub_fm.drop_ratio" in event.text) is broken
    assert run.metrics.registry.get_sample_value("fedpft_stand_in_broken") == broken


def test_nothing_is_told_where_nothing_was_measured(store: Store) -> None:
    stand_in.judge(context(store), None, None)
    assert not store.events.last_of(stand_in.KINDS, 1)


@pytest.mark.parametrize("strict", [False, True])
def test_only_who_is_strict_ends_there(store: Store, strict: bool) -> None:
    run = context(store, {"run.strict": strict})
    stand_in.require(run, judged(run, gap(0.5), None))
    broken = judged(run, gap(0.95), None)
    if not strict:
        stand_in.require(run, broken)
        return
    with pytest.raises(RunFailed, match="no stand-in for the FM"):
        stand_in.require(run, broken)


def test_a_strict_run_does_not_go_on_when_it_is_started_again(tmp_path: Path) -> None:
    """All neurons but one cut from every layer, and nothing aligned."""
    values: dict[str, Any] = {
        "run.directory": tmp_path / "run",
        "run.strict": True,
        "model.path": str(write_family(tmp_path / "model", "bert", "text-classification")),  # type: ignore[arg-type]
        "task.labels": ("animals", "weather"),
        "task.max_length": 16,
        "data.public.path": write_table(tmp_path / "public.csv", 64, 90, labelled=False),
        "alignment.steps": 0,
        "sub_fm.drop_ratio": 0.99,
        "sub_fm.keep_first": 0,
        "sub_fm.keep_last": 0,
        "rounds.count": 1,
        "compute.threads": 1,
    }
    clients = data(tmp_path)
    for _ in range(2):
        with pytest.raises(RunFailed, match="no stand-in for the FM"):
            simulate(parse_config(values, "a test"), clients)
    opened = Store.existing(tmp_path / "run")
    assert len(opened.events.last_of(stand_in.KINDS, 9)) == 1
    opened.close()
    simulate(parse_config(values | {"run.strict": False}, "a test"), clients)
