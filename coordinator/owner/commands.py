"""What a run's owner types: status, stop, rewind, export."""

import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from common.errors import StoreError
from common.observability.console import plain_errors

if TYPE_CHECKING:
    from common.address import Address
    from common.trust.tls import Tls


CoordinatorAddress = Annotated[
    str, typer.Option("--coordinator", metavar="HOST:PORT", help="Address of a running coordinator.")
]
AdminTls = Annotated[
    Path | None,
    typer.Option(
        "--tls",
        envvar="FEDPFT_TLS",
        help="Folder with tls.crt, tls.key and ca.crt, as `fedpft certs issue --role admin` writes it. "
        "[default: plain text]",
    ),
]
AllowPlainText = Annotated[bool, typer.Option("--insecure", help="Allow plain text to another machine.")]


def reached_at(coordinator: str, tls: Path | None, insecure: bool) -> "tuple[Address, Tls | None]":
    """Where the coordinator is, and what to show it. Raises AddressError, CertificateError."""
    from common.address import Address, require_loopback
    from common.trust.identity import Role
    from common.trust.tls import open_tls

    address = Address.of_peer(coordinator)
    if tls is None:
        require_loopback(address, insecure)
    return address, open_tls(tls, Role.ADMIN)


def status(
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="DIRECTORY|ID",
            help="Read a run's directory instead, which works after its end; or the id of one run of many.",
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and follow the run.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """Show where a run stands and what it waits for."""
    import asyncio

    from common.errors import RunFailed
    from common.records import Phase

    with plain_errors():
        named = _run_id(run)
        if run is None or named:
            reached = reached_at(coordinator, tls, insecure)
        else:
            _require_run(run)

    from common.run_status import RunStatus
    from coordinator.owner.status_view import follow, show

    async def main() -> RunStatus:
        from coordinator.owner.admin_client import Admin

        async with Admin(*reached, named) as admin:
            if watch and not as_json:
                return await follow(admin)
            return await admin.status()

    with plain_errors():
        if run is not None and not named:
            from coordinator.campaign.liveness import resting_status
            from coordinator.campaign.status import open_run

            current = resting_status(*open_run(run))
        else:
            current = asyncio.run(main())
        if as_json:
            typer.echo(json.dumps(_jsonable(asdict(current)), indent=2))
        else:
            show(current)
        if watch and not as_json and current.phase is not Phase.FINISHED:
            # So that `status --watch && export` exports what is whole.
            gone = "the coordinator went away before the run was over; above is the last that it told"
            raise RunFailed(f"the run is {current.phase}" if current.phase.over else gone)


def _jsonable(value: Any) -> Any:
    """JSON has no number that is none."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _jsonable(each) for key, each in value.items()}
        case list() | tuple():
            return [_jsonable(each) for each in value]
    return value


def _run_id(run: Path | None) -> str:
    """The id that is meant, where there is no such directory; else empty."""
    if run is None or run.exists() or not re.fullmatch(r"[0-9a-f]{12}", str(run)):
        return ""
    return str(run)


def _require_run(directory: Path) -> None:
    """Before what takes seconds to import. Raises StoreError."""
    if not (directory / "run.sqlite").is_file():
        raise StoreError(f"{directory} holds no run: there is no run.sqlite in it")


def stop(
    coordinator: CoordinatorAddress = "127.0.0.1:7070",
    tls: AdminTls = None,
    insecure: AllowPlainText = False,
) -> None:
    """End a running coordinator in order; started again, it goes on from the last committed step.

    Of `fedpft serve` that is the server with all its runs; `fedpft cancel` ends one of them.
    """
    import asyncio

    async def main() -> None:
        async with Admin(*reached) as admin:
            await admin.stop()

    with plain_errors():
        from coordinator.owner.admin_client import Admin

        reached = reached_at(coordinator, tls, insecure)
        asyncio.run(main())
        typer.echo("the coordinator stops; the same command starts it again")


def rewind(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    number: Annotated[int, typer.Option("--round", min=0, help="The round to go back to; 0 is the start.")],
) -> None:
    """Forget all rounds after one, after a bad one; started again, the coordinator goes on from there."""
    with plain_errors():
        from common.storage.files import locked
        from coordinator.storage.event_log import EventLog
        from coordinator.storage.rewinding import rewind as rewind_to
        from coordinator.storage.store import Store

        Store.existing(run).close()
        store = Store(run)
        try:
            with locked(run, "fedpft rewind"):
                rewind_to(store, number)
                EventLog(store).record("run_rewound", f"the owner went back to round {number}", number)
        finally:
            store.close()
        typer.echo(f"{run} is after round {number} again; start the coordinator to go on")


def export(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    merge: Annotated[
        bool,
        typer.Option("--merge", help="Write a plain transformers model instead of a PEFT adapter."),
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Where the foundation model is now. [default: where the run had it]")
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="Of the weights: float32, bfloat16, float16; auto: the FM's own with --merge, else float32.",
        ),
    ] = "auto",
    which: Annotated[
        str | None,
        typer.Option(
            "--round",
            metavar="best|N",
            help="The best round, or one whose adapter is kept. [default: the run's result: the best under "
            "rounds.patience, else the newest]",
        ),
    ] = None,
    uncorrected: Annotated[
        bool, typer.Option("--uncorrected", help="Leave out the correction that followed the last round.")
    ] = False,
) -> None:
    """Export a run's result as a standard PEFT adapter, or merged into the foundation model."""
    with plain_errors():
        _require_run(run)
        from common.errors import ConfigError
        from coordinator.owner.export import ExportDtype
        from coordinator.owner.export import export as write

        if dtype not in list(ExportDtype):
            raise ConfigError(f"--dtype must be {', '.join(ExportDtype)}, got {dtype}")
        if which is not None and which != "best" and not which.isdecimal():
            raise ConfigError(f'--round must be "best" or a round from 1, got {which}')
        number: int | Literal["best"] | None = None
        if which is not None:
            number = "best" if which == "best" else int(which)
        for path in write(run, out, merge, ExportDtype(dtype), model, not uncorrected, number):
            typer.echo(str(path))
