"""The sub-FM's attention at a lower rank: what its maps read and write in few directions, the FM's in all.

After the rank cuts of ScaleOT and GradOT, which keep for the owner what an emulator of offsite tuning shows
of attention (arXiv 2412.09812, 2507.04455); here by plain truncation, the same for every map.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from common.errors import ConfigError, UnsupportedFamily
from common.model.families import family_of
from common.model.ffn import Projection
from common.model.layers import layers_of

# Query, key, value and output, each a map of its own.
_MAPS = 4


def require_separate(config: PretrainedConfig) -> None:
    """Raises UnsupportedFamily where several of attention's maps are one matrix."""
    family = family_of(config)
    if len(family.attention) != _MAPS:
        raise UnsupportedFamily(
            f"sub_fm.attention_rank must be unset for {family.model_type}, which holds query, key and value "
            f"in one map ({family.attention[0]})"
        )


@torch.no_grad()
def cut_rank(model: PreTrainedModel, layers: Sequence[int], rank: int) -> None:
    """Leave of each of attention's maps in these layers the nearest one of this rank, in place.

    Of W [out, in] that is the sum of its `rank` largest singular components (Eckart and Young 1936); biases
    stay. Maps with no more rows or columns than that (keys and values of grouped queries) stay as they are.
    Raises ConfigError where that is all of them, UnsupportedFamily as `require_separate`.
    """
    require_separate(model.config)
    maps = [projection for i in layers for projection in _maps(layers_of(model)[i], model.config)]
    sizes = [min(projection.weight.shape) for projection in maps]
    if maps and rank >= max(sizes):
        raise ConfigError(f"sub_fm.attention_rank must be < {max(sizes)}, attention's own, got {rank}")
    for projection, size in zip(maps, sizes, strict=True):
        if rank < size:
            projection.weight.copy_(truncated(projection.weight, rank))


def truncated(weight: Tensor, rank: int) -> Tensor:
    """The nearest matrix [out, in] of this rank, in float32 at least: bfloat16 has no such decomposition."""
    precise = weight.to(torch.promote_types(weight.dtype, torch.float32))
    u, s, v = torch.linalg.svd(precise, full_matrices=False)
    near: Tensor = (u[:, :rank] * s[:rank]) @ v[:rank]
    return near


def _maps(layer: nn.Module, config: PretrainedConfig) -> list[Projection]:
    return [Projection(layer.get_submodule(path)) for path in family_of(config).attention]
