"""What admins type to a server that holds many runs: submit, runs, cancel, resume, logs."""

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from common.observability.console import plain_errors
from coordinator.owner.commands import AdminTls, AllowPlainText, CoordinatorAddress, reached_at

if TYPE_CHECKING:
    from common.address import Address
    from common.trust.tls import Tls
    from coordinator.owner.runs_client import Runs

T = TypeVar("T")

RunId = Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `fedpft runs` shows it.")]


def _asked(reached: "tuple[Address, Tls | None]", what: "Callable[[Runs], Awaitable[T]]") -> T:
    """One call, and its answer."""
    import asyncio

    from coordinator.owner.runs_client import Runs

    async def main() -> T:
        async with Runs(*reached) as connection:
            return await what(connection)

    return asyncio.run(main())


def submit(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.TOML",
            help="The run's configuration, without [server], [tls] and run.directory. Paths in it are "
            "those of the coordinator's host; relative ones count from the folder that --runs lies in there.",
        ),
    ],
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    priority: Annotated[
        int, typer.Option(help="Runs of higher priority begin before those of lower ones that wait.")
    ] = 0,
    label: Annotated[str, typer.Option(help="Name for people. [default: the file's name]")] = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of run.toml, such as rounds.count=3."),
    ] = None,
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """Hand a run to a coordinator that holds many; prints the run's id."""
    from uuid import uuid4

    from common.errors import ConfigError
    from common.hosted_runs import Submission

    with plain_errors():
        reached = reached_at(coordinator, tls, insecure)
        try:
            text = config.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ConfigError(f"{config}: no such file; `fedpft init` writes one to start from") from None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{config}: cannot be read: {error}") from None
        name = label or config.stem
        submission = Submission(uuid4().hex, text, tuple(settings or ()), priority, name)
        typer.echo(_asked(reached, lambda connection: connection.submit(submission)))


def runs(
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """List all runs of a coordinator that holds many: state, round, workers, score, time left."""
    with plain_errors():
        from dataclasses import asdict

        from coordinator.owner.runs_view import show

        found = _asked(reached_at(coordinator, tls, insecure), lambda connection: connection.entries())
        if as_json:
            typer.echo(json.dumps([asdict(entry) for entry in found], indent=2))
        else:
            show(found)


def cancel(
    run: RunId,
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """End one of a coordinator's runs for good, or take it out of the queue; its files stay."""
    with plain_errors():
        _asked(reached_at(coordinator, tls, insecure), lambda connection: connection.cancel(run))
        typer.echo(f"run {run} is cancelled")


def resume(
    run: RunId,
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """Have a run that failed or was cancelled go on from its last committed step."""
    with plain_errors():
        _asked(reached_at(coordinator, tls, insecure), lambda connection: connection.resume(run))
        typer.echo(f"run {run} waits for its turn")


def logs(
    run: RunId,
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run is over.")] = False,
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """Print what a coordinator that holds many runs has logged about one, as lines of JSON."""
    import asyncio

    async def main() -> None:
        async with Runs(*reached) as connection:
            async for text in connection.log(run, follow):
                sys.stdout.write(text)
                sys.stdout.flush()

    with plain_errors():
        from coordinator.owner.runs_client import Runs

        reached = reached_at(coordinator, tls, insecure)
        asyncio.run(main())
