"""Everything under one name: `fedpft COMMAND`."""

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from cli.audit import audit
from cli.certs import certs
from cli.datasets import datasets, split
from cli.demo import demo
from cli.demo_files import demo_files
from cli.doctor import doctor
from cli.experiment import experiment
from cli.literal_help import LiteralGroup
from cli.report import report
from cli.score import score
from cli.track import track
from coordinator.cli import build, coordinator, init
from coordinator.owner.commands import export, rewind, status, stop
from coordinator.owner.runs_commands import cancel, logs, resume, runs, submit
from coordinator.serve_cli import serve
from worker.cli import app as worker

# What `fedpft --help` and docs/commands.md group the commands by; in each group, the most used first,
# and last what has commands of its own: so the help shows them.
GROUPS: Mapping[str, tuple[Callable[..., None] | typer.Typer, ...]] = {
    "Try it": (demo, demo_files),
    "Run it": (coordinator, stop, rewind, export, score, worker),
    "Run many": (serve, submit, runs, logs, cancel, resume),
    "Watch it": (status, report, track, audit),
    "Set it up": (init, doctor, build, certs),
    "Experiment": (experiment, datasets, split),
}

app = typer.Typer(
    no_args_is_help=True,
    cls=LiteralGroup,
    help="Federated Proxy Fine-Tuning: tune a foundation model on data that its owner never sees, "
    "by people who never see the model.",
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as version_of

        typer.echo(f"fedpft {version_of('fedpft')}")
        raise typer.Exit


@app.callback()
def fedpft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Have options of its own."""


for group, commands in GROUPS.items():
    for command in commands:
        if isinstance(command, typer.Typer):
            app.add_typer(command, rich_help_panel=group)
        else:
            app.command(rich_help_panel=group)(command)


def main() -> None:
    """Entry point of `fedpft`."""
    app()
