"""Derived seeds depend on everything given and on nothing else."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from common.runtime.seeds import derive

PURPOSE = st.lists(st.integers(0, 99) | st.text("abcdef", min_size=1), max_size=4)


@given(st.integers(0, 2**32), PURPOSE)
def test_a_seed_is_one_that_torch_takes(seed: int, purpose: list[str | int]) -> None:
    derived = derive(seed, *purpose)
    assert 0 <= derived < 2**63
    torch.Generator().manual_seed(derived)


def test_a_seed_is_the_same_in_every_process() -> None:
    # From SHA-256 of "7/train/alice/3": a run must repeat on any machine and after any upgrade.
    assert derive(7, "train", "alice", 3) == 0x2736B484978C1855


def test_every_part_of_the_purpose_matters() -> None:
    seeds = {
        derive(7, "train", "alice", 3),
        derive(8, "train", "alice", 3),
        derive(7, "adapter", "alice", 3),
        derive(7, "train", "bob", 3),
        derive(7, "train", "alice", 4),
        derive(7, "train", "alice"),
    }
    assert len(seeds) == 6
