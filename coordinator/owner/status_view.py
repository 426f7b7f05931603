"""A run's status for people: once, or live."""

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from common.errors import Unreachable
from common.listing import span
from common.records import Activity, Phase
from common.run_status import AT_WORKERS, RunStatus, WorkerStatus, told_metrics
from coordinator.campaign.status import reading
from coordinator.storage.event_levels import level_of

if TYPE_CHECKING:
    # It brings gRPC, without which a run's directory can be read.
    from coordinator.owner.admin_client import Admin

_REFRESH_SECONDS = 0.5

_STYLES = {
    Activity.TRAINING: "green",
    Activity.DOWNLOADING: "cyan",
    Activity.UPLOADING: "cyan",
    Activity.SCORING: "green",
    Activity.LOST: "bold red",
    Activity.LEFT: "dim",
}


def show(status: RunStatus, console: Console | None = None) -> None:
    """Print the status once."""
    (console or Console()).print(render(status))


async def follow(admin: "Admin", console: Console | None = None) -> RunStatus:
    """Show the run live, events above and the status below, until it is over; returns its last status.

    Where the output is no terminal, events are printed as lines. Raises Unreachable when the
    coordinator does not answer at first.
    """
    console = console or Console()
    status = await admin.status()
    live = Live(render(status), console=console, auto_refresh=False, transient=True)
    with live if console.is_terminal else contextlib.nullcontext():
        printing = asyncio.create_task(_print_events(admin, console))
        try:
            while not status.phase.over:
                await asyncio.sleep(_REFRESH_SECONDS)
                status = await admin.status()
                if console.is_terminal:
                    live.update(render(status), refresh=True)
        except Unreachable:
            # The coordinator ended between two looks; the store has the rest.
            return status
        finally:
            printing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Unreachable):
                await printing
    return status


async def _print_events(admin: "Admin", console: Console) -> None:
    async for event in admin.events():
        if event.kind != "phase_entered":
            console.print(f"  {event.text}", style=_style(event.kind), highlight=False)


def _style(kind: str) -> str:
    level = level_of(kind)
    return "bold red" if level >= logging.ERROR else "yellow" if level >= logging.WARNING else "dim"


def render(status: RunStatus) -> RenderableType:
    """Phase, round, what is waited for, workers with progress and bytes, accuracy by round."""
    head = Text.assemble(
        ("run ", "dim"),
        (status.run_id, "bold"),
        ("   round ", "dim"),
        (f"{status.round} of {status.rounds}", "bold"),
        ("   phase ", "dim"),
        (status.phase, "bold red" if status.phase is Phase.FAILED else "bold green"),
    )
    if status.steps:
        head.append(f"   {status.step}/{status.steps}", "bold")
        if status.phase_seconds_left:
            head.append(f", about {span(status.phase_seconds_left)} left", "dim")
    parts: list[RenderableType] = [head]
    if status.run_seconds_left and not status.phase.over:
        parts.append(Text(f"rounds to come: about {span(status.run_seconds_left)}", "dim"))
    if status.waiting_for:
        parts.append(Text(f"waiting for {status.waiting_for}", "yellow"))
    if status.workers:
        parts.append(_workers(status.workers))
    if status.evaluations or status.at_workers:
        parts.append(_accuracies(status))
    if any(v.worker for v in status.validations):
        parts.append(_each_worker(status))
    parts += [Text(f"worker {d.worker} declined: {d.reason}", "yellow") for d in status.declined]
    parts += [Text(f"privacy: {line}", "dim") for line in status.privacy]
    if status.best:
        parts.append(Text(_best(status), "dim"))
    return Group(*parts)


def _workers(workers: tuple[WorkerStatus, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("worker", "examples", "does", "progress", "loss", "received", "sent"):
        table.add_column(column, justify="left" if column in ("worker", "does") else "right")
    for w in workers:
        p = w.progress
        bar: RenderableType = ""
        if p.activity in (Activity.TRAINING, Activity.SCORING) and p.steps:
            bar = ProgressBar(total=p.steps, completed=p.step, width=24)
        table.add_row(
            w.worker,
            f"{w.examples:,}" if w.examples else "–",
            Text(p.activity, _STYLES.get(p.activity, "")),
            Text(p.trouble, "yellow") if p.trouble else bar,
            f"{p.loss:.3f}" if p.loss else "",
            megabytes(sum(t.bytes_down for t in w.traffic)),
            megabytes(sum(t.bytes_up for t in w.traffic)),
        )
    return table


def _accuracies(status: RunStatus) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    evaluations = (*status.evaluations, *(v.as_evaluation for v in status.at_workers))
    rounds = sorted({e.round for e in evaluations})
    by_round = {n: reading([e for e in evaluations if e.round == n], status.task) for n in rounds}
    table.add_column(by_round[rounds[0]][0], no_wrap=True)
    for number in rounds:
        table.add_column("start" if number == 0 else f"round {number}", justify="right")
    titles = {"fm": "FM, adapter plugged in", "sub_fm": "sub-FM", "corrected": "FM, corrected"}
    titles |= {AT_WORKERS: "sub-FM, at the workers"}
    scored = {e.model for e in evaluations}
    for model, title in ((each, title) for each, title in titles.items() if each in scored):
        table.add_row(title, *(by_round[n][1].get(model, "") for n in rounds))
    for name, title in told_metrics(status.evaluations).items():
        values = {e.round: e.metrics.get(name) for e in status.evaluations if e.model == "fm"}
        shown = {n: "–" if v is None or math.isnan(v) else f"{v:.4f}" for n, v in values.items()}
        table.add_row(f"FM, {title}", *(shown.get(n, "") for n in rounds), style="dim")
    if status.at_workers:
        counts = {v.round: str(v.workers) for v in status.at_workers}
        table.add_row("how many workers", *(counts.get(n, "") for n in rounds), style="dim")
        losses = {v.round: f"{v.loss:.4f}" for v in status.at_workers}
        table.add_row("loss at the workers", *(losses.get(n, "") for n in rounds), style="dim")
    if status.gaps:
        drifts = {gap.round: f"{gap.drift:.3f}" for gap in status.gaps}
        table.add_row("drift of the gradients", *(drifts.get(n, "") for n in rounds), style="dim")
    return table


def _each_worker(status: RunStatus) -> Table:
    """Each worker's own score, where the run keeps these."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    own = [v for v in status.validations if v.worker]
    rounds = sorted({v.round for v in own})
    table.add_column("at the worker")
    for number in rounds:
        table.add_column("start" if number == 0 else f"round {number}", justify="right")
    for worker in sorted({v.worker for v in own}):
        scores = {v.round: v.as_evaluation for v in own if v.worker == worker}
        shown = {n: reading([score], status.task)[1][AT_WORKERS] for n, score in scores.items()}
        table.add_row(worker, *(shown.get(n, "") for n in rounds))
    return table


def _best(status: RunStatus) -> str:
    whose = "at the workers" if status.at_workers else "on the test data"
    told = f"best {whose}: round {status.best}"
    if status.result == status.round:
        return told
    return f"{told}; its adapter is the run's result"


def megabytes(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e6:.2f} MB"
