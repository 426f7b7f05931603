"""Dropout with a quarter of the random numbers."""

import math

import pytest
import torch
from torch import nn

from common.model.dropout import Dropout, cheap_dropout, dropped


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_as_many_are_dropped_as_asked_for_and_the_mean_stays(share: float) -> None:
    torch.manual_seed(0)
    count = 1_000_000
    found = dropped(torch.ones(count), share)
    spread = math.sqrt(share * (1 - share) / count)
    assert abs(float((found == 0).float().mean()) - share) < 5 * spread
    assert found.unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=1e-3)
    assert float(found.mean()) == pytest.approx(1, abs=5 * spread / (1 - share) + 1e-4)


def test_values_that_share_a_draw_are_dropped_independently() -> None:
    torch.manual_seed(0)
    four = (dropped(torch.ones(400_000), 0.5) == 0).float().view(-1, 4)
    assert torch.allclose(torch.corrcoef(four.T), torch.eye(4), atol=0.02)
    along = (dropped(torch.ones(400_000), 0.5) == 0).float()
    assert abs(float(torch.corrcoef(torch.stack([along[:-4], along[4:]]))[0, 1])) < 0.02


def test_the_gradient_goes_through_what_is_kept() -> None:
    values = torch.randn(7, 3, requires_grad=True)
    found = dropped(values, 0.5)
    found.sum().backward()
    assert values.grad is not None
    assert torch.equal(found, values * values.grad)
    assert set(values.grad.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_shape_and_dtype_stay(dtype: torch.dtype) -> None:
    for shape in ((), (1,), (5,), (2, 3, 5), (0, 4)):
        found = dropped(torch.ones(shape, dtype=dtype), 0.5)
        assert (found.shape, found.dtype) == (torch.Size(shape), dtype)


def test_nothing_and_everything_can_be_dropped() -> None:
    values = torch.randn(9)
    assert torch.equal(dropped(values, 0.0), values)
    assert torch.equal(dropped(values, 1.0), torch.zeros(9))


def test_the_same_seed_drops_the_same() -> None:
    torch.manual_seed(3)
    first = dropped(torch.ones(100), 0.5)
    torch.manual_seed(3)
    assert torch.equal(dropped(torch.ones(100), 0.5), first)


def test_a_model_drops_so_while_it_is_open_and_is_left_as_found() -> None:
    model = nn.ModuleDict({"a": nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.25)), "b": nn.Dropout(0.5)})
    model.eval()
    before = dict(model.named_modules())
    with cheap_dropout(model):
        inner = [module for module in model.modules() if isinstance(module, Dropout)]
        assert [module.p for module in inner] == [0.25, 0.5]
        assert not any(module.training for module in inner)
        values = torch.ones(1000)
        assert torch.equal(model["b"](values), values)
        model.train()
        assert 400 < int((model["b"](values) == 0).sum()) < 600
        model.eval()
    assert dict(model.named_modules()) == before
    assert model.state_dict().keys() == {"a.0.weight", "a.0.bias"}


@pytest.mark.parametrize("share", [2**-16, 0.1, 0.5, 1 - 2**-16])
def test_exactly_the_draws_below_the_level_are_dropped(share: float) -> None:
    level = round(share * 2**16)
    torch.manual_seed(5)
    found = dropped(torch.ones(4_000_000), share) == 0
    torch.manual_seed(5)
    drawn = torch.empty(1_000_000, dtype=torch.int64).random_(-(1 << 63), None).view(torch.int16)
    assert torch.equal(found, drawn.long() + 2**15 < level)
