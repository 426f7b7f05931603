"""Floats become integers of the ring and a mean again; nothing overflows, no NaN gets in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import BadUpdate
from common.secagg import vector
from common.secagg.context import ring_step


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("n", [3, 4, 8, 100, 128])
@pytest.mark.parametrize("clip", [1e-3, 8.0, 31.7])
def test_sums_of_extremes_do_not_overflow(bits: int, n: int, clip: float) -> None:
    step = ring_step(clip, bits, n)
    # Far beyond the clip, as where somebody's norm was rounded.
    values = np.array([clip, -clip, 2 * clip, -np.finfo(np.float64).max, 0.0, -0.0])
    one = vector.quantise(values, 1.0, step, bits, clip)
    most = int(vector.to_signed(one)[0])
    assert vector.to_signed(one).tolist() == [most, -most, most, -most, 0, 0]
    assert n * most < 2 ** (bits - 1)
    # Not more room than the next worker would need, but for the 50th bit of what floats cannot tell.
    assert most == (2 ** (bits - 1) >> int(np.ceil(np.log2(n)))) - 1 or bits == 64
    total = one.copy()
    for _ in range(n - 1):
        total += one
    assert vector.to_signed(total).tolist() == [n * most, -n * most, n * most, -n * most, 0, 0]
    mean = vector.dequantise(total, step, float(n))
    assert mean.dtype == np.float64
    assert np.allclose(mean, [clip, -clip, clip, -clip, 0, 0], rtol=1e-9, atol=0)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([np.float16, np.float32, np.float64]),
    st.sampled_from([32, 64]),
    st.lists(st.lists(st.floats(-8, 8, width=16), min_size=4, max_size=4), min_size=3, max_size=10),
)
def test_a_mean_is_as_near_as_the_step_says(kind: type, bits: int, rows: list[list[float]]) -> None:
    n, step = len(rows), ring_step(8.0, bits, len(rows))
    total = np.zeros(4, np.uint32 if bits == 32 else np.uint64)
    for row in rows:
        total += vector.quantise(np.array(row, kind), 1.0, step, bits, 8.0)
    error = np.abs(vector.dequantise(total, step, n) - np.mean(np.array(rows, np.float64), 0))
    assert error.max() <= step / 2 + 1e-14


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(wrong: float) -> None:
    with pytest.raises(BadUpdate, match="NaN or infinity"):
        vector.quantise(np.array([1.0, wrong], np.float32), 1.0, 1e-6, 32, 8.0)
    with pytest.raises(BadUpdate, match="finite number"):
        vector.clip_factor(wrong, 8.0)


def test_a_step_that_the_ring_has_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="must fit 32 bits"):
        vector.quantise(np.zeros(1), 1.0, 8.0 / 2**31, 32, 8.0)
    assert vector.quantise(np.zeros(1), 1.0, 8.0 / 2**31, 64, 8.0).tolist() == [0]


def test_only_what_is_larger_is_clipped() -> None:
    assert vector.clip_factor(0.0, 8.0) == 1.0
    assert vector.clip_factor(8.0, 8.0) == 1.0
    assert vector.clip_factor(16.0, 8.0) == 0.5
    with pytest.raises(BadUpdate):
        vector.clip_factor(-1.0, 8.0)


def test_weights_are_shares_of_the_most() -> None:
    assert vector.weight_of(400, 65536) == 400 / 65536
    assert vector.weight_of(65536, 65536) == vector.weight_of(10**9, 65536) == 1.0
    assert vector.counted(10**9, 65536) == 65536


@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3)])
@pytest.mark.parametrize("bits", [32, 64])
def test_shapes_are_kept(shape: tuple[int, ...], bits: int) -> None:
    made = vector.quantise(np.full(shape, -1.0), 0.5, 0.25, bits, 8.0)
    assert isinstance(made, np.ndarray)
    assert (made.shape, made.dtype.itemsize * 8) == (shape, bits)
    assert vector.to_signed(made).tolist() == np.full(shape, -2).tolist()


@pytest.mark.parametrize("bits", [32, 64])
def test_masks_find_their_elements_in_order_whatever_the_order_of_the_floats(bits: int) -> None:
    floats = np.arange(6.0).reshape(2, 3)
    for same in (floats, np.asfortranarray(floats), np.repeat(floats, 2, axis=1)[:, ::2]):
        made = vector.quantise(same, 1.0, 1.0, bits, 8.0)
        assert made.flags.c_contiguous
        assert made.reshape(-1).tolist() == list(range(6))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_integers_are_elements_and_back(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert vector.to_signed(vector.to_ring(array, 64)).tolist() == values
    small = (array % 2**32 - 2**31).astype(np.int64)
    assert vector.to_signed(vector.to_ring(small, 32)).tolist() == small.tolist()
