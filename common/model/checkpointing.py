"""Activations computed again for the gradient instead of kept, a layer at a time (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from common.model.layers import layers_of


@contextmanager
def checkpointing(model: PreTrainedModel, wanted: bool = True) -> Iterator[None]:
    """While open, of each layer only the input is kept for the gradient, if `wanted`; the result is the same.

    Whatever family, in training as in evaluation mode, with the same random draws. Hooks within a layer see
    it twice where there is a gradient, hooks of the layer itself once.
    """
    with ExitStack() as undo:
        for layer in layers_of(model) if wanted else ():
            undo.callback(_restore, layer, layer.__dict__.get("forward"))
            # An attribute of the instance: it is looked for there before the class.
            layer.forward = partial(_again, layer.forward)
        yield


def _again(forward: Any, *inputs: Any, **named: Any) -> Any:
    return checkpoint(forward, *inputs, use_reentrant=False, **named)


def _restore(layer: nn.Module, forward: Any) -> None:
    del layer.forward
    if forward is not None:
        layer.forward = forward
