"""`fedpft demo`: a coordinator and workers as real processes on this machine, on packaged data."""

import asyncio
import itertools
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cli.processes import Processes
from common.console import plain_errors
from common.errors import StoreError

if TYPE_CHECKING:
    from experiments.packaged import DemoData

WORKERS = 3
VIT_FOLDER = Path("runs") / "vit-fashion-mnist"


class Method(StrEnum):
    """fedpft: the method; fedpetuning: the whole FM at the workers; fedot: fewer whole layers;
    head-only: no adapter."""

    FEDPFT = "fedpft"
    FEDPETUNING = "fedpetuning"
    FEDOT = "fedot"
    HEAD_ONLY = "head-only"


class Data(StrEnum):
    """Which packaged data set: BBC News (5 classes), tweets (2), Fashion-MNIST (images, 5)."""

    BBC_NEWS = "bbc-news"
    TWEETS = "tweets"
    FASHION_MNIST = "fashion-mnist"


def demo(
    method: Annotated[
        Method,
        typer.Option(
            help="fedpft; or fedpetuning (workers get the whole model: the upper reference); "
            "or fedot (fewer whole layers); or head-only (no adapter: the lower reference)."
        ),
    ] = Method.FEDPFT,
    compare: Annotated[
        bool, typer.Option("--compare", help="Run all methods, one after the other, on the same data.")
    ] = False,
    data: Annotated[
        Data, typer.Option(help="Data set; fashion-mnist pre-trains a small vision transformer first.")
    ] = Data.BBC_NEWS,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = WORKERS,
    dirichlet: Annotated[
        float, typer.Option(min=0, help="How evenly classes are spread over workers; 0: equally.")
    ] = 1.0,
    directory: Annotated[
        Path | None,
        typer.Option(help="Folder for the run; must not hold one. [default: runs/demo-METHOD]"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Federated rounds. [default: the data's]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes every random choice.")] = 7,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of run.toml, such as alignment.steps=600."),
    ] = None,
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
        from common.config_file import parse_settings
        from common.files import write_atomically

        extra = parse_settings(settings or [])
        suffix = "" if data is Data.BBC_NEWS else f"-{data}"
        results = []
        for each in Method if compare else [method]:
            default = Path("runs") / f"demo-{each}{suffix}"
            folder = directory / each if compare and directory else directory or default
            if (folder / "run.sqlite").exists() and not keep_going:
                if directory is not None:
                    raise StoreError(f"{folder} holds a run already; --resume goes on with it")
                folder = _fresh(folder)
            wanted = _Wanted(each, data, workers, dirichlet or None, folder, rounds, seed, extra)
            result = asyncio.run(_run(wanted))
            if isinstance(result, int):
                raise typer.Exit(result)
            results.append(result)
        if compare:
            _compare(Console(), results)
        if json_file is not None:
            content = results if compare else results[0]
            write_atomically(json_file.resolve(), json.dumps(content, indent=2).encode())


@dataclass(frozen=True)
class _Wanted:
    """What the command was asked for."""

    method: Method
    data: Data
    workers: int
    dirichlet: float | None
    folder: Path
    rounds: int | None
    seed: int
    extra: dict[str, Any]


def _fresh(folder: Path) -> Path:
    """The first of folder-2, folder-3, … that is not there."""
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate


async def _run(wanted: _Wanted) -> dict[str, Any] | int:
    """The result, or an exit code when interrupted. Raises RunFailed."""
    from common.config_file import parse_config, template
    from common.files import write_atomically

    console, folder = Console(), wanted.folder
    console.print(
        f"[bold]FedPFT demo[/] ({wanted.method}): {wanted.data} over {wanted.workers} workers, in {folder}"
    )
    model, data = _prepare(wanted, console)
    settings = _settings(wanted) | {
        "run.directory": str(folder.resolve()),
        "model.path": str(model.resolve()),
        "task.labels": data.labels,
        "data.public.path": str(data.public.resolve()),
        "data.test.path": str(data.test.resolve()),
    }
    settings |= wanted.extra
    parse_config(settings, "fedpft demo")
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
    result = _result(wanted, model, time.monotonic() - begun)
    _show(console, result)
    return result


def _prepare(wanted: _Wanted, console: Console) -> "tuple[Path, DemoData]":
    """The foundation model's directory, and the data split into files."""
    from experiments.packaged import packaged_model, write_bbc_news, write_fashion_mnist, write_tweets

    folder, split = wanted.folder / "data", (wanted.workers, wanted.dirichlet, wanted.seed)
    match wanted.data:
        case Data.BBC_NEWS:
            return packaged_model(), write_bbc_news(folder, *split)
        case Data.TWEETS:
            return packaged_model(), write_tweets(folder, *split)
        case Data.FASHION_MNIST:
            data = write_fashion_mnist(folder, *split)
            from experiments.pretraining import pretrain_vit

            if not (VIT_FOLDER / "config.json").exists():
                pretrain_vit(VIT_FOLDER, seed=0, console=console)
            return VIT_FOLDER, data


# What the demo sets besides paths, by dotted key of run.toml.
_BY_DATA: dict[Data, dict[str, Any]] = {
    Data.BBC_NEWS: {
        "rounds.count": 4,
        "task.max_length": 64,
        "realignment.every": 2,
        "realignment.learning_rate": 3e-4,
    },
    Data.TWEETS: {"rounds.count": 5, "task.max_length": 64},
    Data.FASHION_MNIST: {"rounds.count": 5, "task.kind": "image-classification"},
}
_BY_METHOD: dict[Method, dict[str, Any]] = {
    Method.FEDPFT: {},
    Method.FEDPETUNING: {"sub_fm.construction": "full"},
    Method.FEDOT: {"sub_fm.construction": "layer-drop"},
    Method.HEAD_ONLY: {"sub_fm.construction": "full", "adapter.targets": "none"},
}


def _settings(wanted: _Wanted) -> dict[str, Any]:
    settings = {
        "run.seed": wanted.seed,
        "alignment.steps": 200,
        "rounds.workers": wanted.workers,
        "rounds.minimum": wanted.workers,
        "server.listen": "127.0.0.1:0",
        "server.metrics": "127.0.0.1:0",
        "server.heartbeat_seconds": 1.0,
        "compute.threads": 2,
    }
    settings |= _BY_DATA[wanted.data] | _BY_METHOD[wanted.method]
    return settings | ({"rounds.count": wanted.rounds} if wanted.rounds else {})


async def _federation(
    processes: Processes, folder: Path, config: Path, workers: Sequence[Path], console: Console
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


def _result(wanted: _Wanted, model: Path, seconds: float) -> dict[str, Any]:
    """The finished run's figures; also exports its model."""
    from coordinator.export import export
    from coordinator.status import open_run, stored_status

    folder = wanted.folder
    out = folder / "export"
    export(folder, out, merge=wanted.method is Method.HEAD_ONLY)
    store, config = open_run(folder)
    status = stored_status(store, config)
    store.close()
    scores = {(e.round, e.model): e.accuracy for e in status.evaluations}
    models = status.models
    assert models is not None
    return {
        "method": str(wanted.method),
        "data": str(wanted.data),
        "test_examples": _rows(folder / "data" / "test.parquet"),
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
        "foundation_model": (model if model.name != "model" else model.parent).name,
        "run_directory": str(folder),
        "export": str(out),
    }


def _rows(path: Path) -> int:
    from pyarrow import parquet

    return int(parquet.read_metadata(path).num_rows)


def _show(console: Console, result: dict[str, Any]) -> None:
    """The result for people."""
    from coordinator.live import megabytes

    accuracy, parameters = result["accuracy"], result["parameters"]
    table = Table(title=f"accuracy on {result['test_examples']:,} held-out examples", title_justify="left")
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


def _compare(console: Console, results: Sequence[dict[str, Any]]) -> None:
    """All methods side by side."""
    from coordinator.live import megabytes

    best = next(r for r in results if r["method"] == Method.FEDPETUNING)["accuracy"]["fm_after"]
    title = f"methods on {results[0]['data']}, {results[0]['test_examples']:,} held-out examples"
    table = Table(title=title, title_justify="left")
    for column in ("method", "FM after", "to fedpetuning", "sent to the workers", "received", "seconds"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for result in results:
        accuracy, traffic = result["accuracy"]["fm_after"], result["bytes_by_worker"].values()
        table.add_row(
            result["method"],
            f"{accuracy:.4f}",
            f"{accuracy - best:+.4f}",
            megabytes(sum(t["received"] for t in traffic)),
            megabytes(sum(t["sent"] for t in traffic)),
            f"{result['seconds']:.0f}",
        )
    console.print(table)
