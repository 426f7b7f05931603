"""All benchmarks, one after the other; then plots, and every target beside what was measured.

python -m benchmarks [--flower PYTHON] [--out FOLDER]
"""

import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.measuring import TARGET_COLUMNS, Target, table
from benchmarks.plots import FOLDER, draw
from benchmarks.processes import parser_of

# In this order; scale last, as it needs most files and memory at a time.
ALL = ("bare", "transport", "aggregation", "step_time", "build", "rounds", "secure", "scale")


def main() -> None:
    """The command."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--flower", type=Path, help="an interpreter that has flwr, for its rounds beside ours"
    )
    parser.add_argument("--out", type=Path, default=FOLDER, help=f"[{FOLDER}]")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    missed = 0
    rows = []
    for name in ALL:
        begun = time.monotonic()
        print(f"\n## {name}\n", flush=True)
        file = options.out / f"{name}.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(file)]
        if name == "rounds" and options.flower:
            command += ["--flower", str(options.flower)]
        if subprocess.run(command).returncode:
            sys.exit(f"benchmarks.{name} failed")
        print(f"\n{name}: {time.monotonic() - begun:.0f} s", flush=True)
        for one in json.loads(file.read_text())["targets"]:
            one.pop("met")
            target = Target(**one)
            rows.append((name, *target.row()))
            missed += not target.met
    for file in draw(options.out, options.out):
        print(f"drawn: {file}")
    print("\n" + table(("benchmark", *TARGET_COLUMNS), rows))
    met = len(rows) - missed
    print(f"\n{met} of {len(rows)} targets are met; docs/performance.md says what limits the others")


if __name__ == "__main__":
    main()
