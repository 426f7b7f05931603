"""`fedpft serve`: one coordinator for many runs."""

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from common.observability.console import plain_errors, run_async
from common.observability.logs import LogFormat


def serve(
    runs: Annotated[
        Path,
        typer.Option(
            metavar="DIRECTORY",
            help="Folder that holds all runs, each below its id. Paths in submitted runs count "
            "from the folder that this one lies in.",
        ),
    ],
    config: Annotated[
        Path | None, typer.Option(help="The server's own settings: [runs], [server], [tls].")
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="For workers and admins. [default: 127.0.0.1:7070]"),
    ] = None,
    tls: Annotated[
        Path | None,
        typer.Option(
            help="Folder with the coordinator's tls.crt, tls.key and ca.crt, and perhaps revoked.pem. "
            "[default: plain text]"
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain text to and from other machines.")
    ] = False,
    at_once: Annotated[
        int | None,
        typer.Option(metavar="N", help="Runs that are open at the same time; others wait. [default: 4]"),
    ] = None,
    quota: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="Beyond so much on disk no run begins. [default: any]"),
    ] = None,
    run_quota: Annotated[
        int | None,
        typer.Option(metavar="BYTES", help="A run that takes more on disk fails. [default: any]"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more.")] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log", help="How lines look. [default: human on a terminal, else JSON]"),
    ] = None,
) -> None:
    """Stay up and hold any number of runs, which `fedpft submit` hands in.

    Ended or killed and started again, it goes on with all of them.
    """
    from common.observability.logs import set_up_logging

    set_up_logging("coordinator", verbose=verbose, form=log_format)
    with plain_errors(logged=True):
        from common.config.serving import load_serve_config

        numbers = {"at_once": at_once, "quota": quota, "run_quota": run_quota}
        server: dict[str, Any] = {} if listen is None else {"listen": listen}
        given: dict[str, dict[str, Any]] = {
            "runs": {key: value for key, value in numbers.items() if value is not None},
            "server": server | ({"insecure": True} if insecure else {}),
            "tls": {} if tls is None else _files(tls.resolve()),
        }
        loaded = load_serve_config(config, given)
        # torch takes seconds to import; --help and a mistake in the file should not.
        from coordinator.serving import serve_runs

    async def main() -> signal.Signals | None:
        return (await serve_runs(loaded, runs.resolve())).by

    run_async(main())


def _files(folder: Path) -> dict[str, Any]:
    """The names that `fedpft certs issue` gives."""
    from common.trust.authority import REVOKED
    from common.trust.tls import TlsFiles

    files = TlsFiles.in_folder(folder)
    found = {"certificate": files.certificate, "key": files.key, "ca": files.authority}
    revoked = folder / REVOKED
    return found | ({"revoked": revoked} if revoked.is_file() else {})
