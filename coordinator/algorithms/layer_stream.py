"""A model run layer by layer: all batches through one layer, then all of them through the next.

What the encoder does before and between its layers (embeddings, masks, positions) is asked of the encoder
itself, once a batch, with layers that pass on what they are given.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.errors import UnsupportedFamily
from common.model.ffn import ffns_of
from common.model.layers import encoder_of, layers_of
from coordinator.algorithms.activation_capture import watch_activations


@dataclass(frozen=True)
class LayerStep:
    """One layer on one batch: its neurons' activations [B, T, K], or [B * T, K] where it lays tokens end to
    end, and the residual sum [B, T, d].

    The sum is x + scale * (W2 a + b): what `norm` is given in post-norm models, the layer's output in
    pre-norm ones. Where the FFN's output is normalised before it is added, it is without x.
    """

    activation: Tensor
    total: Tensor


@dataclass
class _Call:
    """How the encoder calls a layer on a batch, but for the hidden states."""

    more: tuple[Any, ...]
    named: dict[str, Any]
    by_name: bool

    @classmethod
    def of(cls, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple["_Call", Tensor]:
        """The call, and the hidden states in it."""
        if inputs:
            return cls(inputs[1:], named, False), inputs[0]
        others = {name: value for name, value in named.items() if name != _HIDDEN}
        return cls((), others, True), named[_HIDDEN]

    def make(self, layer: nn.Module, hidden: Tensor) -> Any:
        if self.by_name:
            return layer(**self.named | {_HIDDEN: hidden})
        return layer(hidden, *self.more, **self.named)


_HIDDEN = "hidden_states"


@contextmanager
def _watch_input(module: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield
    finally:
        hook.remove()


def _restore(layer: nn.Module, forward: Any) -> None:
    del layer.forward
    if forward is not None:
        layer.forward = forward


class _Reached(Exception):
    """Ends a forward pass of which the rest is not needed."""


class LayerStream:
    """Hidden states of batches on their way through a model, which must be `undisturbed`.

    Raises UnsupportedFamily where a layer is not given what the one before it gave.
    """

    def __init__(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        self._model, self._layers, self._ffns = model, layers_of(model), ffns_of(model)
        self.hidden: list[Tensor] = []
        """By batch, [B, T, d]: what the next layer is given."""
        self._calls: list[list[_Call]] = []
        self._next = 0
        # What stands behind hidden states in what a layer gives; None where it gives no tuple.
        self._behind = self._more_than_hidden(batches[0]) if batches else None
        for batch in batches:
            self._enter(batch)

    def _enter(self, batch: Batch) -> None:
        """What the encoder would call its layers with."""
        calls: list[_Call] = []

        def passed_on(inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
            call, hidden = _Call.of(inputs, named)
            if not calls:
                self.hidden.append(hidden)
            elif hidden is not self.hidden[-1] and not torch.equal(hidden, self.hidden[-1]):
                # DeBERTa v2 with a convolution behind its first layer, say.
                raise UnsupportedFamily(
                    f"this {self._model.config.model_type} changes hidden states between its layers "
                    f"{len(calls) - 1} and {len(calls)}, so it cannot be aligned in closed form; "
                    'set alignment.method = "gradient"'
                )
            calls.append(call)
            return hidden if self._behind is None else (hidden, *self._behind)

        with ExitStack() as undo:
            for layer in self._layers:
                # An attribute of the instance: it is looked for there before the class.
                undo.callback(_restore, layer, layer.__dict__.get("forward"))
                layer.forward = lambda *inputs, **named: passed_on(inputs, named)
            encoder_of(self._model)(**batch.inputs)
        self._calls.append(calls)

    def _more_than_hidden(self, batch: Batch) -> tuple[None, ...] | None:
        """Asked of the first layer; nobody reads it."""
        first, found = self._layers[0], list[tuple[None, ...] | None]()

        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            found.append((None,) * (len(output) - 1) if isinstance(output, tuple) else None)
            raise _Reached

        hook = first.register_forward_hook(after)
        try:
            with suppress(_Reached):
                encoder_of(self._model)(**batch.inputs)
        finally:
            hook.remove()
        return found[0]

    def steps(self) -> Iterator[LayerStep]:
        """Each batch in turn through the next layer; the batches that were not asked for stay behind."""
        ffn = self._ffns[self._next]
        index, self._next = self._next, self._next + 1
        self._ffn = ffn
        self._totals: list[Tensor] = []
        for k, hidden in enumerate(self.hidden):
            seen: list[Tensor] = []
            with ExitStack() as undo:
                undo.enter_context(watch_activations(ffn, seen.append))
                if ffn.norm_behind is not None:
                    undo.enter_context(_watch_input(ffn.norm_behind, seen))
                output = self._output(index, k, hidden)
            activation, total = seen if ffn.norm_behind is not None else (*seen, output)
            self.hidden[k] = output
            self._totals.append(total)
            yield LayerStep(activation, total)

    def advance(self) -> None:
        """All batches through the next layer."""
        index, self._next = self._next, self._next + 1
        for k, hidden in enumerate(self.hidden):
            self.hidden[k] = self._output(index, k, hidden)

    def correct(self, added: Iterable[Tensor]) -> None:
        """The last layer gave so much more in its residual sums, [B, T, d] by batch."""
        norm = self._ffn.norm_behind
        for k, (total, more) in enumerate(zip(self._totals, added, strict=True)):
            corrected = total + more.view_as(total)
            if norm is None:
                self.hidden[k] = corrected
            elif self._ffn.post_norm:
                self.hidden[k] = norm(corrected)
            else:
                self.hidden[k] = self.hidden[k] + (norm(corrected) - norm(total))
        self._totals = []

    def _output(self, index: int, k: int, hidden: Tensor) -> Tensor:
        output = self._calls[k][index].make(self._layers[index], hidden)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result
