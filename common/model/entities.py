"""Entities in sequences of tags, counted as seqeval counts them: whole spans of a type, by IOB2 and its kin.

Source: seqeval 1.2.2 (`metrics.sequence_labeling`, the mode that is not strict), which follows CoNLL-2000's
conlleval. Counts are sums: those of parts, or of workers, add up to those of the whole.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.model.tasks import IGNORED

_OUTSIDE = "O"
# After the first of each pair an entity ends, or begins, at the second, even of the same type.
_ENDS = frozenset({"BB", "BS", "BO", "IB", "IS", "IO"})
_BEGINS = frozenset({"EE", "EI", "SE", "SI", "OE", "OI"})


@dataclass(frozen=True)
class EntityCounts:
    """By type of entity: how many there are, how many were foretold, and how many of these are right."""

    right: Mapping[str, int] = field(default_factory=dict)
    foretold: Mapping[str, int] = field(default_factory=dict)
    actual: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: "EntityCounts") -> "EntityCounts":
        return EntityCounts(
            _sum(self.right, other.right),
            _sum(self.foretold, other.foretold),
            _sum(self.actual, other.actual),
        )

    @property
    def types(self) -> tuple[str, ...]:
        """All types that are there or were foretold, by name."""
        return tuple(sorted(self.actual.keys() | self.foretold.keys()))

    def of(self, kind: str) -> "EntityCounts":
        """Those of one type."""
        return EntityCounts(*({kind: counts.get(kind, 0)} for counts in self._all()))

    @property
    def precision(self) -> float:
        """The right ones among those foretold, over all types (micro); 0 when there is none."""
        return _share(self.right, self.foretold)

    @property
    def recall(self) -> float:
        """The right ones among those that are there, over all types (micro); 0 when there is none."""
        return _share(self.right, self.actual)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, over all types (micro); 0 when both are."""
        both = sum(self.foretold.values()) + sum(self.actual.values())
        return 2 * sum(self.right.values()) / both if both else 0.0

    @property
    def macro_f1(self) -> float:
        """The mean of the types' F1."""
        types = self.types
        return sum(self.of(kind).f1 for kind in types) / len(types) if types else 0.0

    def _all(self) -> tuple[Mapping[str, int], ...]:
        return self.right, self.foretold, self.actual


def entities_in(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Type, first and last word of every entity.

    A tag is "O", or B-, I-, E- or S- and a type; what has no type is of type "_". An I- that nothing
    precedes begins an entity, as one of another type does.
    """
    found = set()
    begin, before, kind_before = 0, _OUTSIDE, ""
    for i, tag in enumerate([*tags, _OUTSIDE]):
        mark, kind = tag[:1], tag[1:].split("-", maxsplit=1)[-1] or "_"
        if _ended(before, mark, kind_before, kind):
            found.add((kind_before, begin, i - 1))
        if _begun(before, mark, kind_before, kind):
            begin = i
        before, kind_before = mark, kind
    return found


def _ended(before: str, mark: str, kind_before: str, kind: str) -> bool:
    changed = before not in (_OUTSIDE, ".") and kind_before != kind
    return before in ("E", "S") or before + mark in _ENDS or changed


def _begun(before: str, mark: str, kind_before: str, kind: str) -> bool:
    return (
        mark in ("B", "S")
        or before + mark in _BEGINS
        or (mark not in (_OUTSIDE, ".") and kind_before != kind)
    )


def count_entities(actual: Sequence[str], foretold: Sequence[str]) -> EntityCounts:
    """Of one sentence; right are those of the same type that begin and end where one does that is there."""
    there, told = entities_in(actual), entities_in(foretold)
    return EntityCounts(
        *(Counter(kind for kind, _, _ in entities) for entities in (there & told, told, there))
    )


def entities_of(logits: Tensor, labels: Tensor, names: Sequence[str]) -> EntityCounts:
    """Of a batch: logits [B, T, C], labels int64 [B, T], IGNORED where a token begins no word.

    `names` are the tags' in order of class index.
    """
    counts = EntityCounts()
    for best, wanted in zip(logits.argmax(-1), labels, strict=True):
        words = torch.nonzero(wanted != IGNORED)[:, 0]
        actual = [names[i] for i in wanted[words].tolist()]
        counts += count_entities(actual, [names[i] for i in best[words].tolist()])
    return counts


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))


def _share(part: Mapping[str, int], whole: Mapping[str, int]) -> float:
    total = sum(whole.values())
    return sum(part.values()) / total if total else 0.0
