"""The adapter: LoRA on every layer plus the task head. peft does the LoRA.

Tensors carry the names under which PEFT saves them, so that an adapter on the wire is already what
an export holds.
"""

import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.errors import BadUpdate
from common.model.families import Family, family_of
from common.records import AdapterSpec, AdapterTargets

Tensors = Mapping[str, Tensor]

_PEFT_PREFIX = "base_model.model."


def lora_config(spec: AdapterSpec, family: Family) -> LoraConfig:
    """PEFT's configuration for this adapter on this family."""
    paths = "|".join(re.escape(path) for path in family.attention)
    layers = re.escape(f"{family.encoder}.{family.layers}")
    return LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        lora_dropout=spec.dropout,
        target_modules=rf"{layers}\.\d+\.({paths})",
        modules_to_save=[family.head],
    )


class Adapted:
    """A model with an adapter in it; `model` is called as before.

    LoRA starts as no change (B = 0); its A is drawn from `seed`. The head starts as the model's own.
    """

    def __init__(self, model: PreTrainedModel, spec: AdapterSpec, seed: int = 0) -> None:
        self.base = model
        self.family = family_of(model.config)
        self.model: nn.Module = model
        if spec.targets is AdapterTargets.NONE:
            model.requires_grad_(False)
            model.get_submodule(self.family.head).requires_grad_(True)
        else:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # peft 0.21 still reads an attribute that transformers 5 deprecates.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                torch.manual_seed(seed)
                self.model = get_peft_model(model, lora_config(spec, self.family))
        # peft's new layers start in training mode, whatever the model was in.
        self.model.eval()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's values, detached copies."""
        if isinstance(self.model, PeftModel):
            state = get_peft_model_state_dict(self.model)
        else:
            head = self.model.get_submodule(self.family.head)
            state = {f"{self.family.head}.{n}": t for n, t in head.state_dict().items()}
            state = {_PEFT_PREFIX + name: tensor for name, tensor in state.items()}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def load(self, tensors: Tensors) -> None:
        """Plug an adapter in. Raises BadUpdate when it is not of this model."""
        expected = self.tensors()
        if expected.keys() != tensors.keys():
            odd = sorted(expected.keys() ^ tensors.keys())[0]
            raise BadUpdate(f"the adapter does not fit the model: tensor {odd} is on one side only")
        for name, tensor in expected.items():
            if tensor.shape != tensors[name].shape:
                raise BadUpdate(
                    f"the adapter does not fit the model: tensor {name} must be {list(tensor.shape)}, "
                    f"got {list(tensors[name].shape)}"
                )
        if isinstance(self.model, PeftModel):
            result: Any = set_peft_model_state_dict(self.model, dict(tensors))
            # Base weights count as missing there, so only this tells whether all went in.
            assert not result.unexpected_keys, result.unexpected_keys
        else:
            head = self.model.get_submodule(self.family.head)
            prefix = f"{_PEFT_PREFIX}{self.family.head}."
            head.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items()})

    def merged(self) -> PreTrainedModel:
        """The plain model with the adapter worked into its weights; this object is used up."""
        if isinstance(self.model, PeftModel):
            merged: PreTrainedModel = self.model.merge_and_unload()
            return merged
        return self.base

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Trainable parameters: LoRA's, and the head's."""
        lora: list[nn.Parameter] = []
        head: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                (lora if ".lora_" in name else head).append(parameter)
        return lora, head


def difference(tuned: Tensors, start: Tensors) -> dict[str, Tensor]:
    """What travels: the change that training made."""
    return {name: tuned[name] - start[name] for name in start}


def plus(start: Tensors, delta: Tensors) -> dict[str, Tensor]:
    """The adapter that a worker's update stands for: by definition the sum, in the tensors' own dtype."""
    return {name: start[name] + delta[name] for name in start}
