"""Names of classes that people take for one: told, never mended."""

import unicodedata
from collections import defaultdict
from collections.abc import Sequence

from common.data.rows import cut
from common.listing import first_few

_NAMED = 4
# What is longer is a text, whose column was named by mistake.
_LONGEST = 200


def taken_for_one(labels: Sequence[str]) -> str:
    """Those among the labels that differ in what people do not see; empty when there are none."""
    groups = defaultdict(list)
    for label in sorted(label for label in set(labels) if len(label) <= _LONGEST):
        groups[_plain(label)].append(repr(cut(label)))
    return first_few([" and ".join(group[:_NAMED]) for group in groups.values() if len(group) > 1])


def likely(name: str, known: Sequence[str]) -> str:
    """What may be meant by a label that is not known, to stand behind an error; empty when nothing is."""
    plain, number = _plain(name), _number(name)
    for label in known:
        if _plain(label) == plain:
            return f"; it differs from {label!r} in blanks or case only"
    for label in known:
        # 1 becomes 1.0 where a table has to make room for missing values.
        if number is not None and _number(label) == number:
            return f"; it is {label!r} written in another way"
    return ""


def _plain(label: str) -> str:
    """As people read it, who see neither blanks nor marks without width nor, at times, case."""
    visible = "".join(c for c in unicodedata.normalize("NFKC", label) if unicodedata.category(c) != "Cf")
    return " ".join(visible.split()).casefold()


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None
