"""FedEx-LoRA: what the averages of LoRA's factors lose of the average of their products."""

from collections.abc import Mapping, Sequence

from torch import Tensor

_A, _B, _RESIDUAL = ".lora_A.weight", ".lora_B.weight", ".residual.weight"


def residuals(
    start: Mapping[str, Tensor],
    following: Mapping[str, Tensor],
    deltas: Sequence[Mapping[str, Tensor]],
    shares: Sequence[float],
    scale: float,
) -> dict[str, Tensor]:
    """What must be added to the frozen weights for the model to have the mean of the workers' products.

    Beside each pair "PATH.lora_A.weight" [r, in], "PATH.lora_B.weight" [out, r] of which the deltas hold
    a factor, "PATH.residual.weight" [out, in], in nn.Linear's layout and B's dtype, is start's (zero
    when it has none) + scale · (sum_k share_k B_k A_k - B A). B_k and A_k are worker k's own: start +
    delta_k, or start where the deltas hold none; B and A are those in `following`, the averages;
    `scale` is LoRA's alpha / rank, by which the model multiplies B A. Source: Singhal et al. 2024.
    """
    result = {}
    # A set of names: to look a name up in a mapping that reads from disk is to read the tensor.
    held = {name for delta in deltas for name in delta}
    for path in [name.removesuffix(_A) for name in start if name.endswith(_A)]:
        a, b, residual = path + _A, path + _B, path + _RESIDUAL
        if held.isdisjoint((a, b)):
            continue
        # In float64, from the very averages that are sent, rounded as they are: the two terms are
        # nearly equal.
        lacking = -_product(following, b, a)
        for delta, share in zip(deltas, shares, strict=True):
            own = {name: start[name] + delta[name] if name in held else start[name] for name in (a, b)}
            lacking += share * _product(own, b, a)
        before = start[residual].double() if residual in start else 0.0
        result[residual] = (before + scale * lacking).to(start[b].dtype)
    return result


def _product(factors: Mapping[str, Tensor], b: str, a: str) -> Tensor:
    return factors[b].double() @ factors[a].double()
