"""The adapter: LoRA on every layer plus the task head. peft does the LoRA.

Tensors carry the names under which PEFT saves them, so that an adapter on the wire is already what
an export holds. There may be residuals besides: what base weights have gained, `….residual.weight`,
[out, in] in nn.Linear's layout. Where FFN neurons are tuned in full these are trained, and have no LoRA
beside them; under exact averaging (FedEx-LoRA) the coordinator computes them, and each stands beside
`….lora_A.weight`.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import (
    LoraConfig,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.errors import BadUpdate, ModelError, UnsupportedFamily
from common.model.families import family_of
from common.model.family import Family
from common.model.ffn import Projection
from common.model.held import held_itself
from common.model.neurons import tune_neurons, work_in
from common.model.tasks import peft_type
from common.records import AdapterSpec, AdapterTargets, TaskKind
from common.storage.schema import TensorSpec, schema_of
from common.task_forms import FORMS, Answer

Tensors = Mapping[str, Tensor]

PEFT_PREFIX = "base_model.model."
RESIDUAL = ".residual.weight"
LM_HEAD = "lm_head"
_LORA_A = ".lora_A.weight"


def lora_config(
    spec: AdapterSpec, family: Family, kind: TaskKind, transposed: bool = False, new: Sequence[str] = ()
) -> LoraConfig:
    """PEFT's configuration for this adapter on this family; `transposed` for Conv1D weights.

    `new` are modules that the FM's checkpoint did not bring.
    """
    paths = family.attention
    if spec.targets is AdapterTargets.ATTENTION_FFN:
        paths = (*paths, *family.ffn_in, family.ffn_out)
    choice = "|".join(re.escape(path) for path in paths)
    layers = re.escape(f"{family.encoder}.{family.layers}")
    return LoraConfig(
        task_type=peft_type(kind),
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]
        lora_dropout=spec.dropout,
        target_modules=rf"{layers}\.\d+\.({choice})",
        modules_to_save=[*heads_of(family, kind), *new] or None,
        fan_in_fan_out=transposed,
    )


def heads_of(family: Family, kind: TaskKind) -> tuple[str, ...]:
    """Modules that are always tuned in full: a classifier's head; nothing of a language model."""
    match FORMS[kind].answer:
        case Answer.NEXT_TOKEN:
            return ()
        case Answer.TAGS:
            return family.token_head
    return family.head


def may_lack(family: Family, kind: TaskKind) -> tuple[str, ...]:
    """Modules beside the head that a published checkpoint may lack.

    Then they are drawn, and tuned in full as the head is: nobody else could draw the same.
    """
    if kind is TaskKind.CAUSAL_LM:
        return (LM_HEAD,)
    if family.pooler is None or FORMS[kind].answer is Answer.TAGS:
        return ()
    return (family.pooler,)


def is_transposed(model: PreTrainedModel) -> bool:
    """Whether the maps that carry LoRA keep their weights as [in, out]."""
    return any(isinstance(module, Conv1D) for module in model.modules())


def trained(name: str, spec: AdapterSpec) -> bool:
    """Whether workers train this tensor of an adapter: an update holds these and no others."""
    if name.endswith(RESIDUAL):
        return spec.targets.neurons
    return not (spec.freeze_a and name.endswith(_LORA_A))


class Trainable(NamedTuple):
    """An adapter's parameters that are trained: each group may have a learning rate of its own."""

    lora: list[nn.Parameter]
    neurons: list[nn.Parameter]
    """Dense changes of FFN matrices, [out, in]."""
    head: list[nn.Parameter]

    @property
    def all(self) -> list[nn.Parameter]:
        """Every one, in this order."""
        return [*self.lora, *self.neurons, *self.head]


class Adapted:
    """A model with an adapter in it; `model` is called as before.

    LoRA starts as no change (B = 0); its A is drawn from `seed`. So do neurons that are tuned in full, with
    nothing drawn. The head starts as the model's own, and so do modules that are `new` besides. Raises
    ModelError for a module that cannot be.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        kind: TaskKind,
        spec: AdapterSpec,
        seed: int = 0,
        new: Sequence[str] = (),
    ) -> None:
        self.base, self.kind, self.spec = model, kind, spec
        self.family = family_of(model.config)
        self.model: nn.Module = model
        if odd := sorted(set(new) - set(may_lack(self.family, kind))):
            raise ModelError(f"a {self.family.model_type} model for {kind} cannot have a new {odd[0][:80]}")
        self._heads = (*heads_of(self.family, kind), *new)
        # Base weights [out, in] as they were, of those that a residual has been added to.
        self._unchanged: dict[str, Tensor] = {}
        self._residuals: dict[str, Tensor] = {}
        if not spec.targets.lora:
            model.requires_grad_(False)
            for head in self._heads:
                model.get_submodule(head).requires_grad_(True)
        else:
            config = lora_config(spec, self.family, kind, is_transposed(model), new)
            # peft puts LoRA where the map is that it is for.
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), held_itself(model):
                # peft 0.21 still reads an attribute that transformers 5 deprecates.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
                torch.manual_seed(seed)
                self.model = get_peft_model(model, config)
            for name, parameter in self.model.named_parameters():
                if spec.freeze_a and ".lora_A." in name:
                    parameter.requires_grad_(False)
        for head in self._heads:
            _in_float32(self.base.get_submodule(head))
        # After peft, which freezes what it does not know.
        changes = tune_neurons(model) if spec.targets.neurons else {}
        self._neurons = {PEFT_PREFIX + name: change for name, change in changes.items()}
        # peft's new layers start in training mode, whatever the model was in.
        self.model.eval()

    def tensors(self) -> dict[str, Tensor]:
        """The adapter's values, detached copies."""
        state = self._state() | self._residuals
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def schema(self) -> dict[str, TensorSpec]:
        """Names, shapes and dtypes of an adapter as workers train it; also of a model without values."""
        return schema_of(self._state())

    def _state(self) -> dict[str, Tensor]:
        """Without what exact averaging adds."""
        return self._plain_state() | self._neurons

    def _plain_state(self) -> dict[str, Tensor]:
        if isinstance(self.model, PeftModel):
            found: dict[str, Tensor] = get_peft_model_state_dict(self.model)
            return found
        return {
            f"{PEFT_PREFIX}{head}.{name}": tensor
            for head in self._heads
            for name, tensor in self.model.get_submodule(head).state_dict().items()
        }

    def load(self, tensors: Tensors) -> None:
        """Plug an adapter in. Raises BadUpdate when it is not of this model."""
        # Neurons that are tuned in full and exact averaging do not go together.
        added = () if self._neurons else (name for name in tensors if name.endswith(RESIDUAL))
        residuals = {name: tensors[name] for name in added}
        plain = {name: tensor for name, tensor in tensors.items() if name not in residuals}
        expected = self._state()
        if expected.keys() != plain.keys():
            odd = sorted(expected.keys() ^ plain.keys())[0]
            raise BadUpdate(f"the adapter does not fit the model: tensor {odd} is on one side only")
        for name, tensor in expected.items():
            _require_shape(name, tensor, plain[name])
        self._add_residuals(residuals)
        self._set_neurons(plain)
        plain = {name: tensor for name, tensor in plain.items() if name not in self._neurons}
        if isinstance(self.model, PeftModel):
            result: Any = set_peft_model_state_dict(self.model, plain)
            # Base weights count as missing there, so only this tells whether all went in.
            assert not result.unexpected_keys, result.unexpected_keys
            return
        for head in self._heads:
            prefix = f"{PEFT_PREFIX}{head}."
            own = {n.removeprefix(prefix): t for n, t in plain.items() if n.startswith(prefix)}
            self.model.get_submodule(head).load_state_dict(own)

    @torch.no_grad()
    def _set_neurons(self, tensors: Tensors) -> None:
        for name, change in self._neurons.items():
            change.copy_(tensors[name])

    @torch.no_grad()
    def _add_residuals(self, residuals: dict[str, Tensor]) -> None:
        """Make base weights what they were plus these, and no others'."""
        weights: dict[str, Tensor] = {}
        for name in sorted(residuals.keys() | self._residuals.keys()):
            path = name.removeprefix(PEFT_PREFIX).removesuffix(RESIDUAL)
            try:
                weights[name] = Projection(self.base.get_submodule(path)).weight
            except (AttributeError, UnsupportedFamily):
                raise BadUpdate(f"the adapter does not fit the model: there is no map {path}") from None
            if name in residuals:
                _require_shape(name, weights[name], residuals[name])
        # All fit: only now is anything changed.
        for name, weight in weights.items():
            before = self._unchanged.setdefault(name, weight.detach().clone())
            residual = residuals.get(name)
            weight.copy_(before if residual is None else before + residual.to(before))
        self._residuals = residuals

    def merged(self) -> PreTrainedModel:
        """The plain model with the adapter worked into its weights; this object is used up."""
        if self._neurons:
            work_in(self.base)
        if isinstance(self.model, PeftModel):
            merged: PreTrainedModel = self.model.merge_and_unload()
            return merged
        return self.base

    def parameter_groups(self) -> Trainable:
        """What is trained, by kind."""
        groups = Trainable([], list(self._neurons.values()), [])
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not name.endswith(RESIDUAL):
                (groups.lora if ".lora_" in name else groups.head).append(parameter)
        return groups


def _in_float32(head: nn.Module) -> None:
    """Tuned in full, it is float32, as LoRA is: what a step changes is too little for fewer digits.

    Of a model in bfloat16 it is given its inputs so.
    """
    if all(parameter.dtype is torch.float32 for parameter in head.parameters()):
        return
    head.float()
    head.register_forward_pre_hook(
        lambda module, inputs: tuple(v.float() if v.is_floating_point() else v for v in inputs)
    )


def _require_shape(name: str, wanted: Tensor, given: Tensor) -> None:
    if wanted.shape != given.shape:
        raise BadUpdate(
            f"the adapter does not fit the model: tensor {name} must be {list(wanted.shape)}, "
            f"got {list(given.shape)}"
        )


def layer_pattern(config: PretrainedConfig) -> re.Pattern[str]:
    """Matches an adapter's names in layers: groups 1 before the layer's number, 2 it, 3 path, 4 kind.

    The kind is "lora_A", "lora_B" or "residual".
    """
    family = family_of(config)
    stack = re.escape(f"{PEFT_PREFIX}{family.encoder}.{family.layers}.")
    return re.compile(rf"({stack})(\d+)\.(.+)\.(lora_A|lora_B|residual)\.weight")


def difference(tuned: Tensors, start: Tensors, spec: AdapterSpec) -> dict[str, Tensor]:
    """What travels: the change that training made to what it trains."""
    return {name: tuned[name] - start[name] for name in start if trained(name, spec)}


def plus(start: Tensors, delta: Tensors) -> dict[str, Tensor]:
    """The adapter that a worker's update stands for: by definition the sum, in the tensors' own dtype."""
    return {name: value + delta[name] if name in delta else value for name, value in start.items()}
