"""A real coordinator and fleets of workers: processes, mutual TLS, a run on the packaged model."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import Child
from common.trust.authority import Authority
from common.trust.identity import Identity, Role
from coordinator.campaign.liveness import ENDPOINT_FILE
from experiments.packaged import packaged_model

# Of MiniLM's sub-FM, a quarter of whose FFN neurons are left: what a unit of LoRA's rank on attention and
# FFN takes, float32; and the head, which is trained in full.
_RANK_BYTES = 6 * 6 * (384 + 384) * 4
_HEAD_BYTES = 4 * (384 * 384 + 384 + 2 * 384 + 2)
_START_SECONDS = 120.0


def adapter_settings(megabytes: float) -> dict[str, Any]:
    """Configuration of an adapter of that size; 0 for the smallest there is, the head alone of 0.6 MB."""
    rank = round((1e6 * megabytes - _HEAD_BYTES) / _RANK_BYTES)
    if rank < 1:
        return {"adapter.targets": "none"}
    return {"adapter.targets": "attention+ffn", "adapter.rank": rank}


def certificates(folder: Path, workers: int) -> tuple[Path, list[str]]:
    """Folders of certificates for a coordinator and workers in `folder`, and the workers' names."""
    authority = Authority.create(folder / "authority", "benchmark")
    authority.issue(Identity(Role.COORDINATOR, "hub"), folder / "hub", ["127.0.0.1"])
    names = [f"w{i:04}" for i in range(workers)]
    for name in names:
        authority.issue(Identity(Role.WORKER, name), folder / name)
    return folder, names


@dataclass
class Running:
    """A coordinator that listens, and the fleets that talk to it."""

    coordinator: Child
    fleets: list[Child]
    idle_memory: int
    """The coordinator's, in bytes, when it waits for its first worker."""

    def round(self) -> dict[str, float]:
        """Seconds from the first upload to the last download, "round", and of its parts by themselves."""
        begun = time.perf_counter()
        found = ask_all(self.fleets, "round")
        parts = {part: statistics.fmean(phases[part] for phases in found) for part in found[0]}
        return {"round": time.perf_counter() - begun} | parts


def ask_all(fleets: Sequence[Child], command: str) -> list[Any]:
    """What every process answers; they work at the same time."""
    for fleet in fleets:
        fleet.tell(command)
    return [fleet.hear() for fleet in fleets]


def start_coordinator(
    folder: Path, tls: Path | None, settings: Mapping[str, Any], synced: bool = True
) -> tuple[Child, str]:
    """A coordinator of a run that goes on for ever, in `folder`; and where it listens."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "run.directory": str(folder / "run"),
        "model.path": str(packaged_model()),
        "task.labels": ("no", "yes"),
        "alignment.steps": 0,
        "gradient_gap.batches": 0,
        "rounds.count": 1_000_000,
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
    }
    if tls is not None:
        files = {"certificate": "tls.crt", "key": "tls.key", "ca": "ca.crt"}
        values |= {f"tls.{key}": str(tls / "hub" / name) for key, name in files.items()}
    config = folder / "run.toml"
    # Numbers, texts and lists look the same in TOML as in JSON.
    lines = (f"{key} = {json.dumps(value)}\n" for key, value in (values | dict(settings)).items())
    config.write_text("".join(lines))
    log = folder / "coordinator.log"
    coordinator = Child("coordinator", "--config", str(config), log=log, synced=synced)
    endpoint = folder / "run" / ENDPOINT_FILE
    ends = time.monotonic() + _START_SECONDS
    while not endpoint.exists():
        if coordinator.process.poll() is not None or time.monotonic() > ends:
            coordinator.end()
            raise RuntimeError(f"the coordinator does not listen; {log} says why")
        time.sleep(0.05)
    return coordinator, str(json.loads(endpoint.read_text())["address"])


def start_fleets(
    folder: Path,
    address: str,
    names: list[str],
    tls: Path | None,
    processes: int,
    *more: str,
    synced: bool = True,
) -> list[Child]:
    """Workers of those names, spread over so many processes."""
    options = ["--coordinator", address, "--folder", str(folder), *more]
    if tls is not None:
        options += ["--tls", str(tls)]
    return [
        Child(
            "benchmarks.fleet",
            *options,
            "--names",
            *names[i::processes],
            log=folder / f"fleet-{i}.log",
            synced=synced,
        )
        for i in range(processes)
    ]


def wait_for_idle(coordinator: Child, directory: Path) -> None:
    """Until the coordinator waits for workers and its memory has settled."""
    log = directory / "coordinator.log"
    ends = time.monotonic() + _START_SECONDS
    while "waiting" not in log.read_text():
        if coordinator.process.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"the coordinator does not come to its first round; {log} says why")
        time.sleep(0.1)


@contextmanager
def running(
    folder: Path,
    workers: int,
    settings: Mapping[str, Any],
    synced: bool = True,
    more: Sequence[str] = (),
) -> Iterator[Running]:
    """A coordinator and workers behind mutual TLS in `folder`, the first adapter fetched by all.

    The workers are in two processes; `synced` is whether anybody waits for the disk; `more` is said to them.
    """
    tls, names = certificates(folder / "tls", workers)
    rounds = {"rounds.workers": workers, "rounds.minimum": workers}
    with ExitStack() as stack:
        coordinator, address = start_coordinator(folder, tls, rounds | dict(settings), synced)
        stack.callback(coordinator.end)
        wait_for_idle(coordinator, folder)
        idle = coordinator.memory
        fleets = start_fleets(folder, address, names, tls, min(2, workers), *more, synced=synced)
        for fleet in fleets:
            stack.callback(fleet.end)
        ask_all(fleets, "join")
        yield Running(coordinator, fleets, idle)
