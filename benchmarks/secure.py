"""Rounds whose updates are summed masked, against rounds whose updates are seen.

    python -m benchmarks.secure [--repeats N] [--json FILE]

The rounds of `benchmarks.rounds`: a real coordinator and workers behind mutual TLS, as processes, without
training; the one run with privacy.secure, its keys signed, the other without. Keys and shares are agreed on
before a round's first upload, as they are while workers train. Both runs are measured by turns.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.measuring import Ratio, Spread, Target, benchmark_parser, figure, interleave, report, table
from benchmarks.rounds import MEMORY, Measured, measured
from benchmarks.running import Running, adapter_settings, running

# Workers, and megabytes of an update; 0: the head alone, 0.6 MB.
SHAPES = [(3, 0), (10, 0), (3, 25)]
# Of the same size as plain ones.
SECURE = {"privacy.secure": True, "privacy.weights": "equal"}
COLUMNS = ("workers × MB", "s", "× plain", "upload", "between", "cpu s", "workers' cpu s", "peak MB")


def compare(workers: int, megabytes: float, repeats: int) -> dict[str, Any]:
    """Both runs, interleaved."""
    with ExitStack() as stack:
        where = MEMORY if MEMORY.is_dir() else None

        def started(settings: dict[str, Any], secure: bool) -> Running:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))
            more = ("--secure",) if secure else ()
            return stack.enter_context(
                running(folder, workers, adapter_settings(megabytes) | settings, more=more)
            )

        contestants = {"plain": started({}, False), "secure": started(SECURE, True)}
        found = interleave({name: measured(one) for name, one in contestants.items()}, repeats)
    result: dict[str, Any] = {name: _spreads(rounds) for name, rounds in found.items()}
    times = {name: [one["round"] for one in rounds] for name, rounds in found.items()}
    result["secure"]["ratio_to_plain"] = Ratio.of(times["secure"], times["plain"])
    return result


def _spreads(rounds: list[Measured]) -> dict[str, Spread]:
    return {part: Spread.of([one[part] for one in rounds]) for part in rounds[0]}


def row(shape: str, one: dict[str, Any]) -> list[str]:
    """Of the table."""
    return [
        shape,
        str(one["round"]),
        str(one["ratio_to_plain"]) if "ratio_to_plain" in one else "1",
        figure(one["upload"].median),
        figure(one["wait"].median),
        figure(one["cpu"].median),
        figure(one["workers_cpu"].median),
        figure(one["peak"].median / 1e6),
    ]


def targets(found: dict[str, dict[str, Any]]) -> list[Target]:
    """Those of the shapes that were measured."""
    result = []
    if one := found.get("10 × 0"):
        more = one["secure"]["round"].median - one["plain"]["round"].median
        result.append(Target("secure round over plain, 10 × 0.6 MB, s", more, 0.25, False))
    if one := found.get("3 × 25"):
        ratio = one["secure"]["ratio_to_plain"].value
        result.append(Target("secure round against plain, 3 × 25 MB", ratio, 1.5, False))
    return result


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each [7]")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for workers, megabytes in SHAPES:
        shape = f"{workers} × {megabytes}"
        found[shape] = compare(workers, megabytes, options.repeats)
        for name, one in found[shape].items():
            rows.append(row(f"{shape}: {name}", one))
            print(" | ".join(rows[-1]), flush=True)
    print("\n" + table(COLUMNS, rows))
    report(options.json, {"rounds": found}, targets(found))


if __name__ == "__main__":
    main()
