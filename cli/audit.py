"""`fedpft audit`: what has left, for the owner of the model and for an owner of data."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.observability.console import EXIT_FAILED, plain_errors

_NAMES = {"fm": "tuned FM", "corrected": "corrected FM", "sub_fm": "sub-FM alone, as workers have it"}

if TYPE_CHECKING:
    from coordinator.owner.audit import OwnerAudit
    from worker.ledger import Charge
    from worker.sent_log import DataOwnerAudit


def audit(
    path: Annotated[Path, typer.Argument(help="A run's directory, or a worker's folder.")],
    model: Annotated[
        str | None, typer.Option(help="Where the foundation model is now. [default: where the run had it]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show what has left: of the foundation model, from a run; or from a worker.

    A run's directory is compared with its foundation model, on the owner's machine. Exit code 1: something
    that was cut got out. A worker's folder holds a log of every message that the worker has sent, and what
    its data have paid under differential privacy.
    """
    with plain_errors():
        from common.errors import StoreError

        console = Console()
        if (path / "run.sqlite").is_file():
            from coordinator.owner.audit import audit_run

            found = audit_run(path, model)
            if as_json:
                typer.echo(json.dumps(asdict(found) | {"leaks": found.leaks}, indent=2))
            else:
                show_run(found, console)
            if found.leaks:
                raise typer.Exit(EXIT_FAILED)
        elif (path / "sent.jsonl").is_file():
            from worker.ledger import audit_ledger
            from worker.sent_log import audit_worker

            sent, charges = audit_worker(path), audit_ledger(path)
            if as_json:
                told = asdict(sent) | {"privacy": [asdict(charge) for charge in charges]}
                typer.echo(json.dumps(told, indent=2))
            else:
                show_worker(sent, console)
                show_privacy(charges, console)
        else:
            raise StoreError(f"{path} is neither a run's directory (run.sqlite) nor a worker's (sent.jsonl)")


def show_run(found: "OwnerAudit", console: Console) -> None:
    """Print what a run has shown of its FM."""
    console.print(f"run {found.run_id}: what workers have, or may fetch, of the foundation model\n")
    table = _table("layer", "kind", "parameters", "as they are", "aligned", "withheld", "shown", left=2)
    for e in found.exposures:
        layer = "-" if e.layer is None else str(e.layer)
        figures = (f"{n:,}" for n in (e.parameters, e.as_is, e.aligned, e.withheld))
        table.add_row(layer, e.kind, *figures, _share(e.as_is + e.aligned, e.parameters))
    sums = [
        sum(getattr(e, part) for e in found.exposures)
        for part in ("parameters", "as_is", "aligned", "withheld")
    ]
    table.add_row("all", "", *(f"{n:,}" for n in sums), _share(sums[1] + sums[2], sums[0]), style="bold")
    console.print(table)
    console.print()
    files = _table("artifact", "kind", "bytes", "fetched", "compared", "found", left=2)
    for looked in found.looked:
        what = looked.problem or (f"{len(looked.findings)} cut vectors" if looked.findings else "nothing")
        style = "bold red" if looked.leaks else ""
        fetched = "yes" if looked.served else "no"
        a = looked.artifact
        files.add_row(a.sha256[:12], a.kind, f"{a.size:,}", fetched, looked.compared, what, style=style)
    console.print(files)
    console.print()
    for evaluation in found.evaluations:
        name = _NAMES[evaluation.model]
        numbers = math.isnan(evaluation.accuracy)
        score = evaluation.loss if numbers else evaluation.accuracy
        measure = "mean squared error" if numbers else "accuracy"
        console.print(f"after round {evaluation.round}, {measure} of the {name}: {score:.4f}")
    if found.criterion:
        console.print(found.criterion, soft_wrap=True)
    for looked in found.looked:
        for finding in looked.findings[:10]:
            console.print(
                f"LEAK {looked.artifact.sha256[:12]}, tensor {finding.tensor}, vector {finding.row}: "
                f"{finding.what} (cosine {finding.cosine:.4f})",
                style="bold red",
                soft_wrap=True,
            )
    if gone := sum(looked.compared == "deleted since" for looked in found.looked):
        console.print(
            f"{gone} served artifacts of earlier rounds are deleted and could not be compared; "
            "audit during the run to see each",
            style="yellow",
            soft_wrap=True,
        )
    verdict = "something that was cut got out" if found.leaks else "none was found in any artifact"
    console.print(
        f"searched for {found.withheld_vectors:,} weight vectors of cut neurons and layers: {verdict}",
        style="bold red" if found.leaks else "bold green",
        soft_wrap=True,
    )


def show_worker(sent: "DataOwnerAudit", console: Console) -> None:
    """Print what a worker has sent."""
    table = _table("call", "content", "messages", "bytes", left=2)
    for total in sent.totals:
        table.add_row(total.call, total.kind, f"{total.messages:,}", f"{total.bytes:,}")
    count = sum(total.messages for total in sent.totals)
    table.add_row("all", "", f"{count:,}", f"{sent.bytes:,}", style="bold")
    console.print(table)
    for number, digest in enumerate(sent.updates, 1):
        console.print(f"update {number}: SHA-256 {digest}", soft_wrap=True)
    if count:
        first, last = (datetime.fromtimestamp(t).isoformat(" ", "seconds") for t in (sent.first, sent.last))
        console.print(f"from {first} to {last}; the log is unbroken")
    if sent.earlier_messages:
        console.print(
            f"{sent.earlier_messages:,} messages of {sent.earlier_bytes:,} bytes in all were sent "
            "before that; the files that list them were deleted, as the oldest of many are",
            style="yellow",
            soft_wrap=True,
        )


def show_privacy(charges: "Sequence[Charge]", console: Console) -> None:
    """Print what a worker's data have paid under differential privacy: a line for each run."""
    if not charges:
        return
    last = {(charge.data, charge.run): charge for charge in charges}
    table = _table("data", "run", "trainings", "epsilon of the run", "in all runs", "delta", left=2)
    for (data, run), charge in last.items():
        count = sum((c.data, c.run) == (data, run) for c in charges)
        figures = f"{charge.epsilon_of_run:.2f}", f"{charge.epsilon:.2f}", f"{charge.delta:g}"
        table.add_row(data[:12], run, f"{count:,}", *figures)
    console.print("\ndifferential privacy, paid before each training; the ledger is unbroken")
    console.print(table)


def _table(*columns: str, left: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"
