"""`fedpft demo`: a coordinator and three workers as real processes on this machine, on packaged data."""

import asyncio
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import typer
from rich.console import Console
from rich.table import Table

from common.console import plain_errors
from common.errors import RunFailed, StoreError

WORKERS = 3
# A process that was asked to end gets this long before it is killed.
_GRACE_SECONDS = 4.0
_START_SECONDS = 120.0


class Method(StrEnum):
    """fedpft: the method; fedpetuning: the whole FM at the workers; head-only: no adapter."""

    FEDPFT = "fedpft"
    FEDPETUNING = "fedpetuning"
    HEAD_ONLY = "head-only"


def demo(
    method: Annotated[
        Method,
        typer.Option(
            help="fedpft; or fedpetuning (workers get the whole model: the upper reference); "
            "or head-only (no adapter: the lower reference)."
        ),
    ] = Method.FEDPFT,
    directory: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; must not hold one. [default: runs/demo-METHOD]"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Federated rounds.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 7,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--resume", help="Go on with the run that the folder holds.")
    ] = False,
) -> None:
    """Run the whole method on this machine: MiniLM as the foundation model, BBC News as the data.

    Starts a coordinator and three workers as processes of their own, connected over gRPC on
    loopback. Takes three to four minutes on two cores.
    """
    with plain_errors():
        folder = directory or Path("runs") / f"demo-{method}"
        if (folder / "run.sqlite").exists() and not keep_going:
            if directory is not None:
                raise StoreError(f"{folder} holds a run already; --resume goes on with it")
            folder = _fresh(folder)
        code = asyncio.run(_demo(method, folder, rounds, seed, json_file))
    if code:
        raise typer.Exit(code)


def _fresh(folder: Path) -> Path:
    """The first of folder-2, folder-3, … that is not there."""
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate


async def _demo(method: Method, folder: Path, rounds: int, seed: int, json_file: Path | None) -> int:
    from cli.demo_data import packaged_model, write_bbc_news
    from common.config_file import template
    from common.files import write_atomically

    console = Console()
    model = packaged_model()
    console.print(f"[bold]FedPFT demo[/] ({method}): BBC News over {WORKERS} workers, in {folder}")
    data = write_bbc_news(folder / "data", WORKERS, concentration=1.0, seed=seed)
    settings = _settings(method, rounds, seed) | {
        "run.directory": str(folder.resolve()),
        "model.path": str(model),
        "task.labels": data.labels,
        "data.public.path": str(data.public.resolve()),
        "data.test.path": str(data.test.resolve()),
    }
    config = folder / "run.toml"
    write_atomically(config, template(settings).encode())
    begun = time.monotonic()
    async with Processes(folder / "logs") as processes:
        running = asyncio.create_task(_federation(processes, folder, config, data.workers, console))
        interrupted = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, interrupted.set)
        waiting = asyncio.create_task(interrupted.wait())
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if interrupted.is_set():
            running.cancel()
            console.print("stopping; the same command with --resume goes on")
            return 128 + signal.SIGINT
        await running
    result = _result(method, folder, model, time.monotonic() - begun)
    if json_file is not None:
        write_atomically(json_file.resolve(), json.dumps(result, indent=2).encode())
    _show(console, result)
    return 0


def _settings(method: Method, rounds: int, seed: int) -> dict[str, Any]:
    """What the demo sets besides paths, by dotted key of run.toml."""
    settings: dict[str, Any] = {
        "run.seed": seed,
        "task.max_length": 64,
        "alignment.steps": 200,
        "realignment.every": 2,
        "realignment.learning_rate": 3e-4,
        "rounds.count": rounds,
        "rounds.workers": WORKERS,
        "rounds.minimum": WORKERS,
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
        "server.heartbeat_seconds": 1.0,
        "compute.threads": 2,
    }
    if method is not Method.FEDPFT:
        settings["sub_fm.construction"] = "full"
    if method is Method.HEAD_ONLY:
        settings["adapter.targets"] = "none"
    return settings


async def _federation(
    processes: "Processes", folder: Path, config: Path, workers: Sequence[Path], console: Console
) -> None:
    """Start everything, show it, and see it through. Raises RunFailed."""
    from common.rpc import Address
    from coordinator.admin import Admin
    from coordinator.live import follow

    await processes.start("coordinator", "coordinator", "--config", str(config))
    endpoint = await processes.endpoint("coordinator", folder / "endpoint.json")
    address = str(endpoint["address"])
    console.print(f"coordinator on {address}, metrics on http://127.0.0.1:{endpoint['metrics_port']}/metrics")
    for i, data in enumerate(workers, start=1):
        options = {
            "--coordinator": address,
            "--data": str(data),
            "--name": f"worker-{i}",
            "--folder": str(folder / f"worker-{i}"),
            "--metrics": "127.0.0.1:0",
            "--threads": "1",
        }
        await processes.start(f"worker-{i}", "worker", *itertools.chain(*options.items()))
    async with Admin(Address.parse(address)) as admin:
        showing = asyncio.create_task(follow(admin, console))
        ending = asyncio.create_task(processes.all_ended())
        try:
            await asyncio.wait({showing, ending}, return_when=asyncio.FIRST_EXCEPTION)
            await ending
        finally:
            for task in (showing, ending):
                task.cancel()
            await asyncio.gather(showing, ending, return_exceptions=True)


class Processes:
    """Processes of the demo, each with a log file; an async context that leaves none behind."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, module: str, *arguments: str) -> None:
        """Start `python -m module` with the arguments."""
        self._logs.mkdir(parents=True, exist_ok=True)
        # The packaged model is local: nothing may ask a hub.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        with self._log(name).open("ab") as log:
            self._running[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C reaches this process alone, which then ends the others in order.
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    async def endpoint(self, name: str, path: Path) -> dict[str, Any]:
        """What the process wrote to `path` once it listened. Raises RunFailed when it ended before."""
        process = self._running[name]
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise self._failure(name, process.returncode)
            if path.exists():
                found: dict[str, Any] = json.loads(path.read_text())
                if found["pid"] == process.pid:
                    return found
            await asyncio.sleep(0.05)
        raise RunFailed(f"{name} did not start within {_START_SECONDS:.0f} s; see {self._log(name)}")

    async def all_ended(self) -> None:
        """Until every process has ended well. Raises RunFailed as soon as one ends badly."""

        async def one(name: str, process: asyncio.subprocess.Process) -> None:
            if code := await process.wait():
                raise self._failure(name, code)

        async with asyncio.TaskGroup() as group:
            for name, process in self._running.items():
                group.create_task(one(name, process))

    def _failure(self, name: str, code: int) -> RunFailed:
        lines = self._log(name).read_text(errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else "no output"
        return RunFailed(f"{name} ended with {code}: {last} (all of it in {self._log(name)})")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [p for p in self._running.values() if p.returncode is None]
        for process in running:
            process.terminate()
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            for process in running:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


def _result(method: Method, folder: Path, model: Path, seconds: float) -> dict[str, Any]:
    """The finished run's figures; also exports its model."""
    from coordinator.export import export
    from coordinator.status import open_run, stored_status

    out = folder / "export"
    export(folder, out, merge=method is Method.HEAD_ONLY)
    store, config = open_run(folder)
    status = stored_status(store, config)
    store.close()
    scores = {(e.round, e.model): e.accuracy for e in status.evaluations}
    models = status.models
    assert models is not None
    return {
        "method": str(method),
        "seed": config.run.seed,
        "rounds": status.round,
        "seconds": round(seconds, 1),
        "accuracy": {
            "fm_before": scores[0, "fm"],
            "sub_fm": scores[status.round, "sub_fm"],
            "fm_after": scores[status.round, "fm"],
        },
        "accuracy_by_round": {
            model: [scores[number, model] for number in range(status.round + 1)] for model in ("fm", "sub_fm")
        },
        "parameters": asdict(models),
        "bytes_by_worker": {
            w.worker: {
                "examples": w.examples,
                "received": sum(t.bytes_down for t in w.traffic),
                "sent": sum(t.bytes_up for t in w.traffic),
                "by_round": [asdict(t) for t in w.traffic],
            }
            for w in status.workers
        },
        "adapter_sha256": status.adapter_sha256,
        "foundation_model": model.parent.name,
        "run_directory": str(folder),
        "export": str(out),
    }


def _show(console: Console, result: dict[str, Any]) -> None:
    """The result for people."""
    from coordinator.live import megabytes

    accuracy, parameters = result["accuracy"], result["parameters"]
    table = Table(title="accuracy on 425 held-out documents", title_justify="left")
    for column in ("model", "parameters", "in its layers", "accuracy"):
        table.add_column(column, justify="left" if column == "model" else "right")
    fm = (f"{parameters['fm_parameters']:,}", f"{parameters['fm_layer_parameters']:,}")
    sub = (f"{parameters['sub_fm_parameters']:,}", f"{parameters['sub_fm_layer_parameters']:,}")
    table.add_row("FM before (untrained head)", *fm, f"{accuracy['fm_before']:.4f}")
    table.add_row("sub-FM with the adapter", *sub, f"{accuracy['sub_fm']:.4f}")
    table.add_row("FM after, adapter plugged in", *fm, f"{accuracy['fm_after']:.4f}", style="bold")
    console.print(table)
    table = Table(title="bytes on the wire", title_justify="left")
    for column in ("worker", "examples", "received", "sent", "sent after round 1, of the FM"):
        table.add_column(column, justify="left" if column == "worker" else "right")
    for name, traffic in result["bytes_by_worker"].items():
        later = [t for t in traffic["by_round"] if t["round"] > 1]
        rounds = max(1, result["rounds"] - 1)
        share = sum(t["bytes_up"] for t in later) / rounds / parameters["fm_bytes"]
        table.add_row(
            name,
            f"{traffic['examples']:,}",
            megabytes(traffic["received"]),
            megabytes(traffic["sent"]),
            f"{share:.2%} a round",
        )
    console.print(table)
    console.print(
        f"{result['rounds']} rounds in {result['seconds']:.0f} s; adapter {result['adapter_sha256']}"
    )
    console.print(f"the model is in [bold]{result['export']}[/], for transformers and peft")
