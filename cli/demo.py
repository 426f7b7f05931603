"""`fedpft demo`: a coordinator and workers as real processes on this machine, on packaged data."""

import asyncio
import contextlib
import itertools
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cli.demo_result import compare as compare_results
from cli.demo_result import figures, show
from cli.demo_settings import Data, Method, settings_of
from cli.processes import Processes
from common.errors import ConfigError, StoreError
from common.observability.console import plain_errors
from common.runtime.signals import exit_code, taken

if TYPE_CHECKING:
    from experiments.splitting import SplitData

WORKERS = 3


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
        Data,
        typer.Option(
            help="Data set. fashion-mnist pre-trains a small vision transformer first; bbc-smollm2 "
            "tunes SmolLM2-135M-Instruct, a language model."
        ),
    ] = Data.BBC_NEWS,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = WORKERS,
    dirichlet: Annotated[
        float, typer.Option(min=0, help="How evenly classes are spread over workers; 0: equally.")
    ] = 1.0,
    validation_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="Workers score on this share of their data.")
    ] = 0.0,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure", help="The coordinator gets sums of masked updates alone; with certificates for all."
        ),
    ] = False,
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
    loopback. Takes three to four minutes on two cores; with --compare four times as long.
    """
    with plain_errors():
        from common.config.file import parse_settings
        from common.storage.files import write_atomically

        extra = parse_settings(settings or [])
        suffix = "" if data is Data.BBC_NEWS else f"-{data}"
        results = []
        methods = [m for m in Method if not (data.is_language and m is Method.HEAD_ONLY)]
        if method not in methods:
            raise ConfigError(f"--method {method} tunes no head of a language model; choose another")
        for each in methods if compare else [method]:
            default = Path("runs") / f"demo-{each}{suffix}"
            folder = directory / each if compare and directory else directory or default
            if (folder / "run.sqlite").exists() and not keep_going:
                if directory is not None:
                    raise StoreError(f"{folder} holds a run already; --resume goes on with it")
                folder = _fresh(folder)
            wanted = _Wanted(each, data, workers, dirichlet or None, folder, rounds, seed, extra)
            wanted = replace(wanted, validation_share=validation_share, secure=secure)
            result = asyncio.run(_run(wanted))
            if isinstance(result, int):
                raise typer.Exit(result)
            results.append(result)
        if compare:
            compare_results(Console(), results, Method.FEDPETUNING)
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
    validation_share: float = 0.0
    secure: bool = False

    @property
    def certificates(self) -> Path:
        """Where those of a secure run are."""
        return self.folder / "certificates"


def _fresh(folder: Path) -> Path:
    """The first of folder-2, folder-3, … that is not there."""
    number = 2
    while (candidate := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return candidate


async def _run(wanted: _Wanted) -> dict[str, Any] | int:
    """The result, or an exit code when interrupted. Raises RunFailed."""
    from common.config.file import parse_config, template
    from common.storage.files import write_atomically

    console, folder = Console(), wanted.folder
    console.print(
        f"[bold]FedPFT demo[/] ({wanted.method}): {wanted.data} over {wanted.workers} workers, in {folder}"
    )
    model, data = _prepare(wanted, console)
    settings = settings_of(wanted.method, wanted.data, wanted.workers, wanted.seed, wanted.rounds) | {
        "run.directory": str(folder.resolve()),
        "model.path": str(model.resolve()),
        "task.labels": data.labels,
        "data.public.path": str(data.public.resolve()),
        "data.test.path": str(data.test.resolve()),
    }
    if wanted.validation_share:
        settings |= {"validation.every": 1, "validation.minimum": min(2, wanted.workers)}
    if wanted.secure:
        from cli.demo_certificates import certificates

        settings |= {"privacy.secure": True} | certificates(wanted.certificates, wanted.workers)
    settings |= wanted.extra
    parse_config(settings, "fedpft demo")
    config = folder / "run.toml"
    write_atomically(config, template(settings).encode())
    begun = time.monotonic()
    if not _is_finished(folder):
        code = await _supervised(wanted, config, data.workers, console)
        if code:
            return code
    result = figures(wanted.method, wanted.data, folder, model, time.monotonic() - begun)
    show(console, result)
    return result


def _is_finished(folder: Path) -> bool:
    """Whether the folder holds a run that has nothing left to do."""
    from coordinator.storage.store import Store

    if not (folder / "run.sqlite").exists():
        return False
    store = Store(folder)
    try:
        return store.outcome() == "finished"
    finally:
        store.close()


async def _supervised(wanted: _Wanted, config: Path, workers: Sequence[Path], console: Console) -> int:
    """Run the services to the end; an exit code when interrupted, else 0."""
    folder = wanted.folder
    async with Processes(folder / "logs") as processes:
        extra = {"--label-column": ""} if wanted.data.is_language else {}
        extra |= {"--validation-share": str(wanted.validation_share)} if wanted.validation_share else {}
        running = asyncio.create_task(_federation(processes, wanted, config, workers, extra, console))
        interrupted = asyncio.Event()
        loop, ended = asyncio.get_running_loop(), list[signal.Signals]()

        def stop(number: signal.Signals) -> None:
            ended.append(number)
            loop.call_soon_threadsafe(interrupted.set)

        with taken(stop):
            waiting = asyncio.create_task(interrupted.wait())
            await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if interrupted.is_set():
                running.cancel()
                with contextlib.suppress(OSError):
                    # Its terminal may be gone.
                    console.print("stopping; the same command with --resume goes on")
                return exit_code(ended[0], service=False)
            await running
    return 0


def _prepare(wanted: _Wanted, console: Console) -> "tuple[Path, SplitData]":
    """The foundation model's directory, and the data split into files."""
    from experiments.packaged import (
        packaged_model,
        write_bbc_news,
        write_bbc_texts,
        write_fashion_mnist,
        write_tweets,
    )

    folder, split = wanted.folder / "data", (wanted.workers, wanted.dirichlet, wanted.seed)
    match wanted.data:
        case Data.BBC_NEWS:
            return packaged_model(), write_bbc_news(folder, *split)
        case Data.TWEETS:
            return packaged_model(), write_tweets(folder, *split)
        case Data.FASHION_MNIST:
            data = write_fashion_mnist(folder, *split)
            from experiments.pretraining import packaged_vit

            return packaged_vit(console), data
        case Data.BBC_SMOLLM2:
            from experiments.smollm2 import packaged_smollm2

            return packaged_smollm2(console), write_bbc_texts(folder, *split, train=48, test=10)


async def _federation(
    processes: Processes,
    wanted: _Wanted,
    config: Path,
    workers: Sequence[Path],
    extra: dict[str, str],
    console: Console,
) -> None:
    """Start everything, show it, and see it through. Raises RunFailed."""
    from common.address import Address
    from coordinator.owner.admin_client import Admin
    from coordinator.owner.status_view import follow

    folder, admin_tls = wanted.folder, None
    if wanted.secure:
        from cli.demo_certificates import owner

        admin_tls = owner(wanted.certificates)
    await processes.start("coordinator", "coordinator", "--config", str(config), "--log", "human")
    endpoint = await processes.endpoint("coordinator", folder / "endpoint.json")
    # Where it listens may be every address of this host.
    address = str(Address.parse(endpoint["address"]).from_here)
    console.print(f"coordinator on {address}, metrics on http://127.0.0.1:{endpoint['metrics_port']}/metrics")
    console.print(f"status page: http://127.0.0.1:{endpoint['page_port']}/")
    for i, data in enumerate(workers, start=1):
        options = {
            "--coordinator": address,
            "--data": str(data),
            "--name": f"worker-{i}",
            "--folder": str(folder / f"worker-{i}"),
            "--metrics": "127.0.0.1:0",
            "--threads": "1",
            "--log": "human",
            **extra,
        }
        flags = ["--require-secure"] if wanted.secure else []
        if wanted.secure:
            options["--tls"] = str(wanted.certificates / f"worker-{i}")
        await processes.start(f"worker-{i}", "worker", *itertools.chain(*options.items()), *flags)
    async with Admin(Address.parse(address), admin_tls) as admin:
        showing = asyncio.create_task(follow(admin, console))
        ending = asyncio.create_task(processes.all_ended())
        try:
            await asyncio.wait({showing, ending}, return_when=asyncio.FIRST_EXCEPTION)
            await ending
        finally:
            for task in (showing, ending):
                task.cancel()
            await asyncio.gather(showing, ending, return_exceptions=True)
