"""FFN neurons tuned in full: a dense change of every FFN matrix, trained beside the matrix.

The matrix itself stays as it is. So what an alignment writes into it, and what training has changed,
never meet; and the change alone is what travels.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from common.model.families import family_of
from common.model.ffn import Projection
from common.model.layers import layer_prefix, layers_of


class Changed(nn.Module):
    """Stands where an FFN map stood, and maps by its weight plus a change, zero to begin with.

    `residual.weight` [out, in] is in nn.Linear's layout, whatever the map's own. The map's bias stays.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        # Under this name `Projection` finds the map itself.
        self.base_layer = inner
        weight = Projection(inner).weight
        # As all that is trained, whatever the matrix is held in.
        change = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        self.residual = nn.ParameterDict({"weight": nn.Parameter(change)})

    def forward(self, values: Tensor) -> Tensor:
        """[..., in] → [..., out]: one product, by the map's own forward."""
        projection = Projection(self)
        changed = (projection.weight + self.residual["weight"]).to(projection.weight.dtype)
        weight = projection.stored(changed)
        mapped: Tensor = functional_call(self.base_layer, {"weight": weight}, (values,))
        return mapped

    @torch.no_grad()
    def worked_in(self) -> nn.Module:
        """The map itself, the change added to its weight."""
        Projection(self).weight.add_(self.residual["weight"])
        return self.base_layer


def _paths(model: PreTrainedModel) -> list[str]:
    """Where the FFN's maps are, of all layers."""
    family = family_of(model.config)
    parts = (*family.ffn_in, family.ffn_out)
    return [layer_prefix(model.config, i) + part for i in range(len(layers_of(model))) for part in parts]


def tune_neurons(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """Make every FFN matrix of the model tunable in full: PATH.residual.weight → the change [out, in].

    Raises UnsupportedFamily where a variant's FFN is no linear map.
    """
    changes = {}
    for path in _paths(model):
        changed = Changed(model.get_submodule(path))
        model.set_submodule(path, changed)
        changes[f"{path}.residual.weight"] = changed.residual["weight"]
    return changes


def work_in(model: PreTrainedModel) -> None:
    """Add the changes to the matrices themselves: the model is again as its class makes it."""
    for path in _paths(model):
        changed = model.get_submodule(path)
        assert isinstance(changed, Changed)
        model.set_submodule(path, changed.worked_in())
