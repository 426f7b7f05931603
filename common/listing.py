"""For people: many names in one line, the first of them and how many more there are; lengths of time."""

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


def span(seconds: float) -> str:
    """A length of time for people, in its largest unit or two."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} days"
