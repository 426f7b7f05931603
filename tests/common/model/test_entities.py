"""Entities are counted as seqeval counts them, and parts add up to the whole."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

from common.model.entities import EntityCounts, count_entities, entities_in, entities_of
from common.model.tasks import IGNORED

MARKS = [f"{mark}-{kind}" for mark in "BIES" for kind in ("PER", "LOC", "a-b")]
tag = st.sampled_from(["O", *MARKS, "B", "I", "IPER"])
sentences = st.lists(st.lists(st.tuples(tag, tag), max_size=9), min_size=1, max_size=6)


def counted(pairs: list[list[tuple[str, str]]]) -> EntityCounts:
    total = EntityCounts()
    for sentence in pairs:
        total += count_entities([actual for actual, _ in sentence], [told for _, told in sentence])
    return total


@given(st.lists(tag, max_size=12))
def test_the_entities_are_seqevals(tags: list[str]) -> None:
    with warnings.catch_warnings():
        # Of tags that are none, which are counted all the same.
        warnings.simplefilter("ignore")
        assert entities_in(tags) == set(get_entities(tags))


@given(sentences)
def test_the_scores_are_seqevals(pairs: list[list[tuple[str, str]]]) -> None:
    actual = [[a for a, _ in sentence] for sentence in pairs]
    told = [[t for _, t in sentence] for sentence in pairs]
    found = counted(pairs)
    with warnings.catch_warnings():
        # Of shares of nothing, which are 0; of tags that are none; of arrays without a type in numpy 2.
        warnings.simplefilter("ignore")
        if not found.types:
            assert (found.precision, found.recall, found.f1, found.macro_f1) == (0, 0, 0, 0)
            return
        assert found.precision == pytest.approx(precision_score(actual, told))
        assert found.recall == pytest.approx(recall_score(actual, told))
        assert found.f1 == pytest.approx(f1_score(actual, told))
        assert found.macro_f1 == pytest.approx(f1_score(actual, told, average="macro"))
        each = precision_recall_fscore_support(actual, told, average=None)
    assert [found.of(kind).f1 for kind in found.types] == pytest.approx(list(each[2]))
    assert [found.of(kind).actual[kind] for kind in found.types] == list(each[3])


@given(sentences, st.integers(0, 6))
def test_parts_add_up_to_the_whole(pairs: list[list[tuple[str, str]]], cut: int) -> None:
    assert counted(pairs[:cut]) + counted(pairs[cut:]) == counted(pairs)


def test_an_example_by_hand() -> None:
    actual = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O"]
    told = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "B-PER"]
    found = count_entities(actual, told)
    assert (dict(found.right), dict(found.foretold), dict(found.actual)) == (
        {"PER": 1},
        {"PER": 2, "LOC": 1},
        {"PER": 1, "LOC": 2},
    )
    assert (found.precision, found.recall, found.f1) == (1 / 3, 1 / 3, 1 / 3)
    assert found.macro_f1 == (2 / 3 + 0) / 2


def test_of_a_batch_only_tokens_that_begin_a_word_are_looked_at() -> None:
    names = ("O", "B-X", "I-X")
    wanted = torch.tensor([[IGNORED, 1, IGNORED, 2, IGNORED], [IGNORED, 0, 1, IGNORED, IGNORED]])
    best = torch.tensor([[2, 1, 0, 2, 1], [0, 0, 0, 2, 2]])
    logits = torch.nn.functional.one_hot(best, 3).float()
    found = entities_of(logits, wanted, names)
    assert (dict(found.right), dict(found.foretold), dict(found.actual)) == ({"X": 1}, {"X": 1}, {"X": 2})
