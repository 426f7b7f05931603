"""`fedpft doctor`: what would keep this host from taking part in a run, and what to do about it."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import checks
from cli.checks import Finding
from common.address import Address
from common.errors import ConfigError
from common.observability.console import EXIT_USAGE, plain_errors
from common.runtime.home import known_home

if TYPE_CHECKING:
    from common.data.batches import Dataset
    from common.data.examples import Examples
    from worker.data import Source


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
    preset: Annotated[
        str | None, typer.Option(metavar="NAME[:SPLIT]", help="Instead of --data, a data set by name.")
    ] = None,
    validation: Annotated[
        Path | None, typer.Option(help="The file that the worker scores on and does not train on.")
    ] = None,
    validation_share: Annotated[
        float, typer.Option(metavar="SHARE", min=0, max=1, help="The share of the data that is kept aside.")
    ] = 0.0,
    data_root: Annotated[Path | None, typer.Option(help="Folder with local copies of presets.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The worker's name in the run. [default: the certificate's]")
    ] = None,
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

    from common.data.examples import Columns
    from worker.data import Source

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
            if validation is not None and validation_share:
                raise ConfigError("give one of --validation and --validation-share")
            source = Source(data, columns, preset, data_root, validation, validation_share)
            folder = folder or (known_home() or Path()) / ".cache" / "fedpft"
            findings = _of_worker(address, tls, name, source, folder, device)
        console, wrong = Console(), 0
        for finding in findings:
            mark = "[green]ok[/]  " if finding.ok else "[red]wrong[/]"
            console.print(f"{mark}  [bold]{finding.check}[/]  ", end="")
            console.print(finding.found, markup=False, highlight=False, soft_wrap=True)
            for note in finding.notes:
                console.print(f"       note: {note}", markup=False, highlight=False, soft_wrap=True)
            if not finding.ok:
                wrong += 1
                console.print(f"       to do: {finding.fix}", markup=False, highlight=False, soft_wrap=True)
        if wrong:
            raise typer.Exit(EXIT_USAGE)


def _of_worker(
    address: Address, tls: Path | None, name: str | None, source: "Source", folder: Path, device: str
) -> Iterator[Finding]:
    from cli import data_checks
    from common.data.examples import read_examples
    from worker.data import examples_of

    yield checks.versions()
    resolved = checks.name_resolution(address)
    yield resolved
    answers = False
    if resolved.ok:
        reached = checks.port(address)
        yield reached
        if reached.ok:
            secured = checks.tls(address, tls)
            yield secured
            answers = secured.ok
    if tls is not None:
        yield checks.clock(address if resolved.ok else None, tls)
    yield checks.disk(folder)
    yield checks.device(device)
    examples = run = None
    if source.path is not None or source.preset is not None:
        finding, examples = data_checks.data("private data", lambda: examples_of(source), _MEND)
        yield finding
    aside = None
    if source.validation is not None:
        lies = source.validation
        finding, aside = data_checks.data(
            "validation data", lambda: read_examples(lies, source.columns), _MEND
        )
        yield finding
    elif source.validation_share and examples is not None:
        yield data_checks.share(examples, source.validation_share)
    if answers:
        finding, run = data_checks.run_of(address, tls, name)
        yield finding
    if run is not None and examples is not None:
        yield from data_checks.fits(run, examples)
    if run is not None and aside is not None:
        yield from data_checks.fits(run, aside, "validation data for the run")


_MEND = "correct the path or the columns' names, or mend the file"


def _of_coordinator(path: Path) -> Iterator[Finding]:
    from cli import data_checks
    from common.config.file import load_config
    from coordinator.modelling.data import examples_of

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
    model, usable = Path(config.model.path), True
    if model.is_dir() or model.is_absolute():
        usable = (model / "config.json").exists()
        fix = "" if usable else "set model.path to a folder in the layout of the hub"
        yield Finding("model", f"{model}{'' if usable else ' holds no config.json'}", fix)
    found: dict[str, Examples] = {}
    datasets: list[Dataset] = []
    for what, source in (("public data", config.data.public), ("test data", config.data.test)):
        if source is not None:
            finding, examples = data_checks.data(what, partial(examples_of, source, config), _MEND)
            yield finding
            if examples is not None:
                found[what] = examples
    config = data_checks.with_some_labels(config, found.get("test data"))
    if usable and found:
        finding, datasets = data_checks.read_by_model(config, found)
        yield finding
        usable = finding.ok
    if usable:
        yield data_checks.weights_of(config, datasets)
