"""The benchmark of rounds, small: real processes go through rounds, ours and the floor's."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import plots
from benchmarks.processes import ROOT
from benchmarks.rounds import measured, start_floor
from benchmarks.running import adapter_settings, running
from coordinator.campaign.status import open_run, stored_status


@pytest.mark.slow
@pytest.mark.packaged
def test_workers_that_do_not_train_go_through_rounds(tmp_path: Path) -> None:
    with running(tmp_path, 2, adapter_settings(0)) as found:
        first, second = (measured(found)() for _ in range(2))
        store, config = open_run(tmp_path / "run")
        status = stored_status(store, config)
        store.close()
    assert status.round >= 2
    for one in (first, second):
        assert one["round"] >= max(one["upload"], one["wait"], one["download"]) > 0
        assert one["peak"] > 100e6


def test_the_floor_goes_through_rounds(tmp_path: Path) -> None:
    with ExitStack() as stack:
        one = measured(start_floor(stack, tmp_path, 2, 3_000_000))()
    assert one["round"] >= one["upload"] > 0


def test_rounds_are_drawn_beside_whatever_was_measured() -> None:
    one = {"round": {"median": 0.5}, "peak": {"median": 2e9}}
    both = {"coordinator": one, "floor": one}
    measured_rounds = {"2 × 0": both, "2 × 100": both, "2 × 100, synced": both}
    seconds, memory = plots.rounds({"rounds": measured_rounds, "flower": {}})
    assert [series.label for series in seconds.series] == ["FedPFT, mTLS", "bare gRPC, mTLS"]
    assert seconds.series[0].x == tuple(measured_rounds)
    flower = {"2 × 100": {"round": {"median": 7.0}, "peak": 1.5e9}}
    seconds, memory = plots.rounds({"rounds": measured_rounds, "flower": flower})
    assert [series.x for series in seconds.series] == 3 * [("2 × 100",)]
    assert [series.y for series in seconds.series] == [(0.5,), (0.5,), (7.0,)]
    assert [series.y for series in memory.series] == [(2.0,), (2.0,), (1.5,)]


def test_a_service_that_does_not_wait_for_the_disk_is_run_with_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text("import os, sys; os.fsync(-1); print(sys.argv[1:], __name__)")
    command = [sys.executable, "-m", "benchmarks.unsynced", "service", "a", "--b"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "['a', '--b'] __main__\n"
