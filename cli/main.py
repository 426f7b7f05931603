"""Everything under one name: `fedpft COMMAND`."""

import typer

from cli.audit import audit
from cli.certs import certs
from cli.datasets import datasets, split
from cli.demo import demo
from cli.demo_files import demo_files
from cli.doctor import doctor
from cli.experiment import experiment
from cli.report import report
from coordinator.cli import build, coordinator, export, init, rewind, status, stop
from worker.cli import worker

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Federated Proxy Fine-Tuning: tune a foundation model on data that its owner never sees, "
    "by people who never see the model.",
)
app.command()(demo)
app.command()(demo_files)
app.command()(init)
app.command()(experiment)
app.command()(report)
app.command()(datasets)
app.command()(split)
app.command()(build)
app.add_typer(certs, name="certs")
app.command()(coordinator)
app.command()(worker)
app.command()(doctor)
app.command()(status)
app.command()(stop)
app.command()(rewind)
app.command()(export)
app.command()(audit)


def main() -> None:
    """Entry point of `fedpft`."""
    app()
