"""How far a student is from its teacher: the terms of distillation's loss, and their sum as a module."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.model.families import family_of
from common.model.ffn import Ffn, ffns_of
from common.model.held import device_of
from common.model.layers import layers_of, outputs_of
from coordinator.algorithms.margin import Taught


def layer_error(teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
    """Mean squared difference of two modules' outputs [B, T, d] over tokens, relative to the teacher's.

    MSE(h_t / s, h_s / s) with s the root mean square of h_t. `mask` [B, T], 1 = token, None = all.
    """
    tokens = ... if mask is None else mask.bool()
    target = teacher[tokens].float()
    return (student[tokens] - target).square().mean() / target.square().mean()


def in_half(model: PreTrainedModel) -> AbstractContextManager[object]:
    """Of a model in bfloat16 the student, trained in float32, computes in bfloat16 as well."""
    half = next(model.parameters()).dtype is torch.bfloat16
    return torch.autocast(device_of(model).type, torch.bfloat16) if half else nullcontext()


def linear_map(ffn: Ffn) -> Tensor:
    """The FFN without its activation, W2 W1 [1, d, d]: defined whatever the number of neurons.

    Of a gated FFN both, W2 W_gate and W2 W_up: [2, d, d].
    """
    return torch.stack([ffn.out.weight.float() @ m.weight.float() for m in ffn.ins])


def weight_error(teacher_map: Tensor, student: Ffn) -> Tensor:
    """Squared difference of the linearised FFNs, relative to the teacher's."""
    return (linear_map(student) - teacher_map).square().sum() / teacher_map.square().sum()


@dataclass(frozen=True)
class Factors:
    """Of the loss's terms beside the layers' own."""

    weight_term: float = 0.0
    attention_term: float = 0.0
    logit_term: float = 0.0


class DistillationLoss(nn.Module):
    """Model inputs → loss. A module around the student, because DDP works on a module's forward.

    Mean over `layers` of `layer_error` + weight_term · `weight_error` (FedPFT, equation 4), and two
    terms of our own. attention_term: mean error of the attention outputs of the layers after those in
    `layers`, whose own attention has not met their FFN yet. logit_term: error of the last layer's
    output, all that a head sees; no logits, since the head is untrained. A term whose factor is 0
    costs nothing. With `taught`, one for each of `layers`, their outputs are compared with that part of the
    teacher's.
    """

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        layers: Sequence[int],
        factors: Factors,
        taught: Sequence[Taught] = (),
    ) -> None:
        super().__init__()
        self.student = student
        # In a tuple, so as not to be a submodule: DDP would send the FM to every process.
        self._teacher = (teacher,)
        self._taught = taught
        self.factors = factors
        self._ffns = [ffns_of(student)[i] for i in layers]
        with torch.no_grad():
            teachers = [ffns_of(teacher)[i] for i in layers]
            pairs = zip(teachers, self._ffns, strict=True)
            self._maps = [linear_map(t).to(s.out.weight.device) for t, s in pairs]

        behind = [i + 1 for i in layers if factors.attention_term and i + 1 < len(layers_of(teacher))]
        last = [-1] if factors.logit_term else []
        self._sizes = [len(layers), len(behind), len(last)]
        self._watched = [
            [*_layers(model, layers), *_attention_outputs(model, behind), *_layers(model, last)]
            for model in (teacher, student)
        ]

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """`inputs` by the models' own names; the loss, a scalar."""
        wanted, got, mask = self.observed(inputs)
        errors = torch.stack([layer_error(t, s, mask) for t, s in zip(wanted, got, strict=True)])
        return self.weighed(errors, self.weight_errors())

    def observed(self, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor | None]:
        """What of teacher and student is compared, [B, T, d] each, and the mask of tokens [B, T]."""
        with torch.no_grad():
            wanted = outputs_of(self._teacher[0], self._watched[0], inputs)
            for place, part in enumerate(self._taught):
                wanted[place] = part.part_of(wanted[place])
        with in_half(self._teacher[0]):
            got = outputs_of(self.student, self._watched[1], inputs)
        wanted = [t.to(s.device) for t, s in zip(wanted, got, strict=True)]
        return wanted, got, Batch(inputs).mask

    def weight_errors(self) -> Tensor:
        """`weight_error` of each layer."""
        return torch.stack([weight_error(m, f) for m, f in zip(self._maps, self._ffns, strict=True)])

    def weighed(self, errors: Tensor, of_weights: Tensor | None) -> Tensor:
        """The loss, of the errors of what is observed and of `weight_errors`, or without that term."""
        factors = self.factors
        of_layers, of_attention, of_last = errors.split(self._sizes)
        loss: Tensor = (
            of_layers if of_weights is None else of_layers + factors.weight_term * of_weights
        ).mean()
        further = (factors.attention_term, of_attention), (factors.logit_term, of_last)
        for factor, extra in further:
            if len(extra):
                loss = loss + factor * extra.mean()
        return loss


def _layers(model: PreTrainedModel, indices: Sequence[int]) -> list[nn.Module]:
    return [layers_of(model)[i] for i in indices]


def _attention_outputs(model: PreTrainedModel, indices: Sequence[int]) -> list[nn.Module]:
    output = family_of(model.config).attention[-1]
    return [layer.get_submodule(output) for layer in _layers(model, indices)]
