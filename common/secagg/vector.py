"""Between a worker's floats and the ring's integers: clip, weigh, round, and back from the sum."""

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.errors import BadUpdate
from common.secagg.masks import Ring

Floats: TypeAlias = NDArray[np.floating[Any]]


def clip_factor(norm: float, clip: float) -> float:
    """What a vector of this L2 norm is multiplied by so that it has norm `clip` at most.

    Raises BadUpdate for a norm that is not finite.
    """
    if not np.isfinite(norm) or norm < 0:
        raise BadUpdate(f"an update's norm must be a finite number, got {norm}")
    return min(1.0, clip / norm) if norm > 0 else 1.0


def weight_of(examples: int, most_examples: int) -> float:
    """A worker's weight in the mean, from 0 to 1: a sum of n workers fits the ring whatever they have."""
    return counted(examples, most_examples) / most_examples


def counted(examples: int, most_examples: int) -> int:
    """How many of a worker's examples count; their sum over `most_examples` is the total weight."""
    return min(examples, most_examples)


def quantise(values: Floats, weight: float, step: float, bits: int, clip: float) -> Ring:
    """rint(weight · values / step) as elements of the ring Z_2^bits; -0.0 is 0. Shape as `values`.

    `weight` holds all factors, the clip factor of the whole update, too. No product goes beyond ±`clip`:
    where rounding in the caller's norm would take one there, it ends there. Raises BadUpdate for NaN
    and infinity.
    """
    if not clip / step < 2 ** (bits - 1):
        raise ValueError(f"clip / step must fit {bits} bits, got {clip / step:g}")
    if not np.isfinite(values).all():
        raise BadUpdate("an update must be finite; it holds NaN or infinity")
    scaled = np.clip(values.astype(np.float64) * weight, -clip, clip)
    # Of an array without dimensions numpy's functions make scalars, which cannot be changed in place.
    return to_ring(np.asarray(np.rint(scaled / step)).astype(np.int64), bits)


def to_ring(values: NDArray[np.int64], bits: int) -> Ring:
    """Integers as elements of the ring, negative ones from its upper end; contiguous, as masks ask for."""
    return np.asarray(values).view(np.uint64).astype(_unsigned(bits), order="C")


def to_signed(values: Ring) -> NDArray[np.signedinteger[Any]]:
    """Elements of the ring as the integers that they stand for, of the same width."""
    return values.view(f"i{values.dtype.itemsize}")


def dequantise(total: Ring, step: float, total_weight: float) -> NDArray[np.float64]:
    """The weighted mean that a sum of the ring stands for, in float64."""
    return to_signed(total).astype(np.float64) * step / total_weight


def _unsigned(bits: int) -> type[np.unsignedinteger[Any]]:
    return np.uint32 if bits == 32 else np.uint64
