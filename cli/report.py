"""`fedpft report`: a run or an experiment as a page."""

from pathlib import Path
from typing import Annotated

import typer

from common.observability.console import plain_errors


def report(
    folder: Annotated[Path, typer.Argument(help="A run's directory, or an experiment's folder.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to. [default: report in the folder]")
    ] = None,
) -> None:
    """Write a report of a run or an experiment: a page with plots (report.html), and its tables as CSV.

    Also while it is going on: the report then is of what is done.
    """
    with plain_errors():
        from rich.console import Console

        from common.errors import DataError
        from experiments.report.files import require_packages, write_document

        require_packages()
        from experiments.report import of_experiment, of_run
        from experiments.report.terminal import show

        if (folder / "run.sqlite").is_file():
            document = of_run.document(folder)
        elif (folder / "experiment.json").is_file():
            document = of_experiment.document(folder)
        else:
            raise DataError(f"{folder} holds neither a run (run.sqlite) nor an experiment (experiment.json)")
        page = write_document(out or folder / "report", document)
        console = Console()
        show(document, console)
        console.print(f"report: {page}")
