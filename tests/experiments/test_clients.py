"""Where clients are trained makes no difference to the last bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.config.file import parse_config
from common.errors import ConfigError
from experiments.clients import Clients
from experiments.simulation import simulate
from tests.conftest import LABELS, write_table
from tests.experiments.test_simulation import data, digest

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:.*ray.*:FutureWarning"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Clients]:
    from experiments.ray_clients import RayClients

    clients = RayClients(None, threads=1, actors=2)
    yield clients
    clients.close()


@pytest.mark.parametrize("targets", ["attention", "attention+ffn"])
def test_a_ray_cluster_gives_the_same_bits_as_one_process(
    tmp_path: Path, model_folder: Path, cluster: Clients, targets: str
) -> None:
    """With an alignment between the rounds, so that the actors' sub-FM must follow."""
    digests = []
    for name, trained_by in (("here", None), ("ray", cluster)):
        values: dict[str, Any] = {
            "run.directory": tmp_path / name,
            "model.path": str(model_folder),
            "task.labels": LABELS,
            "task.max_length": 16,
            "data.public.path": write_table(tmp_path / "public.csv", 64, 90, labelled=False),
            "alignment.steps": 3,
            "realignment.every": 1,
            "realignment.steps": 3,
            "adapter.targets": targets,
            "rounds.count": 2,
            "rounds.workers": 3,
            "gradient_gap.batches": 0,
            "compute.threads": 1,
        }
        simulate(parse_config(values, "test"), data(tmp_path / f"{name}-data"), trained_by=trained_by)
        digests.append(digest(tmp_path / name))
    assert digests[0] == digests[1]


def test_a_cluster_that_is_not_there_is_an_error_of_one_line(cluster: Clients) -> None:
    from experiments.ray_clients import RayClients

    with pytest.raises(ConfigError, match="Ray"):
        RayClients("127.0.0.1:1", threads=1)
