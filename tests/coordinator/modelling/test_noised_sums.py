"""Noise that the coordinator adds: on the clipped mean of all, once a round, with a clip that may follow."""

from pathlib import Path
from typing import Any

import pytest
import torch

from common.config.dp import noise_of
from common.errors import RunFailed
from common.records import ArtifactKind
from common.storage.tensors import TensorFile
from coordinator.campaign import privacy_told
from coordinator.campaign.noised_gathering import noised, require_promise_left
from coordinator.context import RunContext
from coordinator.modelling.noised_sums import clip_of
from coordinator.owner.privacy_facts import privacy_facts
from coordinator.storage import rewinding
from coordinator.storage.releases import Release
from coordinator.storage.store import Store, StoredUpdate
from tests.contexts import context

BY_WORKER: dict[str, Any] = {
    "privacy.dp.unit": "worker",
    "privacy.weights": "equal",
    "privacy.dp.clip": 2.0,
    "rounds.count": 3,
    "rounds.workers": 12,
    "rounds.minimum": 12,
}
SIZE = 3000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "run")


def updates(store: Store, norms: list[float]) -> list[StoredUpdate]:
    """One for each norm, along directions of their own."""
    made = []
    for number, norm in enumerate(norms):
        delta = torch.zeros(SIZE)
        delta[number] = norm
        tensors = {"delta.a": delta[:1000].reshape(10, 100), "delta.b": delta[1000:]}
        file = store.artifacts.add_tensors(ArtifactKind.UPDATE, tensors)
        made.append(StoredUpdate(f"w{number:02}", file.sha256, 10 * (number + 1), 0.0, 1.0))
    return made


def mean(store: Store, round_number: int) -> torch.Tensor:
    total = store.secure.sum_of(round_number)
    assert total is not None
    file = TensorFile(store.artifacts.path(total.sha256))
    return torch.cat([file["delta.a"].flatten(), file["delta.b"]])


async def test_the_mean_of_the_clipped_has_the_noise_that_the_promise_takes(store: Store) -> None:
    run = context(store, BY_WORKER)
    noise = noise_of(run.config.privacy.dp, 3)
    (one,) = await noised(run, 1, updates(store, [100.0] + [0.0] * 11))
    assert (one.examples, one.loss) == (12, 0.0)
    found = mean(store, 1)
    # Alone it would be 2 / 12; all weigh alike, whatever their examples.
    assert abs(found[0] - 2 / 12) < 6 * noise * 2 / 12
    assert found.std().item() == pytest.approx(noise * 2 / 12, rel=0.06)
    # As killed after it was committed: nothing is drawn again.
    before = found
    assert await noised(run, 1, [one]) == [one]
    assert (mean(store, 1) == before).all() and len(store.secure.releases.all()) == 1


async def test_each_update_is_scaled_down_and_none_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from coordinator.modelling import noised_sums

    # Without the noise there would be nothing to see.
    monkeypatch.setattr(noised_sums, "noised", lambda values, grid, draws: values)
    await noised(context(store, BY_WORKER), 1, updates(store, [100.0, 2.0, 1.0] + [0.0] * 9))
    assert mean(store, 1)[:4].tolist() == pytest.approx([2 / 12, 2 / 12, 1 / 12, 0.0], abs=1e-6)


async def test_what_has_been_told_stays_told_when_a_run_goes_back(store: Store) -> None:
    run = context(store, BY_WORKER)
    for number in (0, 1, 2):
        store.commit_adapter(number, store.artifacts.add_tensors(ArtifactKind.ADAPTER, {"x": torch.ones(1)}))
    for number in (1, 2):
        await noised(run, number, updates(store, [1.0] * 12))
    spent = privacy_told.spent(run.spec.dp, store)  # type: ignore[arg-type]
    rewinding.rewind(store, 1)
    assert store.secure.sum_of(2) is None
    assert privacy_told.spent(run.spec.dp, store) == spent  # type: ignore[arg-type]
    require_promise_left(run.config, store, 2)
    await noised(run, 2, updates(store, [1.0] * 12))
    require_promise_left(run.config, store, 2)
    with pytest.raises(RunFailed, match="round 3: 3 sums with noise have been told of the 3 that"):
        require_promise_left(run.config, store, 3)
    (line,) = privacy_told.lines(run.config, store)
    assert line.startswith(
        "differential privacy of each worker: epsilon 8.00 of 8, delta 1e-05, after 3 of 3"
    )
    assert "has to be trusted" in line
    facts = privacy_facts(run.config, 2, store.secure.releases.all())
    assert facts is not None and facts["sums_told"] == 3
    assert 7.99 < facts["epsilon_spent"] <= 8.0 and facts["noise_added_by"] == "the coordinator"


def test_a_clip_follows_the_norms_and_one_that_is_fixed_does_not(store: Store) -> None:
    followed = context(store, BY_WORKER | {"rounds.workers": 60, "privacy.dp.clip_quantile": 0.5})
    dp = followed.config.privacy.dp
    told = [Release(1, 2.0, 1.0, 1.0), Release(2, 1.8, 1.0, 0.0), Release(2, 1.5, 1.0, -0.5)]
    assert clip_of(dp, [], 1) == 2.0
    # All were below it: it shrinks; of a round that was gone back on the last counts.
    assert clip_of(dp, told, 2) == pytest.approx(2.0 * 2.718281828**-0.1)
    assert clip_of(dp, told, 3) == pytest.approx(1.5 * 2.718281828**0.2)
    assert clip_of(dp.model_copy(update={"clip_quantile": None}), told, 3) == 2.0


@pytest.fixture
def following(store: Store) -> RunContext:
    many = {"rounds.workers": 60, "rounds.minimum": 60, "privacy.dp.clip_quantile": 0.5}
    return context(store, BY_WORKER | many | {"rounds.count": 30, "privacy.dp.epsilon": 50.0})


@pytest.mark.slow
async def test_the_clip_comes_to_the_median_of_the_norms(store: Store, following: RunContext) -> None:
    norms = [0.1 * (number + 1) for number in range(60)]
    for number in range(1, 31):
        await noised(following, number, updates(store, norms))
    clips = [release.clip for release in store.secure.releases.all()]
    assert clips[0] == 2.0 and 2.4 < clips[-1] < 3.8
    texts = [event.text for event in store.events.all() if event.kind == "updates_summed"]
    assert "the sum of 60 updates, scaled down to 2, some" in texts[0]
