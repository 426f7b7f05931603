"""The list of a server's runs for people, in the terminal."""

import time
from collections.abc import Sequence

from rich.console import Console, OverflowMethod
from rich.table import Table
from rich.text import Text

from common.hosted_runs import RunEntry, RunState
from common.listing import span

# Of runs that are over: so many reasons are shown.
_MOST_ENDED = 5
_STYLES = {RunState.RUNNING: "green", RunState.FAILED: "bold red", RunState.CANCELLED: "dim"}


def show(entries: Sequence[RunEntry], console: Console | None = None) -> None:
    """Print them, oldest first."""
    console = console or Console()
    if not entries:
        console.print("there are no runs; `fedpft submit run.toml` hands one in")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("run", "label", "state", "round", "workers", "score", "priority", "since", "left"):
        table.add_column(column, no_wrap=column in ("run", "state"))
    now = time.time()
    for e in entries:
        f = e.facts
        running = e.state is RunState.RUNNING
        table.add_row(
            e.run,
            e.label,
            Text(f"{e.state}, {f.phase}" if running and f.phase else e.state, _STYLES.get(e.state, "")),
            f"{f.round} of {f.rounds}" if f.rounds else "",
            str(f.workers) if running else "",
            f.score,
            str(e.priority) if e.priority else "",
            f"{span(now - (e.ended or e.began or e.submitted))} ago",
            span(f.seconds_left) if running and f.seconds_left else "",
        )
    console.print(table)
    told = [e for e in entries if e.reason]
    # Why runs failed that are long gone is for who asks.
    shown = [e for e in told if not e.state.over] + [e for e in told if e.state.over][-_MOST_ENDED:]
    overflow: OverflowMethod = "ellipsis" if console.is_terminal else "ignore"
    for e in shown:
        style = "bold red" if e.state is RunState.FAILED else "yellow"
        console.print(
            Text(f"{e.run}: {e.reason}", style), no_wrap=True, overflow=overflow, crop=console.is_terminal
        )
    if told:
        console.print(Text("the whole of it: fedpft runs --json", "dim"))
