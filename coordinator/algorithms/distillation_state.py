"""A distillation on its way ↔ named tensors, for a safetensors file: no pickle, nothing to execute."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from common.errors import BadUpdate, StoreError
from common.storage.schema import TensorSpec, check, schema_of

_MOMENTS = ("exp_avg", "exp_avg_sq")
_PARAMETER, _ADAMW_STEP, _STEP = "parameter", "adamw_step", "step"


def to_tensors(
    step: int, trained: Mapping[str, nn.Parameter], optimizer: torch.optim.AdamW, fixed: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All that goes on changing, as it is now, and `fixed`, which tells distillations apart.

    No copies: what is to be kept is to be written, or copied, before the next step.

    `step` int64 [], the steps done; per trained parameter `parameter.NAME`, `exp_avg.NAME` and
    `exp_avg_sq.NAME` in its own shape and dtype, and `adamw_step.NAME`, float32 [].
    """
    tensors = {_STEP: torch.tensor(step), **fixed}
    for name, parameter in trained.items():
        state = optimizer.state[parameter]
        tensors[f"{_PARAMETER}.{name}"] = parameter
        tensors[f"{_ADAMW_STEP}.{name}"] = state["step"]
        tensors |= {f"{moment}.{name}": state[moment] for moment in _MOMENTS}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def restore(
    tensors: Mapping[str, Tensor],
    steps: int,
    trained: Mapping[str, nn.Parameter],
    optimizer: torch.optim.AdamW,
    fixed: Mapping[str, Tensor],
) -> int:
    """Inverse of `to_tensors`: fills parameters and optimiser, returns the steps done.

    Raises StoreError, with nothing changed, when the tensors are not of this distillation.
    """
    _require_fit(tensors, steps, trained, fixed)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(_parted_as(parameter, tensors[f"{_PARAMETER}.{name}"]))
    # Through load_state_dict, which knows what of the state belongs on the parameters' device. Copies:
    # AdamW goes on to change them in place.
    order = {parameter: name for name, parameter in trained.items()}
    present = optimizer.state_dict()
    # The state is numbered through all groups, as state_dict() does it.
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    present["state"] = {
        index: {
            "step": tensors[f"{_ADAMW_STEP}.{order[parameter]}"].clone(),
            **{
                moment: _parted_as(parameter, tensors[f"{moment}.{order[parameter]}"]).clone()
                for moment in _MOMENTS
            },
        }
        for index, parameter in enumerate(parameters)
    }
    optimizer.load_state_dict(present)
    return int(tensors[_STEP])


def _parted_as(parameter: nn.Parameter, tensor: Tensor) -> Tensor:
    """A whole tensor as the parameter is held: of one that processes share, this one's part."""
    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, parameter.placements)


def _require_fit(
    tensors: Mapping[str, Tensor],
    steps: int,
    trained: Mapping[str, nn.Parameter],
    fixed: Mapping[str, Tensor],
) -> None:
    schema = {_STEP: TensorSpec((), torch.int64), **schema_of(fixed)}
    for name, parameter in trained.items():
        for part in (_PARAMETER, *_MOMENTS):
            schema[f"{part}.{name}"] = TensorSpec(tuple(parameter.shape), parameter.dtype)
        schema[f"{_ADAMW_STEP}.{name}"] = TensorSpec((), torch.float32)
    try:
        check(tensors, schema)
    except BadUpdate as error:
        raise StoreError(f"the checkpoint does not fit this distillation: {error}") from None
    for name, value in fixed.items():
        if not torch.equal(tensors[name], value):
            raise StoreError(
                f"the checkpoint does not fit this distillation: {name} were {tensors[name].tolist()}, "
                f"are {value.tolist()}"
            )
    if not 0 < (done := int(tensors[_STEP])) <= steps:
        raise StoreError(f"the checkpoint does not fit this distillation: step {done} of {steps}")
