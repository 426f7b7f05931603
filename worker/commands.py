"""What stands beside working: what this worker has taken part in, and a policy to start from."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from common.errors import ConfigError
from common.observability.console import plain_errors
from common.runtime.home import known_home
from worker.history import HISTORY_FILE, History, PastRun


class Beside(TyperGroup):
    """Options of the group itself are for working: a command beside it needs none of them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As ever; where a command is named first, without asking for what working needs."""
        ctx.resilient_parsing = bool(args) and args[0] in self.commands
        try:
            return super().parse_args(ctx, args)
        finally:
            ctx.resilient_parsing = False


def default_folder(name: str) -> Path:
    """Raises ConfigError where this user has no home directory."""
    home = known_home()
    if home is None:
        raise ConfigError("this user has no home directory; name a folder that is kept: --folder DIR")
    return home / ".cache" / "fedpft" / name


def history(
    folder: Annotated[
        Path | None,
        typer.Option(help="The worker's folder. [default: the only one in ~/.cache/fedpft]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """List the runs that this worker took part in, or declined."""
    with plain_errors():
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{folder} is no folder of a worker; name the one that --folder had there")
        runs = History(folder or _only_folder()).all()
        if as_json:
            typer.echo(json.dumps([asdict(run) for run in runs], indent=2))
        elif not runs:
            typer.echo("no run yet")
        else:
            Console().print(_table(runs))


def policy(
    out: Annotated[Path, typer.Argument(help="File to write.")] = Path("policy.toml"),
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing: say whether the file is right.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a complete commented policy to start from, for --policy."""
    with plain_errors():
        # They bring all of a run's configuration.
        from common.storage.files import write_atomically
        from worker.policy import example_policy, load_policy

        if check:
            load_policy(out)
            typer.echo(f"{out} is right")
            return
        if out.exists() and not force:
            raise ConfigError(f"{out} is there already; --force overwrites it")
        write_atomically(out, example_policy().encode())
        typer.echo(f"{out} written: it allows everything until you change it; fedpft worker --policy {out} …")


def _only_folder() -> Path:
    """Raises ConfigError where there is not exactly one that has a history."""
    above = default_folder("")
    found = sorted(path.parent for path in above.glob(f"*/{HISTORY_FILE}"))
    if len(found) != 1:
        which = f"one of {', '.join(map(str, found))}" if found else f"there is none in {above}"
        raise ConfigError(f"name the worker's folder, --folder DIR: {which}")
    return found[0]


def _table(runs: Sequence[PastRun]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("when", "run", "coordinator", "rounds", "received", "sent", "ε", "how it ended"):
        table.add_column(column, justify="right" if column in ("rounds", "received", "sent", "ε") else "left")
    for run in runs:
        table.add_row(
            f"{datetime.fromtimestamp(run.began):%Y-%m-%d %H:%M}",
            f"{run.run} ({run.label})" if run.label else run.run,
            run.coordinator,
            str(run.rounds),
            f"{run.bytes_down / 1e6:.2f} MB",
            f"{run.bytes_up / 1e6:.2f} MB",
            "–" if run.epsilon is None else f"{run.epsilon:.2f}",
            run.outcome,
        )
    return table
