"""`fedpft doctor`: what would keep this host from taking part in a run, and what to do about it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli import checks
from cli.checks import Finding
from common.address import Address
from common.data.examples import Columns
from common.errors import ConfigError
from common.observability.console import EXIT_USAGE, plain_errors
from common.runtime.home import known_home


def doctor(
    coordinator: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="For a worker's host: the address of the coordinator."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="For the coordinator's host: the run's configuration.")
    ] = None,
    tls: Annotated[
        Path | None, typer.Option(help="The worker's folder of tls.crt, tls.key and ca.crt.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="The worker's private data.")] = None,
    text_column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text of pairs.")] = None,
    image_column: Annotated[str, typer.Option(help="Column that holds the image.")] = "image",
    label_column: Annotated[str, typer.Option(help='Column that holds the label; "" for none.')] = "label",
    folder: Annotated[
        Path | None, typer.Option(help="The worker's folder for downloads. [default: ~/.cache/fedpft]")
    ] = None,
    device: Annotated[str, typer.Option(help="The worker's torch device.")] = "cpu",
) -> None:
    """Check versions, network, TLS, clock, disk, device and data of a worker's or the coordinator's host.

    Takes the options that the worker or the coordinator will be started with. Exits with 2 when something
    is to be done.
    """
    from rich.console import Console

    with plain_errors():
        if (coordinator is None) == (config is None):
            raise ConfigError(
                "say --coordinator HOST:PORT on a worker's host, --config run.toml on the owner's"
            )
        if config is not None:
            findings = _of_coordinator(config)
        else:
            columns = Columns(text_column, pair_column, label_column or None, image_column)
            address = Address.of_peer(str(coordinator))
            folder = folder or (known_home() or Path()) / ".cache" / "fedpft"
            findings = _of_worker(address, tls, data, columns, folder, device)
        console, wrong = Console(), 0
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]wrong[/]"
            console.print(f"{mark}  [bold]{finding.check}[/]  ", end="")
            console.print(finding.found, markup=False, highlight=False, soft_wrap=True)
            if not finding.ok:
                wrong += 1
                console.print(f"       to do: {finding.fix}", markup=False, highlight=False, soft_wrap=True)
        if wrong:
            raise typer.Exit(EXIT_USAGE)


def _of_worker(
    address: Address, tls: Path | None, data: Path | None, columns: Columns, folder: Path, device: str
) -> Iterator[Finding]:
    yield checks.versions()
    resolved = checks.name_resolution(address)
    yield resolved
    if resolved.ok:
        reached = checks.port(address)
        yield reached
        if reached.ok:
            yield checks.tls(address, tls)
    if tls is not None:
        yield checks.clock(address if resolved.ok else None, tls)
    yield checks.disk(folder)
    yield checks.device(device)
    if data is not None:
        yield _data("private data", data, columns)


def _of_coordinator(path: Path) -> Iterator[Finding]:
    from common.config.file import load_config

    config = load_config(path)
    yield checks.versions()
    for what, listen in (
        ("port", config.server.listen),
        ("metrics", config.server.metrics),
        ("health", config.server.health),
        ("page", config.server.page),
    ):
        if listen is not None:
            yield checks.listening(what, Address.parse(listen))
    if config.tls.certificate is not None:
        yield checks.clock(None, config.tls.certificate.parent)
    yield checks.disk(config.run.directory)
    yield checks.device(config.compute.device)
    model = Path(config.model.path)
    if model.is_dir() or model.is_absolute():
        there = (model / "config.json").exists()
        fix = "" if there else "set model.path to a folder in the layout of the hub"
        yield Finding("model", f"{model}{'' if there else ' holds no config.json'}", fix)
    if config.data.public is not None and config.data.public.path is not None:
        public = config.data.public
        columns = Columns(public.text_column, None, None, public.image_column)
        yield _data("public data", config.data.public.path, columns)
    if config.data.test is not None and config.data.test.path is not None:
        test = config.data.test
        columns = Columns(test.text_column, test.pair_column, test.label_column, test.image_column)
        yield _data("test data", config.data.test.path, columns)


def _data(what: str, path: Path, columns: Columns) -> Finding:
    from common.data.examples import read_examples

    fix = "correct the path or the columns' names, or mend the file"
    return checks.data(what, lambda: len(read_examples(path, columns)), fix)
