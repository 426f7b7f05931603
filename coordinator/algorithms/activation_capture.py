"""Looking into a model while it runs: FFN activations, attention, residual sums. All is undone after."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from common.model.families import family_of
from common.model.ffn import Ffn
from common.model.layers import layers_of


@contextmanager
def undisturbed(*models: nn.Module) -> Iterator[None]:
    """While open, no dropout, no trainable parameter, no cache of keys and values; after that each module's
    state as it was."""
    configs: list[Any] = [model.config for model in models if hasattr(model, "config")]
    caching = [config for config in configs if getattr(config, "use_cache", False)]
    modes = [(module, module.training) for model in models for module in model.modules()]
    trainable = [p for model in models for p in model.parameters() if p.requires_grad]
    for model in models:
        model.eval().requires_grad_(False)
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:
            config.use_cache = True
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def watch_activations(ffn: Ffn, observe: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """`observe` is given the neurons' activations [B, T, K] in every pass: the input of the out map.

    So of a gated FFN the product. What it returns, if anything, takes their place.
    """

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        changed = observe(inputs[0])
        return None if changed is None else (changed, *inputs[1:])

    hook = ffn.out.site.register_forward_pre_hook(before)
    try:
        yield
    finally:
        hook.remove()


def _asked(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
    """The call that has probabilities returned, where a module wants to be asked (DeBERTa, MPNet)."""
    call = signature(module.forward).bind(*inputs, **named)
    if "output_attentions" in call.signature.parameters:
        call.arguments["output_attentions"] = True
    return call.args, call.kwargs


@contextmanager
def watch_attention(model: PreTrainedModel, observe: Callable[[int, Tensor], None]) -> Iterator[None]:
    """`observe` is given each layer's index and attention probabilities [B, heads, queries, keys].

    Computed eagerly while open: the faster implementations never form them. By hooks rather than by
    `output_attentions`, which would hold all layers' probabilities at once and leave hooks behind.
    """
    holder = family_of(model.config).attention[0].rpartition(".")[0]

    def watch(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            assert output[1] is not None, f"{type(module).__name__} forms no attention probabilities"
            observe(layer, output[1])

        return after

    implementation = model.config._attn_implementation
    with ExitStack() as undo:
        for i, layer in enumerate(layers_of(model)):
            attention = layer.get_submodule(holder)
            undo.callback(attention.register_forward_pre_hook(_asked, with_kwargs=True).remove)
            undo.callback(attention.register_forward_hook(watch(i)).remove)
        undo.callback(model.set_attn_implementation, implementation)
        model.set_attn_implementation("eager")
        yield


def attention_received(probabilities: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over heads and unpadded queries of the attention paid to each token: [B, T], rows sum to 1.

    `probabilities` [B, heads, queries, keys], `mask` [B, T]. A row of nothing but padding gets zeros.
    """
    by_query = probabilities.float().mean(1)
    if mask is None:
        return by_query.mean(1)
    queries = mask.bool()
    kept = by_query.masked_fill(~queries[:, :, None], 0.0).sum(1)
    return kept / queries.sum(1, keepdim=True).clamp(min=1)
