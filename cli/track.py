"""`fedpft track`: a run's figures to experiment trackers."""

import logging
import os
import select
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from common.config.choices import Tracker
from common.observability.console import plain_errors
from common.observability.logs import LogFormat

if TYPE_CHECKING:
    from common.config.tracking import TrackingSection

log = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
# So long the process of an earlier coordinator may take for its last figures.
_TAKEOVER_SECONDS = 120.0


def track(
    run: Annotated[Path, typer.Argument(help="The run's directory.")],
    to: Annotated[list[Tracker], typer.Option(help="Which tracker to tell; may be given again.")],
    directory: Annotated[
        Path | None,
        typer.Option(help="Folder for what trackers keep here. [default: tracking in the run's directory]"),
    ] = None,
    project: Annotated[str, typer.Option(help="MLflow's experiment.")] = "fedpft",
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Go on until standard input ends, as a coordinator has it do."),
    ] = False,
    log_format: Annotated[
        LogFormat | None,
        typer.Option("--log", help="How lines look. [default: human on a terminal, else JSON]"),
    ] = None,
) -> None:
    """Tell TensorBoard or MLflow the figures of a run: what they do not have yet, and nothing twice.

    The coordinator does so by itself where run.toml says tracking.to; this is for runs that were not told.
    """
    from common.observability.logs import set_up_logging

    set_up_logging("tracking", form=log_format)
    with plain_errors(logged=follow):
        from common.config.tracking import TrackingSection
        from common.errors import StoreError
        from coordinator.storage.store import Store
        from coordinator.tracking.process import require_installed

        Store.existing(run).close()
        section = TrackingSection(to=tuple(dict.fromkeys(to)), directory=directory, project=project)
        require_installed(section)
        if follow:
            _follow(run, section)
            return
        from common.storage.files import locked
        from coordinator.tracking.telling import Telling

        with locked(run / "tracking", "fedpft track", "wait for it"):
            telling = Telling(run, section, _report)
            telling.look()
            telling.close()
        if telling.failing:
            raise StoreError("not all was told; the lines above say why. The same command tells the rest")


def _follow(run: Path, section: "TrackingSection") -> None:
    """Until standard input ends, then once more. Raises StoreError while another process tells this run."""
    from common.errors import StoreError
    from common.runtime.signals import taken
    from common.storage.files import locked
    from coordinator.tracking.telling import Telling

    ended = _awaited_turn(run)
    # Who stops a service signals all of its processes: this one ends when the coordinator has.
    with taken(lambda number: None), locked(run / "tracking", "fedpft track", "wait for it"):
        telling = Telling(run, section, _report)
        while True:
            try:
                telling.look(last=ended)
            except StoreError as error:
                # On a full disk, for one: the coordinator says so itself, and the next look may succeed.
                log.warning("the run cannot be read: %s", error)
            if ended:
                break
            ended = _ended_within(_LOOK_SECONDS)
        telling.close()


def _awaited_turn(run: Path) -> bool:
    """Wait for the process of an earlier coordinator; whether standard input has ended meanwhile."""
    from common.storage.files import holder

    ended, deadline = False, time.monotonic() + _TAKEOVER_SECONDS
    while holder(run / "tracking") is not None and time.monotonic() < deadline:
        if ended:
            time.sleep(_LOOK_SECONDS)
        else:
            ended = _ended_within(_LOOK_SECONDS)
    return ended


def _ended_within(seconds: float) -> bool:
    """Whether standard input ends within so many seconds; it is never written to."""
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(ready) and not os.read(sys.stdin.fileno(), 4096)


def _report(run: Path, folder: Path) -> None:
    """The run's report, without what it tells of single workers. Raises ConfigError."""
    from experiments.report.files import require_packages, write_document

    require_packages()
    from experiments.report import of_run

    write_document(folder, of_run.document(run, each_worker=False))
