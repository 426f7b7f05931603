"""What benchmarks tell of repeated measurements."""

import json
from pathlib import Path

import pytest

from benchmarks.measuring import Ratio, Spread, Target, figure, interleave, report, table


def test_contestants_take_turns_and_warming_up_does_not_count() -> None:
    calls: list[str] = []

    def contestant(name: str) -> int:
        calls.append(name)
        return len(calls)

    found = interleave({n: lambda n=n: contestant(n) for n in "ab"}, repeats=3, warmups=2)  # type: ignore[misc]
    assert all(sorted(calls[at : at + 2]) == ["a", "b"] for at in range(0, 10, 2))
    assert all(len(values) == 3 and min(values) > 4 for values in found.values())


def test_a_spread_is_the_median_and_quartiles() -> None:
    assert Spread.of([1, 2, 3, 4, 100]) == Spread(3, 2, 4, 5)
    assert Spread.of([7]) == Spread(7, 7, 7, 1)


def test_a_ratio_lies_in_its_interval_and_pairs_what_was_measured_together() -> None:
    # The machine slowed down in half of the repeats, and both with it: their ratio did not change.
    under = [1.0, 1.0, 3.0, 3.0, 1.0, 3.0, 1.0]
    ratio = Ratio.of([2 * value for value in under], under)
    assert (ratio.value, ratio.low, ratio.high) == (2, 2, 2)


@pytest.mark.parametrize(
    ("value", "told"), [(0, "0"), (0.01234, "0.0123"), (1.005, "1.00"), (12.34, "12.3"), (98765.4, "98,765")]
)
def test_figures_have_three_digits(value: float, told: str) -> None:
    assert figure(value) == told


def test_a_table_is_aligned() -> None:
    assert table(("a", "bb"), [("ccc", 1)]).splitlines() == ["| a   | bb |", "|-----|----|", "| ccc | 1  |"]


def test_targets_are_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = [Target("speed", 0.5, 0.6, True), Target("memory", 1.0, 1.1, False)]
    report(tmp_path / "folder" / "figures.json", {"speed": Spread.of([0.5])}, targets)
    assert "MISSED" in capsys.readouterr().out
    written = json.loads((tmp_path / "folder" / "figures.json").read_text())
    assert [target["met"] for target in written["targets"]] == [False, True]
    assert written["figures"]["speed"]["median"] == 0.5
    assert written["machine"]["packages"]["torch"]
