"""`fedpft coordinator` (also `fedpft-coordinator`), and the owner's init, build, status, stop and export."""

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.errors import StoreError
from common.observability.console import plain_errors, run_async
from common.observability.logs import LogFormat

if TYPE_CHECKING:
    from common.address import Address
    from common.trust.tls import Tls

app = typer.Typer(add_completion=False)


@app.command()
def coordinator(
    config: Annotated[Path, typer.Option(help="The run's configuration, such as run.toml.")],
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text to and from other machines.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log", help="How lines look. [default: human on a terminal, else JSON]"),
    ] = None,
) -> None:
    """Run the coordinator: build the sub-FM, serve workers, end with a tuned foundation model.

    Started again with the same configuration, it goes on where the run was.
    """
    from common.observability.logs import set_up_logging

    set_up_logging("coordinator", verbose=verbose, form=log_format)
    with plain_errors(logged=True):
        from common.config.file import load_config

        loaded = load_config(config)
        if insecure:
            server = loaded.server.model_copy(update={"insecure": True})
            loaded = loaded.model_copy(update={"server": server})
        # torch takes seconds to import; --help and a mistake in the file should not.
        from coordinator.process import serve

    async def main() -> signal.Signals | None:
        return (await serve(loaded)).by

    run_async(main())


def init(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("run.toml"),
    model: Annotated[str | None, typer.Option(help="Foundation model: a directory or a hub id.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Class names, separated by commas, in order of class index.")
    ] = None,
    task: Annotated[
        str, typer.Option(help="text-classification, image-classification or causal-lm.")
    ] = "text-classification",
    preset: Annotated[
        str | None,
        typer.Option(help="Take task, classes and test data from one of the data sets of `fedpft datasets`."),
    ] = None,
    public: Annotated[Path | None, typer.Option(help="Public, unlabelled data for the alignment.")] = None,
    test: Annotated[Path | None, typer.Option(help="The owner's labelled test data.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a run.toml with every key, its default and what it does."""
    with plain_errors():
        from common.config.file import template
        from common.errors import ConfigError
        from common.records import TaskKind
        from common.storage.files import write_atomically

        if out.exists() and not force:
            raise ConfigError(f"{out} is there already; --force overwrites it")
        if task not in list(TaskKind):
            raise ConfigError(f"--task must be one of {', '.join(TaskKind)}, got {task!r}")
        values: dict[str, object] = {
            "model.path": model or "path/to/model",
            "data.public.path": str(public or "public.jsonl"),
        }
        if preset is not None:
            from common.data.presets import find_preset

            known, split = find_preset(preset, test=True)
            values |= {"task.kind": str(known.kind), "task.labels": known.labels}
            values["task.pairs"] = known.columns.pair is not None
            values["data.test.preset"] = f"{known.name}:{split}"
        else:
            classes = tuple(labels.split(",")) if labels else ("negative", "positive")
            values |= {"task.kind": task, "task.labels": () if task == TaskKind.CAUSAL_LM else classes}
            values["data.test.path"] = str(test or "test.csv")
        write_atomically(out, template(values).encode())
        typer.echo(f"wrote {out}; edit it, then: fedpft coordinator --config {out}")


def build(
    model: Annotated[str, typer.Option(help="Foundation model: a directory or a hub id.")],
    corpus: Annotated[
        str,
        typer.Option(
            help="Public, unlabelled data: CSV, TSV, JSONL, Parquet, a folder of images, or a preset."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; a run takes it as sub_fm.path.")],
    drop_ratio: Annotated[float, typer.Option(help="Share of FFN neurons cut.")] = 0.75,
    steps: Annotated[int, typer.Option(help="Optimiser steps of the alignment.")] = 200,
    max_length: Annotated[int, typer.Option(help="Longer texts are cut to this many tokens.")] = 128,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    image_column: Annotated[str, typer.Option(help="Column that holds the image.")] = "image",
    seed: Annotated[
        int, typer.Option(min=0, help="Fixes every random choice; the run's gives the run's bits.")
    ] = 7,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Any key of run.toml, such as sub_fm.saliency=activation."
        ),
    ] = None,
) -> None:
    """Cut and align a sub-FM ahead of a run, on one CPU or many GPUs.

    On several: accelerate launch $(which fedpft) build … Broken off, the same command goes on.
    """
    with plain_errors():
        from common.config.file import parse_config, parse_settings
        from common.data.presets import is_preset
        from common.errors import ConfigError

        given = {
            "model.path": model,
            "task.max_length": max_length,
            "data.public.preset" if is_preset(corpus) else "data.public.path": corpus,
            "data.public.text_column": text_column,
            "data.public.image_column": image_column,
            "sub_fm.drop_ratio": drop_ratio,
            "alignment.steps": steps,
            "run.seed": seed,
        } | parse_settings(settings or [])
        if given.get("task.kind") != "causal-lm":
            # The head is the run's matter; a build holds layers only.
            given.setdefault("task.labels", ("0", "1"))
        loaded = parse_config(given, "fedpft build")
        if not loaded.aligns_layers:
            raise ConfigError("--steps must be >= 1 unless alignment.method says otherwise")
        from coordinator.modelling.prebuild import build_ahead

        build_ahead(loaded, out)


CoordinatorAddress = Annotated[
    str, typer.Option("--coordinator", metavar="HOST:PORT", help="Address of a running coordinator.")
]
AdminTls = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        envvar="FEDPFT_TLS",
        help="Folder with tls.crt, tls.key and ca.crt, as `fedpft certs issue --role admin` writes it. "
        "[default: plain text]",
    ),
]
AllowPlainText = Annotated[bool, typer.Option("--insecure", help="Allow plain text to another machine.")]


def _reached(coordinator: str, tls: Path | None, insecure: bool) -> "tuple[Address, Tls | None]":
    """Where the coordinator is, and what to show it. Raises AddressError, CertificateError."""
    from common.address import Address, require_loopback
    from common.trust.identity import Role
    from common.trust.tls import open_tls

    address = Address.of_peer(coordinator)
    if tls is None:
        require_loopback(address, insecure)
    return address, open_tls(tls, Role.ADMIN)


def status(
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    run: Annotated[
        Path | None, typer.Option(help="Read a run's directory instead; works after its end.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and follow the run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """Show where a run stands and what it waits for."""
    import asyncio

    with plain_errors():
        if run is None:
            reached = _reached(coordinator, tls, insecure)
        else:
            _require_run(run)

    # It brings torch, which takes seconds.
    from common.records import RunStatus
    from coordinator.owner.admin_client import Admin
    from coordinator.owner.status_view import follow, show

    async def main() -> RunStatus:
        async with Admin(*reached) as admin:
            if watch and not as_json:
                return await follow(admin)
            return await admin.status()

    with plain_errors():
        if run is not None:
            from coordinator.campaign.liveness import resting_status
            from coordinator.campaign.status import open_run

            current = resting_status(*open_run(run))
        else:
            current = asyncio.run(main())
        if as_json:
            typer.echo(json.dumps(asdict(current), indent=2))
        else:
            show(current)


def _require_run(directory: Path) -> None:
    """Before what takes seconds to import. Raises StoreError."""
    if not (directory / "run.sqlite").is_file():
        raise StoreError(f"{directory} holds no run: there is no run.sqlite in it")


def stop(
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """End a running coordinator in order; started again, it goes on from the last committed step."""
    import asyncio

    async def main() -> None:
        async with Admin(*reached) as admin:
            await admin.stop()

    with plain_errors():
        from coordinator.owner.admin_client import Admin

        reached = _reached(coordinator, tls, insecure)
        asyncio.run(main())
        typer.echo("the coordinator stops; the same command starts it again")


def rewind(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    number: Annotated[int, typer.Option("--round", min=0, help="The round to go back to; 0 is the start.")],
) -> None:
    """Forget all rounds after one, after a bad one; started again, the coordinator goes on from there."""
    with plain_errors():
        from common.storage.files import locked
        from coordinator.storage.event_log import EventLog
        from coordinator.storage.rewinding import rewind as rewind_to
        from coordinator.storage.store import Store

        store = Store.existing(run)
        try:
            with locked(run, "fedpft rewind"):
                rewind_to(store, number)
                EventLog(store).record("run_rewound", f"the owner went back to round {number}", number)
        finally:
            store.close()
        typer.echo(f"{run} is after round {number} again; start the coordinator to go on")


def export(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write a plain transformers model instead of a PEFT adapter."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the foundation model is now. [default: where the run had it]")
    ] = None,
) -> None:
    """Export a run's result as a standard PEFT adapter, or merged into the foundation model."""
    with plain_errors():
        _require_run(run)
        from coordinator.owner.export import export as write

        for path in write(run, out, merge, model):
            typer.echo(str(path))


def main() -> None:
    """Entry point of `fedpft-coordinator`."""
    app()
