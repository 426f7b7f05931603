"""What an alignment leaves to the owner: the leading directions of outputs are taught, the rest is not."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.errors import StoreError
from common.model.families import FAMILIES
from common.model.layers import layers_of, outputs_of, tokens_of
from coordinator.algorithms.distillation import Settings, distil
from coordinator.algorithms.distillation_loss import DistillationLoss, Factors, layer_error
from coordinator.algorithms.margin import Taught, what_to_teach
from tests.coordinator.algorithms.pairs import COMPRESSED, batches, pair, values

STEPS = Settings(steps=6, learning_rate=1e-2, warmup=0.0, weight_term=0.0)


def some(fm: PreTrainedModel) -> list[Batch]:
    return list(islice(batches(fm), 4))


def tokens(fm: PreTrainedModel, layer: int) -> Tensor:
    """Of these batches the layer's outputs, padding left out."""
    found = []
    with torch.no_grad():
        for batch in some(fm):
            found.append(tokens_of(outputs_of(fm, [layers_of(fm)[layer]], batch.inputs)[0], batch.mask))
    return torch.cat(found)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out_is_the_share_that_was_asked_for_and_no_direction_more(family: str) -> None:
    fm, _ = pair(family)
    for layer, taught in zip(COMPRESSED, what_to_teach(fm, COMPRESSED, some(fm), 0.3), strict=True):
        h = tokens(fm, layer).float()
        torch.testing.assert_close(taught.mean, h.mean(0), rtol=1e-4, atol=1e-5)
        spread = (h - h.mean(0)).square().sum()
        left = (h - taught.part_of(h)).square().sum() / spread
        fewer = Taught(taught.mean, taught.directions[:, :-1])
        assert left <= 0.3 + 1e-4 < (h - fewer.part_of(h)).square().sum() / spread + 2e-4
        once = taught.part_of(h)
        torch.testing.assert_close(taught.part_of(once), once, rtol=1e-4, atol=1e-4)


def test_the_smaller_the_margin_the_more_is_taught_and_next_to_none_is_all() -> None:
    fm, _ = pair("bert")
    counts = [what_to_teach(fm, (1,), some(fm), m)[0].directions.shape[1] for m in (0.9, 0.5, 0.1)]
    assert counts == sorted(counts) and counts[0] < counts[-1]
    h = tokens(fm, 1)
    torch.testing.assert_close(what_to_teach(fm, (1,), some(fm), 1e-9)[0].part_of(h), h, rtol=1e-3, atol=1e-3)


def test_sums_of_several_processes_make_what_one_makes_of_all_batches() -> None:
    fm, _ = pair("bert")
    first, second = some(fm)[:2], some(fm)[2:]
    others: list[Tensor] = []
    what_to_teach(fm, (1,), second, 0.5, lambda own: others.append(own) or own)
    together = what_to_teach(fm, (1,), first, 0.5, lambda own: own + others[0])[0]
    alone = what_to_teach(fm, (1,), some(fm), 0.5)[0]
    h = tokens(fm, 1)
    torch.testing.assert_close(together.part_of(h), alone.part_of(h))


def test_the_loss_is_the_distance_to_what_is_taught() -> None:
    fm, sub_fm = pair("bert")
    batch = some(fm)[0]
    taught = what_to_teach(fm, COMPRESSED, some(fm), 0.5)
    loss = DistillationLoss(fm, sub_fm, COMPRESSED, Factors(), taught)
    t, s = (outputs_of(m, [layers_of(m)[i] for i in COMPRESSED], batch.inputs) for m in (fm, sub_fm))
    wanted = [layer_error(p.part_of(a), b, batch.mask) for p, a, b in zip(taught, t, s, strict=True)]
    torch.testing.assert_close(loss(batch.inputs), torch.stack(wanted).mean())


@pytest.mark.slow
def test_a_student_is_brought_nearer_to_what_is_taught_than_one_that_is_taught_all() -> None:
    fm, _ = pair("bert")
    taught = what_to_teach(fm, COMPRESSED, some(fm), 0.6)

    def distance(margin: float) -> float:
        _, sub_fm = pair("bert")
        distil(fm, sub_fm, COMPRESSED, batches(fm), replace(STEPS, steps=30, margin=margin))
        at = [layers_of(sub_fm)[i] for i in COMPRESSED]
        with torch.no_grad():
            found = [
                layer_error(p.part_of(t), s, b.mask).item()
                for b in some(fm)
                for p, t, s in zip(
                    taught,
                    outputs_of(fm, [layers_of(fm)[i] for i in COMPRESSED], b.inputs),
                    outputs_of(sub_fm, at, b.inputs),
                    strict=True,
                )
            ]
        return sum(found)

    assert distance(0.6) < 0.9 * distance(0.0)


def test_what_broke_off_goes_on_to_the_same_bits_and_not_with_another_margin() -> None:
    fm, whole = pair("bert")
    settings = replace(STEPS, margin=0.5)
    kept: list[dict[str, Tensor]] = []

    def keep(state: dict[str, Tensor]) -> None:
        kept.append({name: tensor.clone() for name, tensor in state.items()})

    distil(fm, whole, COMPRESSED, batches(fm), settings, on_checkpoint=keep, checkpoint_every=2)
    _, broken = pair("bert")
    distil(fm, broken, COMPRESSED, batches(fm), settings, resume=kept[0])
    assert all(torch.equal(tensor, values(whole)[name]) for name, tensor in values(broken).items())
    for other in (0.0, 0.4):
        with pytest.raises(StoreError, match="margin"):
            distil(fm, broken, COMPRESSED, batches(fm), replace(settings, margin=other), resume=kept[0])


def test_without_a_margin_a_checkpoint_is_as_it_was_before_there_was_one() -> None:
    fm, sub_fm = pair("bert")
    kept: list[dict[str, Tensor]] = []
    distil(fm, sub_fm, COMPRESSED, batches(fm), STEPS, on_checkpoint=kept.append, checkpoint_every=6)
    assert "margin" not in kept[0] and len(kept[0]["settings"]) == 6
