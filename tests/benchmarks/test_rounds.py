"""The benchmark of rounds, small: real processes go through rounds, ours and the floor's."""

from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks.rounds import measured, start_floor
from benchmarks.running import adapter_settings, running
from coordinator.status import open_run, stored_status


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
