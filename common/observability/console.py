"""What every command does alike: errors as one line, exit codes, asyncio."""

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import typer

from common.errors import FedPftError, RunFailed
from common.observability.logs import as_json
from common.runtime.signals import Interrupted, exit_code, raised

# gRPC's core writes lines of its own about what it notes in passing, such as a handshake that failed; the
# errors say so too, in words for people. It reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

log = logging.getLogger(__name__)

EXIT_FAILED = 1
EXIT_USAGE = 2


@contextmanager
def plain_errors(logged: bool = False) -> Iterator[None]:
    """Domain errors become one line on standard error and an exit code; a service's is JSON if its log is.

    1 when the run failed, 2 when something that the user gave is wrong or the other side refuses.
    """
    try:
        with raised():
            yield
    except FedPftError as error:
        sys.stdout.flush()
        _tell(" ".join(str(error).split()), logged)
        raise typer.Exit(EXIT_FAILED if isinstance(error, RunFailed) else EXIT_USAGE) from None
    except Interrupted as ended:
        raise typer.Exit(exit_code(ended.number, service=False)) from None
    except KeyboardInterrupt:
        raise typer.Exit(128 + signal.SIGINT) from None


def _tell(what: str, logged: bool) -> None:
    if logged and as_json():
        log.error("%s", what)
    else:
        typer.echo(f"error: {what}", err=True)


def run_async(main: Coroutine[Any, Any, signal.Signals | None]) -> None:
    """Run a service; ended by SIGINT it exits with 130, by SIGTERM (how services are stopped) with 0."""
    try:
        with plain_errors(logged=True):
            if (number := asyncio.run(main)) is not None and (code := exit_code(number)):
                raise typer.Exit(code)
    except typer.Exit:
        raise
    except Exception:
        if not as_json():
            raise
        log.critical("a mistake in the program ended it", exc_info=True)
        raise typer.Exit(EXIT_FAILED) from None
    finally:
        # Collecting what torch and transformers hold would take the interpreter a second on its way out.
        gc.freeze()
