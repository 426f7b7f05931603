"""Many names in one line: the first of them, and how many more there are."""

from collections.abc import Iterable

# Of rows, files or names alike, so many show what is meant.
_NAMED = 3


def first_few(names: Iterable[object], most: int = _NAMED) -> str:
    """The first names of many in their order, with commas, and the number of the others."""
    every = [str(name) for name in names]
    told = ", ".join(every[:most])
    return f"{told} and {len(every) - most:,} more" if len(every) > most else told


def first_workers(names: Iterable[object]) -> str:
    """The same of workers: there can be thousands, and each may be the one that is looked for."""
    return first_few(names, 10)
