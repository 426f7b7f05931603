"""A round with workers that do not train, against the least that a round can be, and against Flower.

    python -m benchmarks.rounds [--full] [--flower PYTHON] [--json FILE]

A real coordinator and workers behind mutual TLS, as processes, on the packaged model with an adapter of so
many megabytes; seconds from the first upload to the last download, the coordinator's processor time and
the most memory that it held. Beside it the floor: bytes there and back by gRPC, with the same TLS and
hash. Run directories are on a file system in memory; for one size also on the disk, once without waiting
for its syncs and once with: the difference is the disk's own time. With --full for all sizes and numbers of
workers that fit into memory, otherwise for those that the targets name. Flower needs an interpreter that has
it: see benchmarks/peers/flower.
"""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import Ratio, Spread, Target, benchmark_parser, figure, interleave, report, table
from benchmarks.peers.flower.driver import flower_rounds
from benchmarks.processes import Child, weighing
from benchmarks.running import Running, adapter_settings, ask_all, certificates, running

SHAPES = [(2, 0), (8, 0), (32, 0), (2, 25), (2, 100), (4, 100), (8, 100), (2, 400)]
FULL = [(workers, megabytes) for megabytes in (0, 25, 100, 400) for workers in (2, 4, 8, 32)]
ON_DISK = (2, 100)
MEMORY = Path("/dev/shm")


class Place(StrEnum):
    """Where run directories and workers' folders are; as it follows a shape's name."""

    MEMORY = ""
    """A file system in memory."""
    UNSYNCED = ", not synced"
    """The disk's file system, but nobody waits for the disk."""
    DISK = ", synced"
    """The disk."""


# Of every worker, at most at a time: the update here and at the coordinator, the adapter, what is under way,
# and the floor's content, with the next in pieces and whole.
_COPIES = 7
_SPARE_BYTES = 3_000_000_000

Measured = dict[str, float]
COLUMNS = ("workers × MB", "s", "× floor", "upload", "between", "download", "cpu s", "peak MB", "over idle")


def fits(workers: int, megabytes: float) -> bool:
    """Whether such rounds, the floor's beside them, leave memory to spare."""
    needed = _COPIES * workers * megabytes * 1e6 + _SPARE_BYTES
    return needed <= psutil.virtual_memory().available


def measured(running: Running) -> Callable[[], Measured]:
    """A contestant: a round's seconds and their parts, processor seconds and peak bytes."""

    def run() -> Measured:
        ask_all(running.fleets, "renew")
        workers = sum(fleet.cpu for fleet in running.fleets)
        with weighing(running.coordinator) as weight:
            seconds = running.round()
        return seconds | weight | {"workers_cpu": sum(fleet.cpu for fleet in running.fleets) - workers}

    return run


def start_floor(stack: ExitStack, folder: Path, workers: int, content: int) -> Running:
    """The floor's server and workers, with mutual TLS."""
    tls, names = certificates(folder / "tls", 1)
    sizes = ["--bytes", str(content), "--workers", str(workers)]
    log = folder / "floor.log"
    server = Child("benchmarks.floor", "serve", *sizes, "--tls", str(tls / "hub"), log=log)
    stack.callback(server.end)
    address = f"127.0.0.1:{server.hear()}"
    fleets = []
    for share in (workers - workers // 2, workers // 2):
        options = ["--coordinator", address, "--workers", str(share), "--tls", str(tls / names[0])]
        fleets.append(Child("benchmarks.floor", "work", *options, log=log))
        stack.callback(fleets[-1].end)
    ask_all(fleets, "join")
    return Running(server, fleets, 0)


def compare(workers: int, megabytes: float, repeats: int, place: Place) -> dict[str, Any]:
    """The coordinator and the floor, interleaved. One place at a time: a disk that writes disturbs all."""
    with ExitStack() as stack:
        where = MEMORY if place is Place.MEMORY and MEMORY.is_dir() else None

        def folder() -> Path:
            return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=where)))

        synced = place is not Place.UNSYNCED
        ours = stack.enter_context(running(folder(), workers, adapter_settings(megabytes), synced))
        content = int(1e6 * megabytes) or 600_000
        contestants = {"coordinator": ours, "floor": start_floor(stack, folder(), workers, content)}
        found = interleave({name: measured(one) for name, one in contestants.items()}, repeats)
    parts = {
        name: {part: [one[part] for one in rounds] for part in rounds[0]} for name, rounds in found.items()
    }
    result: dict[str, Any] = {
        name: {part: Spread.of(values) for part, values in measurements.items()}
        for name, measurements in parts.items()
    }
    ratio = Ratio.of(parts["coordinator"]["round"], parts["floor"]["round"])
    result["coordinator"] |= {"idle": ours.idle_memory, "ratio_to_floor": ratio}
    return result


def row(shape: str, one: dict[str, Any]) -> list[str]:
    """Of the table."""
    over = (one["peak"].median - one["idle"]) / 1e6 if "idle" in one else None
    between = figure(one["wait"].median) if "wait" in one else ""
    return [
        shape,
        str(one["round"]),
        str(one["ratio_to_floor"]) if "ratio_to_floor" in one else "1",
        figure(one["upload"].median),
        between,
        figure(one["download"].median),
        figure(one["cpu"].median),
        figure(one["peak"].median / 1e6),
        "" if over is None else figure(over),
    ]


def targets(found: dict[str, dict[str, Any]], flower: dict[str, Any]) -> list[Target]:
    """Those of the rounds that were measured."""
    result = []

    def of(shape: str) -> Any:
        return found.get(shape, {}).get("coordinator")

    unsynced = of(f"2 × 100{Place.UNSYNCED}")
    if unsynced:
        what = "round 2 × 100 MB, but for the disk's own time, against the floor"
        result.append(Target(what, unsynced["ratio_to_floor"].value, 1.5, False))
    if one := of("2 × 100"):
        over = one["peak"].median - one["idle"]
        what = "peak memory over idle, 2 × 100 MB, in adapters"
        result.append(Target(what, over / 100e6, 2.0, False))
    if one := of("8 × 0"):
        result.append(Target("empty round, 8 workers, ms", 1000 * one["round"].median, 100, False))
    if (two := of("2 × 100")) and (eight := of("8 × 100")):
        ratio = eight["peak"].median / two["peak"].median
        result.append(Target("peak memory, 8 against 2 workers at 100 MB", ratio, 1.10, False))
    if unsynced and (peer := flower.get("2 × 100")):
        times = peer["round"].median / unsynced["round"].median
        result.append(Target("Flower's round over ours, 2 × 100 MB", times, 10, True))
    return result


def main() -> None:
    """The command."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--full", action="store_true", help="all sizes and numbers that fit into memory")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of up to 100 MB in all [9]")
    parser.add_argument("--flower", type=Path, help="an interpreter that has flwr")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    rows = []
    for workers, megabytes in FULL if options.full else SHAPES:
        if not fits(workers, megabytes):
            print(f"{workers} × {megabytes} MB: left out, it needs more memory than is free", flush=True)
            continue
        repeats = options.repeats if workers * megabytes <= 200 else max(3, options.repeats // 3)
        for place in Place if (workers, megabytes) == ON_DISK else [Place.MEMORY]:
            shape = f"{workers} × {megabytes}{place}"
            found[shape] = compare(workers, megabytes, repeats, place)
            for name, one in found[shape].items():
                rows.append(row(f"{shape}: {name}", one))
                print(" | ".join(rows[-1]), flush=True)
    print("\n" + table(COLUMNS, rows))
    flower: dict[str, Any] = {}
    if options.flower:
        for workers, megabytes in ((2, 0), (2, 100), (8, 100)):
            flower[f"{workers} × {megabytes}"] = flower_rounds(options.flower, workers, megabytes)
        columns = ("workers × MB", "Flower, s", "peak MB, all its server's processes")
        print(
            "\n" + table(columns, ([k, str(v["round"]), figure(v["peak"] / 1e6)] for k, v in flower.items()))
        )
    figures: dict[str, Any] = {"rounds": found, "flower": flower}
    if f"2 × 100{Place.DISK}" in found:
        synced, unsynced = (found[f"2 × 100{place}"]["coordinator"] for place in (Place.DISK, Place.UNSYNCED))
        figures["sync_seconds"] = synced["round"].median - unsynced["round"].median
        print(f"\nthe disk's own time in a round of 2 × 100 MB: {figure(figures['sync_seconds'])} s")
    report(options.json, figures, targets(found, flower))


if __name__ == "__main__":
    main()
