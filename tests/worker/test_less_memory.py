"""Training in less memory: a batch in parts, activations computed again; the same update."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from common.data.batches import IMAGE_TOKENS, Batch, Dataset
from common.model.adapter import Adapted
from common.model.families import FAMILIES
from common.model.layers import layers_of
from common.model.tasks import IGNORED
from common.records import LocalOptimizer, TaskKind
from tests.families import small_inputs, small_model
from tests.small import TEXT, same_bits
from tests.worker.test_train import FFN_TOO, SPEC, counter, without_dropout
from worker.train import fine_tune

FAST = ("bert", "gpt2", "llama", "vit")


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        ("llama", TaskKind.CAUSAL_LM),
        ("bert", TEXT),
        ("bert", TaskKind.TOKEN_CLASSIFICATION),
        ("bert", TaskKind.TEXT_MULTI_LABEL),
        ("bert", TaskKind.TEXT_REGRESSION),
        ("vit", TaskKind.IMAGE_CLASSIFICATION),
    ],
)
def test_in_parts_a_step_comes_to_the_same(model_type: str, kind: TaskKind, tokens: int) -> None:
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        tokens *= IMAGE_TOKENS // 8
    classes = 3 if kind in (TEXT, TaskKind.TEXT_MULTI_LABEL) else None
    model = small_model(model_type, kind, **{"num_labels": classes} if classes else {})
    found = {}
    for name, parts in (("whole", 0), ("parts", tokens)):
        adapted = Adapted(deepcopy(model), kind, replace(FFN_TOO, dropout=0.0), seed=1)
        without_dropout(adapted)
        spec = replace(
            SPEC,
            proximal=0.1,
            optimizer=LocalOptimizer.SGD,
            tokens_per_step=parts,
            class_weights=(0.3, 1.0, 2.5) if classes else (),
        )
        counting = counter(adapted, 1, 2)
        data = Random(adapted, kind)
        found[name] = fine_tune(adapted, adapted.tensors(), data, spec, factor=1.0, seed=1, counter=counting)
    whole, parts = found["whole"], found["parts"]
    assert parts.steps == whole.steps and parts.loss == pytest.approx(whole.loss, rel=1e-5)
    for tensor, other in zip(whole.delta.values(), parts.delta.values(), strict=True):
        assert torch.allclose(tensor, other, rtol=1e-3, atol=1e-5)
    for layer in (1, 2):
        assert torch.equal(parts.counts[layer].tokens, whole.counts[layer].tokens)
        assert (parts.counts[layer].zeros - whole.counts[layer].zeros).abs().max() <= 1


class Random(Dataset):
    """Rows for a model, of unequal length, with labels of its kind."""

    def __init__(self, adapted: Adapted, kind: TaskKind) -> None:
        self._model, self._kind = adapted.base, kind
        self._inputs = small_inputs(adapted.base, 8)

    def __len__(self) -> int:
        return 8

    def batch(self, indices: Sequence[int]) -> Batch:
        inputs = {name: values[list(indices)] for name, values in self._inputs.items()}
        draw = torch.Generator().manual_seed(3)
        mask = inputs.get("attention_mask")
        classes = self._model.config.num_labels
        match self._kind:
            case TaskKind.CAUSAL_LM:
                labels = inputs["input_ids"].masked_fill(mask == 0, IGNORED)
            case TaskKind.TOKEN_CLASSIFICATION:
                labels = torch.randint(0, classes, mask.shape, generator=draw).masked_fill(mask == 0, IGNORED)
            case TaskKind.TEXT_MULTI_LABEL:
                labels = torch.randint(0, 2, (len(indices), classes), generator=draw).float()
            case TaskKind.TEXT_REGRESSION:
                labels = torch.randn(len(indices), generator=draw)
            case _:
                labels = torch.randint(0, classes, (len(indices),), generator=draw)
        return Batch(inputs, labels)


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        pytest.param(name, kind, marks=() if name in FAST and kind is family.tasks[0] else pytest.mark.slow)
        for name, family in FAMILIES.items()
        for kind in dict.fromkeys((family.tasks[0], family.tasks[-1]))
    ],
)
def test_computing_activations_again_changes_no_bit(model_type: str, kind: TaskKind) -> None:
    """With dropout, whose draws are the same again; nothing is counted twice."""
    model, found = small_model(model_type, kind), []
    for checkpointing in (False, True):
        adapted = Adapted(deepcopy(model), kind, FFN_TOO, seed=1)
        spec = replace(SPEC, epochs=1, batch_size=4, checkpointing=checkpointing)
        counting = counter(adapted, 1, 2)
        data = Random(adapted, kind)
        found.append(fine_tune(adapted, adapted.tensors(), data, spec, factor=1.0, seed=1, counter=counting))
        assert not any("forward" in layer.__dict__ for layer in layers_of(adapted.base))
    plain, again = found
    assert same_bits(plain.delta, again.delta) and plain.loss == again.loss
    for layer in (1, 2):
        assert torch.equal(plain.counts[layer].tokens, again.counts[layer].tokens)
        assert torch.equal(plain.counts[layer].zeros, again.counts[layer].zeros)
