"""An update as integers: what a sum says is what the workers sent, at the edges of the ring, too."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.errors import BadUpdate, SecureRefused
from common.model.apoz import ZeroCounts
from common.model.ring_update import (
    SCALARS,
    as_ring,
    l2_norm,
    mean_tensors,
    noise_grid,
    read_scalars,
    ring_tensors,
    weight_of,
)
from common.privacy.discrete import discrete_gaussians
from common.privacy.noise import SecretDraws
from common.privacy.whole_worker import Grid, factor_within, integers, shared_grid
from common.private_task import DpSpec, DpUnit
from common.secagg.context import ring_step
from common.secagg.records import SecureRound, VectorSpec
from common.secure_task import MOST_COUNTED, SecureSpec
from tests.common.secagg.parties import a_round

CLIP = 4.0


def spec_of(bits: int, by_examples: bool, most: int = 64) -> SecureSpec:
    return SecureSpec(3, bits, by_examples, most, False)


def round_of(n: int, spec: SecureSpec, size: int = 3) -> SecureRound:
    vectors = (
        VectorSpec("apoz.1.tokens", (), 64),
        VectorSpec("apoz.1.zeros", (2,), 64),
        VectorSpec("delta.x", (size,), spec.bits),
        VectorSpec(SCALARS, (3,), 64),
    )
    return a_round(
        n,
        vectors=vectors,
        clip=CLIP,
        step=ring_step(CLIP, spec.bits, n),
        by_examples=spec.by_examples,
        most_examples=spec.most_examples,
    )


def counts(zeros: tuple[int, int], tokens: int) -> dict[int, ZeroCounts]:
    return {1: ZeroCounts(torch.tensor(zeros), torch.tensor(tokens))}


def added(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    total = {name: tensor.clone() for name, tensor in parts[0].items()}
    for part in parts[1:]:
        for name, tensor in part.items():
            words = as_ring(total[name])
            words += as_ring(tensor)
    return total


def mean(
    total: dict[str, Tensor], within: SecureRound, spec: SecureSpec, n: int, grid: Grid | None = None
) -> dict[str, Tensor]:
    return dict(mean_tensors(total, within, read_scalars(total[SCALARS], spec, n).weight, grid))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("by_examples", [False, True])
@pytest.mark.parametrize("n", [3, 4, 5, 128])
@pytest.mark.parametrize("bits", [32, 64])
def test_no_sum_of_the_largest_updates_leaves_the_ring(
    bits: int, n: int, by_examples: bool, sign: float
) -> None:
    spec = spec_of(bits, by_examples, MOST_COUNTED)
    within = round_of(n, spec)
    delta = {"x": torch.tensor([sign * CLIP, 0.0, -0.0])}
    weight = weight_of(10**9, spec)
    one = ring_tensors(delta, counts((2**40, 0), 2**41), weight, sign * 1e9, within)
    total = added([one] * n)
    exact = [int(value) * n for value in one["delta.x"]]
    assert [int(value) for value in total["delta.x"]] == exact, "the sum went round the ring"
    scalars = read_scalars(total[SCALARS], spec, n)
    assert scalars.weight == n * weight and scalars.clipped == 0
    assert scalars.loss == sign * 2.0**16, "a loss is taken for so much at most"
    found = mean(total, within, spec, n)
    assert torch.allclose(found["delta.x"], delta["x"], rtol=1e-6, atol=n * within.step)
    assert found["apoz.1.zeros"].tolist() == [n * 2**40, 0]


@st.composite
def workers(draw: st.DrawFn) -> list[tuple[list[float], int, float]]:
    value = st.floats(-3, 3, width=32)
    one = st.tuples(st.lists(value, min_size=3, max_size=3), st.integers(1, 200), st.floats(0, 20))
    return draw(st.lists(one, min_size=3, max_size=6))


@given(workers(), st.sampled_from((32, 64)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_sum_is_the_weighted_mean_of_clipped_updates(
    sent: list[tuple[list[float], int, float]], bits: int, by_examples: bool
) -> None:
    n, spec = len(sent), spec_of(bits, by_examples)
    within = round_of(n, spec)
    parts, expected, total_weight, loss, clipped = [], np.zeros(3), 0, 0.0, 0
    for values, examples, own_loss in sent:
        delta = {"x": torch.tensor(values)}
        weight = weight_of(examples, spec)
        parts.append(ring_tensors(delta, counts((1, 2), 3), weight, own_loss, within))
        norm = l2_norm(delta)
        expected += np.array(values, dtype=np.float64) * weight * min(1.0, CLIP / max(norm, 1e-30))
        total_weight, loss = total_weight + weight, loss + weight * own_loss
        clipped += norm > CLIP
    total = added(parts)
    scalars = read_scalars(total[SCALARS], spec, n)
    assert (scalars.weight, scalars.clipped) == (total_weight, clipped)
    assert scalars.loss == pytest.approx(loss / total_weight, abs=n * 2.0**-20)
    # Docs: the worst error of the mean is n · step / (2 Σw); float32 rounds it after.
    share = total_weight / (spec.most_examples if by_examples else 1)
    found = mean(total, within, spec, n)["delta.x"].double().numpy()
    np.testing.assert_allclose(found, expected / total_weight, rtol=1e-6, atol=n * within.step / share)


def test_the_order_in_which_updates_are_added_changes_nothing() -> None:
    spec = spec_of(32, True)
    within = round_of(4, spec)
    draw = torch.Generator().manual_seed(0)
    parts = [
        ring_tensors({"x": torch.randn(3, generator=draw)}, counts((1, 2), 3), w, 0.5, within)
        for w in (1, 20, 64, 7)
    ]
    one, other = added(parts), added(parts[::-1])
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused_before_it_is_summed(value: float) -> None:
    spec = spec_of(64, False)
    within = round_of(3, spec)
    with pytest.raises(BadUpdate, match="finite"):
        ring_tensors({"x": torch.tensor([value, 0.0, 0.0])}, counts((0, 0), 1), 1, 0.5, within)
    with pytest.raises(BadUpdate, match="loss must be finite"):
        ring_tensors({"x": torch.zeros(3)}, counts((0, 0), 1), 1, value, within)


def spoilt() -> Iterator[tuple[str, dict[str, Any], str]]:
    none = "none that workers can have"
    yield "a weight of nobody", {SCALARS: [0, 0, 0]}, none
    yield "fewer than one each", {SCALARS: [2, 0, 0]}, none
    yield "more than all may weigh", {SCALARS: [3 * 64 + 1, 0, 0]}, none
    yield "a negative weight", {SCALARS: [-5, 0, 0]}, none
    yield "more clipped than there are", {SCALARS: [3, 0, 4]}, none
    yield "a negative number clipped", {SCALARS: [3, 0, -1]}, none
    yield "a loss of nobody", {SCALARS: [3, 2**62, 0]}, none
    yield "a masked weight", {SCALARS: [-(2**63), 2**63 - 1, 1]}, none
    yield "negative counts", {"apoz.1.zeros": [-1, 0]}, none
    yield "more at rest than tokens", {"apoz.1.zeros": [4, 0]}, none
    yield "negative tokens", {"apoz.1.tokens": -1}, none
    yield "a change larger than all clips", {"delta.x": [2**62, 0, 0]}, "larger than 4"


@pytest.mark.parametrize(("changes", "told"), [case[1:] for case in spoilt()], ids=[c[0] for c in spoilt()])
def test_sums_that_workers_cannot_have_are_refused(changes: dict[str, Any], told: str) -> None:
    spec = spec_of(64, True)
    within = round_of(3, spec)
    total: dict[str, Tensor] = {
        "apoz.1.tokens": torch.tensor(3),
        "apoz.1.zeros": torch.tensor([3, 0]),
        "delta.x": torch.tensor([5, 0, -5]),
        SCALARS: torch.tensor([3, 100, 0]),
    }
    mean(total, within, spec, 3)
    with pytest.raises(BadUpdate, match=told):
        mean(total | {name: torch.tensor(value) for name, value in changes.items()}, within, spec, 3)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_words_are_the_tensors_own_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    words = as_ring(tensor)
    words -= 1
    assert torch.equal(tensor, torch.full(shape, -1, dtype=dtype))


def test_a_tensor_of_which_there_would_be_a_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="must be contiguous"):
        as_ring(torch.zeros((2, 3), dtype=torch.int64).T)
    with pytest.raises(ValueError, match="must be contiguous"):
        as_ring(torch.zeros(6, dtype=torch.int32)[::2])


# --- where noise hides the whole worker ---


def hidden_round(n: int, noise: float, size: int = 3) -> tuple[SecureRound, Grid]:
    within = a_round(
        n, vectors=(VectorSpec("delta.x", (size,), 32), VectorSpec(SCALARS, (3,), 64)), by_examples=False
    )
    dp = DpSpec(DpUnit.WORKER, 8.0, 1e-5, 1.0, 64, 5, noise)
    grid = noise_grid(dp, within)
    assert grid is not None
    return replace(within, step=grid.step), grid


def draws(number: int) -> SecretDraws:
    return SecretDraws(bytes([number]) * 32)


def test_a_sum_of_noised_updates_is_that_of_their_integers() -> None:
    within, grid = hidden_round(5, 3.0)
    deltas = [{"x": torch.randn(3, generator=torch.Generator().manual_seed(n)) * 99} for n in range(5)]
    parts = [ring_tensors(d, {}, 400, 0.7, within, (grid, draws(n + 1))) for n, d in enumerate(deltas)]
    total = added(parts)
    # By hand: clipped and rounded, the same draws added, in integers without an end.
    expected = [0, 0, 0]
    for n, delta in enumerate(deltas):
        rounded = integers(delta["x"], factor_within(delta, l2_norm(delta), grid))
        assert sum(int(v) ** 2 for v in rounded) <= grid.bound**2
        noise = discrete_gaussians(draws(n + 1), grid.deviation, 3)
        expected = [e + int(v) + int(w) for e, v, w in zip(expected, rounded, noise, strict=True)]
    assert total["delta.x"].tolist() == expected
    # Neither examples nor loss, nor whether it was clipped: who takes part is all.
    assert total[SCALARS].tolist() == [5, 0, 0]
    mean_of = mean(total, within, SecureSpec(3, 32, False, 1, False), 5, grid)
    assert mean_of["delta.x"].tolist() == pytest.approx([e * grid.step / 5 for e in expected])


def test_noise_is_no_sign_of_a_bad_worker_but_more_than_it_is() -> None:
    within, grid = hidden_round(4, 50.0, 1000)
    parts = [
        ring_tensors({"x": torch.zeros(1000)}, {}, 1, 0.0, within, (grid, draws(n))) for n in range(1, 5)
    ]
    total = added(parts)
    spec = SecureSpec(3, 32, False, 1, False)
    assert mean(total, within, spec, 4, grid)["delta.x"].norm() > within.clip
    with pytest.raises(BadUpdate, match="which no worker's may be"):
        mean(total, within, spec, 4)
    total["delta.x"] += 2**30
    with pytest.raises(BadUpdate, match="which no worker's may be"):
        mean(total, within, spec, 4, grid)


def test_of_the_fewest_survivors_those_that_collude_do_not_count_for_the_noise() -> None:
    within, grid = hidden_round(10, 4.0)
    assert (within.minimum, within.colluding) == (7, 3)
    assert grid == shared_grid(4.0, within.clip, 10, 4, 32)
    assert noise_grid(DpSpec(DpUnit.EXAMPLE, 8.0, 1e-5, 1.0, 64, 5), within) is None
    assert noise_grid(None, within) is None
    # What a coordinator speaks of that cannot be is no reason to send less noise.
    with pytest.raises(SecureRefused, match="no room"):
        noise_grid(DpSpec(DpUnit.WORKER, 8.0, 1e-5, 1.0, 64, 5, 1e-12), within)
