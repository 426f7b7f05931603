"""A bad worker among real processes does what the bad client of a simulated run does.

The simulated runs, whose accuracy tests/experiments/test_bad_clients.py measures, so speak for real ones.
"""

from pathlib import Path

import pytest

from common.config.file import load_config
from common.data.examples import Columns, read_examples
from coordinator.storage.store import Store
from experiments.bad_clients import Attack, SomeBadClients
from experiments.simulation import simulate
from tests.integration.federation import federation


@pytest.mark.parametrize("rule", [pytest.param("mean", marks=pytest.mark.slow), "multi-krum"])
def test_a_bad_worker_process_is_the_simulations_bad_client(
    tmp_path: Path, model_folder: Path, rule: str
) -> None:
    settings = {
        "rounds__workers": 5,
        "rounds__minimum": 5,
        "alignment__steps": 0,
        "realignment__every": 0,
        "gradient_gap__batches": 0,
        "aggregation__rule": rule,
    }
    with federation(tmp_path, model_folder, **settings) as running:
        address = running.start_coordinator()["address"]
        for number in (1, 2, 4, 5):
            running.start_worker(number, address)
        data = running.write_data("worker-3", 60, 3)
        arguments = ("--coordinator", address, "--data", str(data), "--name", "worker-3", "--threads", "1")
        folder = str(running.folder / "worker-3")
        running.start("worker-3", "tests.security.bad_worker", *arguments, "--folder", folder)
        running.wait()
        real = running.status().adapter_sha256
    config = load_config(tmp_path / "run.toml")
    run = config.run.model_copy(update={"directory": tmp_path / "simulated"})
    clients = {f"worker-{n}": read_examples(tmp_path / f"worker-{n}.csv", Columns()) for n in range(1, 6)}
    bad = SomeBadClients(frozenset({"worker-3"}), Attack.SIGN_FLIP)
    simulate(config.model_copy(update={"run": run}), clients, trained_by=bad)
    store = Store.existing(tmp_path / "simulated")
    try:
        assert store.latest_adapter()[1].sha256 == real  # type: ignore[index]
    finally:
        store.close()
