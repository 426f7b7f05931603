"""Figures with their standard errors: means over examples, ratios of sums, means over parts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Of which exp is still a number.
_LARGEST = 700.0


@dataclass(frozen=True)
class Figure:
    """A value with its standard error; NaN where there is none to tell, as of a single example."""

    value: float
    error: float = math.nan


@dataclass(frozen=True)
class Answered:
    """An answer that was generated."""

    place: str
    """Where its question stands."""
    wanted: str
    said: str


@dataclass(frozen=True)
class Scores:
    """What a model came to on one file or benchmark."""

    source: str
    form: str
    """What was scored: "multiple choice", "answers", "text", or the kind of task of a classifier."""
    examples: int
    figures: Mapping[str, Figure]
    notes: tuple[str, ...] = ()
    """What was cut or left out, a line each."""
    parts: Mapping[str, float] | None = None
    """Of a benchmark in parts: what each came to, by name."""
    answers: tuple[Answered, ...] = ()
    """What was generated."""


def mean(values: Sequence[float]) -> Figure:
    """The mean over examples, and the sample's standard deviation over the root of their number: what
    lm-evaluation-harness tells as the standard error."""
    count = len(values)
    middle = sum(values) / count
    if count == 1:
        return Figure(middle)
    spread = sum((value - middle) ** 2 for value in values) / (count - 1)
    return Figure(middle, math.sqrt(spread / count))


def ratio(sums: Sequence[float], weights: Sequence[float]) -> Figure:
    """All sums over all weights, such as right tokens over tokens. The error takes examples, not tokens, to
    be independent: the linearised one of a ratio of means."""
    count, whole = len(sums), sum(weights)
    value = sum(sums) / whole
    if count == 1:
        return Figure(value)
    squares = sum((each - value * weight) ** 2 for each, weight in zip(sums, weights, strict=True))
    return Figure(value, math.sqrt(squares * count / (count - 1)) / whole)


def exponential(figure: Figure) -> Figure:
    """exp of a mean loss, the perplexity; infinite beyond what a number holds."""
    value = math.exp(figure.value) if figure.value < _LARGEST else math.inf
    return Figure(value, value * figure.error)


def macro(figures: Sequence[Figure]) -> Figure:
    """The mean over parts, each counting the same, however large; their errors are independent."""
    count = len(figures)
    value = sum(figure.value for figure in figures) / count
    return Figure(value, math.sqrt(sum(figure.error**2 for figure in figures)) / count)
