"""What of the FM an alignment leaves to its owner: all but the leading directions of each layer's outputs.

A layer's outputs h, over tokens, have a mean m and a covariance with eigenvectors v_1, v_2, … by falling
variance. The student is taught

    h' = m + P (h - m),     P = sum over j <= k of v_j v_j^T

with the smallest k that leaves at most the share `margin` of the variance out. Of Gaussian h this is the
best guess of h from its first k directions, so that what is read from h' holds of h as well. The gradient of
LoRA's A is B^T d x^T, with x the map's input: where that is h', it is the FM's own, for the same d, without
the directions that are left out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.model.layers import layers_of, outputs_of, tokens_of

# Of several processes: the sum of everyone's.
Sum = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Taught:
    """What of a layer's outputs is taught: their mean [d], and orthonormal directions [d, k]."""

    mean: Tensor
    directions: Tensor

    def part_of(self, outputs: Tensor) -> Tensor:
        """h' of outputs [..., d], float32."""
        of_mean: Tensor = (outputs.float() - self.mean) @ self.directions @ self.directions.T
        return self.mean + of_mean


@torch.no_grad()
def what_to_teach(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    batches: Sequence[Batch],
    margin: float,
    in_all: Sum = lambda own: own,
) -> list[Taught]:
    """For each of these layers of the teacher, which is to be in eval mode; `margin` is in (0, 1).

    Takes float64 [d, d] per layer.
    """
    modules = [layers_of(teacher)[i] for i in layers]
    sums: list[Tensor] = []
    for batch in batches:
        for place, outputs in enumerate(outputs_of(teacher, modules, batch.inputs)):
            tokens = tokens_of(outputs, batch.mask).double()
            # With a column of ones: number and sums of tokens are in the same product.
            rows = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], -1)
            if place == len(sums):
                sums.append(rows.new_zeros(rows.shape[1], rows.shape[1]))
            sums[place] += rows.T @ rows
    return [_leading(in_all(own), margin) for own in sums]


def _leading(products: Tensor, margin: float) -> Taught:
    """Of [h, 1]^T [h, 1], summed over tokens, [d + 1, d + 1]."""
    products = products / products[-1, -1]
    mean = products[:-1, -1]
    variances, vectors = torch.linalg.eigh(products[:-1, :-1] - mean.outer(mean))
    variances, vectors = variances.flip(0).clamp_min(0), vectors.flip(1)
    left_out = 1 - variances.cumsum(0) / variances.sum()
    # Rounding may leave the last share above 0.
    enough = (left_out <= margin).nonzero()
    count = int(enough[0]) + 1 if len(enough) else len(variances)
    return Taught(mean.float(), vectors[:, :count].float())
