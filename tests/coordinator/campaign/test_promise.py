"""What is promised by differential privacy, told: before the first round, in the status, with an export."""

from pathlib import Path

import pytest
import torch

from common.privacy import accounting
from common.records import ArtifactKind, ArtifactRef
from coordinator.campaign import privacy_told, promise
from coordinator.context import RunContext
from coordinator.owner.privacy_facts import privacy_facts
from coordinator.storage.store import Store
from tests.contexts import context

PRIVATE = {
    "privacy.dp.unit": "example",
    "privacy.dp.epsilon": 3.0,
    "privacy.dp.batch_size": 64,
    "rounds.count": 5,
}


@pytest.fixture
def run(tmp_path: Path) -> RunContext:
    store = Store(tmp_path / "run")
    store.remember_worker("small", 200, "some")
    store.remember_worker("large", 400, "some")
    return context(store, PRIVATE)


def adapter(run: RunContext, values: int) -> ArtifactRef:
    name = "base_model.model.classifier.weight"
    return run.store.artifacts.add_tensors(ArtifactKind.ADAPTER, {name: torch.zeros(1, values)})


def told(run: RunContext) -> dict[str, str]:
    return {event.kind: event.text for event in run.store.events.all()}


@pytest.mark.slow
async def test_the_noise_is_told_before_the_first_round(run: RunContext) -> None:
    await promise.tell(run, adapter(run, 1925))
    text = told(run)["privacy_promised"]
    assert "promised epsilon 3, delta 1e-05 over 5 rounds; noise to signal of a worker's step, 1,925" in text
    # z √d / B = 1.58 √1925 / 64 with 400 examples.
    assert "1.1 with 400 examples" in text and "with 200 examples" in text
    assert "noise_too_large" not in told(run)
    registry = run.metrics.registry
    assert registry.get_sample_value("fedpft_privacy_epsilon", {"unit": "example"}) == 3.0
    assert registry.get_sample_value("fedpft_privacy_delta", {"unit": "example"}) == 1e-5


@pytest.mark.slow
async def test_so_much_that_nothing_is_learnt_is_warned_of(run: RunContext) -> None:
    await promise.tell(run, adapter(run, 148_000))
    assert "above 5 next to nothing is learnt: train fewer values" in told(run)["noise_too_large"]


async def test_a_coordinator_without_the_packages_says_so_and_goes_on(
    run: RunContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting.importlib.util, "find_spec", lambda name: None)
    await promise.tell(run, adapter(run, 10))
    assert "not known here: differential privacy needs the package" in told(run)["privacy_promised"]


async def test_a_run_that_promises_nothing_says_nothing(tmp_path: Path) -> None:
    plain = context(Store(tmp_path / "run"))
    await promise.tell(plain, adapter(plain, 10))
    assert not told(plain) and not privacy_told.lines(plain.config, plain.store)
    assert privacy_facts(plain.config, 1) is None


def test_the_status_says_what_is_promised(run: RunContext) -> None:
    (line,) = privacy_told.lines(run.config, run.store)
    assert line.startswith(
        "differential privacy of each example of a worker: epsilon 3, delta 1e-05 for 5 rounds"
    )


def test_an_export_says_what_it_promises_and_what_not(run: RunContext) -> None:
    facts = privacy_facts(run.config, 2)
    assert facts is not None
    assert (facts["epsilon"], facts["delta"], facts["rounds_promised"], facts["rounds_done"]) == (
        3.0,
        1e-5,
        5,
        2,
    )
    assert facts["noise_added_by"].startswith("each worker") and facts["not_covered"]
