"""A model run layer by layer gives what it gives as a whole, and every layer runs once on every batch."""

from collections import Counter

import pytest
import torch

from common.data.batches import Batch
from common.errors import UnsupportedFamily
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.layers import layer_outputs, layers_of
from coordinator.algorithms.activation_capture import undisturbed
from coordinator.algorithms.layer_stream import LayerStream
from coordinator.algorithms.reconstruction import reconstruct
from tests.coordinator.algorithms.test_reconstruction import COMPRESSED, RIDGE, batches_for, pair
from tests.families import small_model

BATCHES = 3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_layer_by_layer_is_the_same_as_the_whole(family: str) -> None:
    model = small_model(family)
    batches = batches_for(model, BATCHES)
    with undisturbed(model):
        expected = [layer_outputs(model, batch.inputs) for batch in batches]
        stream = LayerStream(model, batches)
        for layer in range(len(layers_of(model))):
            if layer % 2:
                stream.advance()
            else:
                assert len(list(stream.steps())) == BATCHES
            for hidden, outputs in zip(stream.hidden, expected, strict=True):
                torch.testing.assert_close(hidden, outputs[layer], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_every_layer_runs_once_on_every_batch(family: str) -> None:
    """2 L and a few layer passes a batch, up to the last layer that is refitted."""
    teacher, student = pair(family)
    batches, calls = batches_for(teacher, BATCHES), Counter[str]()
    for name, model in (("teacher", teacher), ("student", student)):
        for i, ffn in enumerate(ffns_of(model)):
            # Within the layer: it is also called, and passes on what it is given, for the encoder's sake.
            ffn.out.site.register_forward_hook(lambda *_, key=f"{name} {i}": calls.update([key]))
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE)
    # The first layer is also asked, on one batch, what it gives.
    once = {f"{name} {i}": BATCHES + (i == 0) for name in ("teacher", "student") for i in range(3)}
    assert calls == once


def test_hidden_states_that_are_changed_between_layers_are_refused() -> None:
    """DeBERTa v2's largest models have a convolution there."""
    model = small_model("deberta-v2", conv_kernel_size=3)
    refused = r"deberta-v2 changes hidden states between its layers 0 and 1.* alignment.method = \"gradient\""
    with pytest.raises(UnsupportedFamily, match=refused), undisturbed(model):
        LayerStream(model, batches_for(model, 1))
    assert not any("forward" in layer.__dict__ for layer in layers_of(model))


def test_layers_are_as_they_were_when_the_encoder_fails() -> None:
    model = small_model("bert")
    with pytest.raises(IndexError), undisturbed(model):
        LayerStream(model, [Batch({"input_ids": torch.full((1, 4), 10_000)})])
    assert not any("forward" in layer.__dict__ for layer in layers_of(model))


def test_no_keys_and_values_are_kept_while_a_decoder_is_looked_into() -> None:
    model = small_model("llama")
    assert model.config.use_cache
    with undisturbed(model):
        assert not model.config.use_cache
    assert model.config.use_cache
