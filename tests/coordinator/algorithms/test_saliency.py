"""How neurons are ranked."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from common.model.families import Ffn
from coordinator.algorithms.saliency import l2_norm, top_k

SCORES = st.lists(st.integers(0, 5), min_size=1, max_size=30)


def test_saliency_is_the_norm_of_incoming_and_outgoing_weights() -> None:
    ffn = Ffn(nn.Linear(2, 3), nn.Linear(3, 2), nn.LayerNorm(2))
    with torch.no_grad():
        ffn.up.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 2.0]]))
        ffn.down.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [2.0, 5.0, 4.0]]))
    # sqrt(4 + 1 + 4), sqrt(25), sqrt(1 + 4 + 4 + 16); biases do not count.
    assert l2_norm(ffn).tolist() == [3.0, 5.0, 5.0]


def test_saliency_asks_for_no_gradient() -> None:
    assert not l2_norm(Ffn(nn.Linear(2, 3), nn.Linear(3, 2), nn.LayerNorm(2))).requires_grad


@given(SCORES, st.data())
def test_the_chosen_are_the_highest_in_ascending_order(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    chosen = top_k(torch.tensor(scores, dtype=torch.float32), k).tolist()
    assert chosen == sorted(set(chosen)) and len(chosen) == k
    left = set(range(len(scores))) - set(chosen)
    assert all(scores[i] >= scores[j] for i in chosen for j in left)


@given(SCORES, st.data())
def test_of_equals_the_first_are_chosen(scores: list[int], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(scores)))
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert top_k(torch.tensor(scores, dtype=torch.float32), k).tolist() == sorted(ranked[:k])
