"""Thousands of idle workers on one coordinator: memory, open files, how soon all have a task, heartbeats.

    python -m benchmarks.scale [--workers N ...] [--json FILE]

A real coordinator behind mutual TLS; the workers are real connections with their streams of tasks and
heartbeats, each on a TCP connection of its own, hundreds to a process. A task is pushed when the last
worker has joined that the round waits for.
"""

import json
import resource
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.measuring import Target, benchmark_parser, figure, report, table
from benchmarks.processes import Child
from benchmarks.running import (
    adapter_settings,
    ask_all,
    certificates,
    start_coordinator,
    start_fleets,
    wait_for_idle,
)

PER_PROCESS = 250
HEARTBEAT_SECONDS = 5.0
_WATCHED_SECONDS = 20.0
# Of certificates there are so many: the worker's name is in them, and issuing thousands takes minutes.
PLAIN_FROM = 2000


def idle(workers: int) -> dict[str, Any]:
    """So many workers come, wait, and get a task."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        names = [f"w{i:05}" for i in range(workers)]
        tls = None
        if workers < PLAIN_FROM:
            tls, names = certificates(folder / "tls", workers + 1)
        else:
            names.append("last")
        settings = {"rounds.workers": workers + 1, "rounds.minimum": 1} | adapter_settings(0)
        settings |= {"server.heartbeat_seconds": HEARTBEAT_SECONDS, "limits.workers": workers + 1}
        coordinator, address = start_coordinator(folder, tls, settings)
        stack.callback(coordinator.end)
        wait_for_idle(coordinator, folder)
        before = coordinator.memory, coordinator.files
        fleets: list[Child] = []
        processes = -(-workers // PER_PROCESS)
        for fleet in start_fleets(folder, address, names[:workers], tls, processes, "--unaudited"):
            stack.callback(fleet.end)
            fleets.append(fleet)
        ask_all(fleets, "here")
        begun = time.perf_counter()
        ask_all(fleets, "idle")
        joined = time.perf_counter() - begun
        time.sleep(2 * HEARTBEAT_SECONDS)
        after = coordinator.memory, coordinator.files
        busy = coordinator.cpu
        time.sleep(_WATCHED_SECONDS)
        beating = (coordinator.cpu - busy) / _WATCHED_SECONDS
        for fleet in fleets:
            fleet.tell("pushed")
        (last,) = start_fleets(folder, address, names[workers:], tls, 1, "--unaudited")
        stack.callback(last.end)
        last.tell("idle")
        times = [moment for fleet in fleets for moment in fleet.hear()]
        last.hear()
        opened = _opened(folder / "coordinator.log")
    return {
        "workers": workers,
        "security": "mTLS" if tls else "plain",
        "join_seconds": joined,
        "kilobytes_each": (after[0] - before[0]) / workers / 1e3,
        "files_each": (after[1] - before[1]) / workers,
        "heartbeat_cpu": beating,
        "heartbeat_microseconds": 1e6 * beating * HEARTBEAT_SECONDS / workers,
        "push_seconds": max(times) - opened,
    }


def _opened(log: Path) -> float:
    """When the first round was opened, in seconds of the system's clock."""
    events = (json.loads(line) for line in log.read_text().splitlines() if "round_opened" in line)
    return datetime.fromisoformat(next(events)["time"]).timestamp()


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1000, 5000], help="[1000 5000]")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = {}
    for workers in options.workers:
        figures[str(workers)] = idle(workers)
        print(f"{workers} workers: {figures[str(workers)]}", flush=True)
    columns = ("workers", "KB each", "open files each", "joined in s", "core for heartbeats", "push, s")
    rows = [
        (
            f"{n}, {f['security']}",
            figure(f["kilobytes_each"]),
            figure(f["files_each"]),
            figure(f["join_seconds"]),
            figure(f["heartbeat_cpu"]),
            figure(f["push_seconds"]),
        )
        for n, f in figures.items()
    ]
    print("\n" + table(columns, rows))
    targets = []
    if one := figures.get("1000"):
        targets = [
            Target("memory of an idle worker, KB, of 1,000", one["kilobytes_each"], 100, False),
            Target("a task to 1,000 workers, s", one["push_seconds"], 2, False),
        ]
    report(options.json, figures, targets)


if __name__ == "__main__":
    main()
