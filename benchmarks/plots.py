"""The figures that people would rather look at, as SVG: rounds beside the floor and Flower.

    python -m benchmarks.plots [--figures build/benchmarks] [--out build/benchmarks]

Draws what the benchmark of rounds has written.
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.processes import parser_of
from experiments.report.document import Plot, PlotKind, Series
from experiments.report.plots import to_svg

FOLDER = Path("build/benchmarks")
_LABELS = {"coordinator": "FedPFT, mTLS", "floor": "bare gRPC, mTLS", "flower": "Flower, plain text"}


def rounds(figures: dict[str, Any]) -> list[Plot]:
    """Seconds of a round and the most memory of the server, of the shapes that all have measured."""
    ours, flower = figures["rounds"], figures["flower"]
    shapes = [shape for shape in ours if shape in flower] if flower else list(ours)
    found = {name: [ours[shape][name] for shape in shapes] for name in ("coordinator", "floor")}
    seconds = {name: [one["round"]["median"] for one in each] for name, each in found.items()}
    peaks = {name: [one["peak"]["median"] / 1e9 for one in each] for name, each in found.items()}
    if flower:
        seconds["flower"] = [flower[shape]["round"]["median"] for shape in shapes]
        peaks["flower"] = [flower[shape]["peak"] / 1e9 for shape in shapes]

    def plot(name: str, title: str, y_title: str, values: dict[str, list[float]], log_y: bool) -> Plot:
        series = tuple(Series(_LABELS[key], tuple(shapes), tuple(y)) for key, y in values.items())
        return Plot(name, title, PlotKind.BARS, "workers × MB of adapter", y_title, series, log_y)

    return [
        plot("round-seconds", "A round", "seconds of a round", seconds, log_y=True),
        plot("round-memory", "The server's memory", "server's peak memory, GB", peaks, log_y=False),
    ]


def draw(figures: Path, out: Path) -> list[Path]:
    """Write every plot; returns the files."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for plot in rounds(json.loads((figures / "rounds.json").read_text())["figures"]):
        files.append(out / f"{plot.name}.svg")
        files[-1].write_text(to_svg(plot))
    return files


def main() -> None:
    """The command."""
    parser = parser_of(__doc__)
    parser.add_argument("--figures", type=Path, default=FOLDER, help=f"[{FOLDER}]")
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"[{FOLDER}]")
    options = parser.parse_args()
    if not (options.figures / "rounds.json").is_file():
        parser.error(f"{options.figures} holds no rounds.json; python -m benchmarks.rounds --json writes it")
    for file in draw(options.figures, options.out):
        print(file)


if __name__ == "__main__":
    main()
