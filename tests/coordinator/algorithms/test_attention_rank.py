"""Attention at a lower rank: every map the nearest of that rank, everything else to the bit as it was."""

import pytest
import torch

from common.errors import ConfigError, UnsupportedFamily
from common.model.families import FAMILIES, family_of
from common.model.ffn import Projection
from common.model.layers import layers_of
from coordinator.algorithms.attention_rank import cut_rank, truncated
from tests.coordinator.algorithms.pairs import COMPRESSED, pair, values
from tests.families import HIDDEN

SEPARATE = [name for name, family in FAMILIES.items() if len(family.attention) == 4]
FUSED = [name for name in FAMILIES if name not in SEPARATE]

# Has fewer keys and values than queries.
GROUPED = "mistral"


def test_the_truncated_matrix_is_the_nearest_of_its_rank() -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    near = truncated(weight, 2)
    assert int(torch.linalg.matrix_rank(near)) == 2
    left = torch.linalg.svdvals(weight)[2:]
    # Eckart and Young: what is lost are the smallest singular values.
    assert (weight - near).square().sum().item() == pytest.approx(left.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("family", SEPARATE)
def test_only_attention_of_the_given_layers_changes(family: str) -> None:
    fm, sub_fm = pair(family)
    before, of_fm = values(sub_fm), values(fm)
    cut_rank(sub_fm, COMPRESSED, 3)
    for name, tensor in values(sub_fm).items():
        in_attention = any(
            f".{i}.{path}.weight" in name for i in COMPRESSED for path in FAMILIES[family].attention
        )
        assert torch.equal(tensor, before[name]) != in_attention, name
    for i in COMPRESSED:
        for path in family_of(sub_fm.config).attention:
            weight = Projection(layers_of(sub_fm)[i].get_submodule(path)).weight
            assert int(torch.linalg.matrix_rank(weight)) == 3
    assert all(torch.equal(tensor, of_fm[name]) for name, tensor in values(fm).items()), "the FM has changed"


@pytest.mark.parametrize("family", FUSED)
def test_families_with_one_map_for_several_are_refused_by_name(family: str) -> None:
    _, sub_fm = pair(family)
    with pytest.raises(UnsupportedFamily, match=f"attention_rank must be unset for {family}, which holds"):
        cut_rank(sub_fm, COMPRESSED, 3)


def test_a_rank_that_would_cut_nothing_is_refused() -> None:
    _, sub_fm = pair("bert")
    with pytest.raises(
        ConfigError, match=rf"attention_rank must be < {HIDDEN}, attention's own, got {HIDDEN}"
    ):
        cut_rank(sub_fm, COMPRESSED, HIDDEN)


def test_narrow_maps_of_grouped_queries_stay_as_they_are() -> None:
    _, sub_fm = pair(GROUPED)
    query, key, *_ = (
        Projection(layers_of(sub_fm)[1].get_submodule(path)) for path in FAMILIES[GROUPED].attention
    )
    narrow = key.weight.shape[0]
    assert narrow < query.weight.shape[0]
    kept = key.weight.clone()
    cut_rank(sub_fm, COMPRESSED, narrow)
    assert torch.equal(key.weight, kept) and int(torch.linalg.matrix_rank(query.weight)) == narrow


def test_bfloat16_stays_bfloat16() -> None:
    weight = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)).bfloat16()
    _, sub_fm = pair("bert")
    sub_fm.to(torch.bfloat16)
    cut_rank(sub_fm, COMPRESSED, 2)
    assert {p.dtype for p in sub_fm.parameters()} == {torch.bfloat16}
    assert truncated(weight, 2).dtype is torch.float32
