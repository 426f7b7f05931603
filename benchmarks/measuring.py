"""Figures that can be believed on a machine that others use, too: interleaved repeats, medians, intervals.

A figure alone says little here. Contestants run one after the other, again and again, in an order that
changes, so that the machine's noise hits all alike; what is told is the median of each, its spread, and
ratios of medians with a bootstrap interval.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.processes import parser_of

T = TypeVar("T")

_RESAMPLES = 2000
_PACKAGES = ("torch", "grpcio", "protobuf", "safetensors", "transformers")


def interleave(
    contestants: Mapping[str, Callable[[], T]], repeats: int, warmups: int = 1, seed: int = 0
) -> dict[str, list[T]]:
    """What each contestant returned in each repeat; what it returned while warming up is dropped.

    Every repeat calls all contestants once, in an order drawn anew.
    """
    draw, order = random.Random(seed), list(contestants)
    results: dict[str, list[T]] = {name: [] for name in contestants}
    for repeat in range(-warmups, repeats):
        draw.shuffle(order)
        for name in order:
            result = contestants[name]()
            if repeat >= 0:
                results[name].append(result)
    return results


def timed(work: Callable[[], object]) -> Callable[[], float]:
    """A contestant that returns the seconds that `work` took."""

    def run() -> float:
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun

    return run


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one figure: median and quartiles."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        low, _, high = (
            statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
        )
        return cls(statistics.median(values), low, high, len(values))

    def __str__(self) -> str:
        return f"{figure(self.median)} [{figure(self.low)}–{figure(self.high)}]"


@dataclass(frozen=True)
class Ratio:
    """Quotient of two medians with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, over: Sequence[float], under: Sequence[float], seed: int = 0) -> "Ratio":
        """median(over) / median(under); measurements of the same repeat, if as many, are drawn together."""
        draw, quotients = random.Random(seed), []
        for _ in range(_RESAMPLES):
            if len(over) == len(under):
                chosen = draw.choices(range(len(over)), k=len(over))
                sample = [over[i] for i in chosen], [under[i] for i in chosen]
            else:
                sample = draw.choices(over, k=len(over)), draw.choices(under, k=len(under))
            quotients.append(statistics.median(sample[0]) / statistics.median(sample[1]))
        quotients.sort()
        cut = int(0.025 * _RESAMPLES)
        value = statistics.median(over) / statistics.median(under)
        return cls(value, quotients[cut], quotients[-1 - cut])

    def __str__(self) -> str:
        return f"{figure(self.value)} [{figure(self.low)}–{figure(self.high)}]"


def figure(value: float) -> str:
    """Three digits that matter, without an exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.{max(0, 2 - _exponent(value))}f}"


def _exponent(value: float) -> int:
    return int(f"{value:.2e}".partition("e")[2])


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, aligned so that it can be read as it is."""
    lines = [list(columns), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    told = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    told.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(told)


@dataclass(frozen=True)
class Target:
    """What a figure should be, and whether it is."""

    what: str
    value: float
    limit: float
    at_least: bool

    @property
    def met(self) -> bool:
        """Whether the value lies on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def row(self) -> tuple[str, ...]:
        """For a table."""
        sign = "≥" if self.at_least else "≤"
        return self.what, figure(self.value), f"{sign} {figure(self.limit)}", "met" if self.met else "MISSED"


TARGET_COLUMNS = ("target", "measured", "limit", "")


def machine() -> dict[str, Any]:
    """What the figures were measured on; load is what others did as it was asked."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load": os.getloadavg(),
        "commit": _commit(),
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    """Of the code measured; with "+" when files have been changed since, None where there is no Git."""
    try:
        told = subprocess.run(
            ["git", "describe", "--always", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """A benchmark's parser: its figures go to a file, too."""
    parser = parser_of(description)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser


def report(path: Path | None, figures: Mapping[str, Any], targets: Sequence[Target] = ()) -> None:
    """Print the targets, and write everything to `path` as JSON, where one is given."""
    if targets:
        print("\n" + table(TARGET_COLUMNS, [target.row() for target in targets]))
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": machine(),
        "figures": figures,
        "targets": [asdict(target) | {"met": target.met} for target in targets],
    }
    path.write_text(json.dumps(content, indent=2, default=_plain) + "\n")


def _plain(value: object) -> Any:
    if isinstance(value, Spread | Ratio):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
