"""The process that tells a run's trackers, beside the one that works on it.

Of its own, because trackers import for seconds, wait for servers and keep state for a whole process:
nothing of that may hold a run up.
"""

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from common.config.choices import Tracker
from common.config.run import RunConfig
from common.config.tracking import TrackingSection
from common.errors import ConfigError
from common.observability.logs import LogFormat, as_json
from common.runtime.signals import TIED

log = logging.getLogger(__name__)

# What each needs, all of it in fedpft[tracking]. MLflow's small package keeps files by SQL alone.
_PACKAGES = {Tracker.TENSORBOARD: ("tensorboard",), Tracker.MLFLOW: ("mlflow", "sqlalchemy", "alembic")}
# So long the last figures and the report may take, once the run's own process has nothing else to do.
LAST_SECONDS = 60.0


def require_installed(section: TrackingSection) -> None:
    """Raises ConfigError when a tracker's package is not installed."""
    for which in section.to:
        for package in _PACKAGES[which]:
            if importlib.util.find_spec(package) is None:
                raise ConfigError(
                    f"tracking.to = {which} needs {package}; pip install 'fedpft[tracking]', or leave it out"
                )


@contextmanager
def tracked(config: RunConfig, waits: bool = True) -> Iterator[None]:
    """While inside, and for a last look after it, the run's trackers are told what its store has.

    Unless `waits`, that last look is left to a thread. Raises ConfigError when a tracker is not installed;
    nothing else of trackers reaches the run.
    """
    section = config.tracking
    require_installed(section)
    child = _start(config) if section.to else None
    try:
        yield
    finally:
        if child is not None and waits:
            _end(child)
        elif child is not None:
            threading.Thread(target=_end, args=(child,), name="last figures", daemon=True).start()


def _start(config: RunConfig) -> "subprocess.Popen[bytes] | None":
    section = config.tracking
    command = [sys.executable, "-m", "cli", "track", str(config.run.directory), "--follow"]
    command += ["--log", LogFormat.JSON if as_json() else LogFormat.HUMAN, "--project", section.project]
    command += [part for which in section.to for part in ("--to", which)]
    if section.directory is not None:
        command += ["--directory", str(section.directory)]
    environment = {name: value for name, value in os.environ.items() if name != TIED}
    try:
        # A session of its own: Ctrl-C is for the run, whose last figures come after it.
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, start_new_session=True
        )
    except OSError as error:
        log.warning("trackers are told nothing: their process does not start: %s", error)
        return None


def _end(child: "subprocess.Popen[bytes]") -> None:
    """The end of its standard input is the end of the run; also where this process dies."""
    assert child.stdin is not None
    child.stdin.close()
    try:
        child.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        told = "trackers take longer than %.0f s for the last figures; `fedpft track` tells the rest"
        log.warning(told, LAST_SECONDS)
        child.kill()
        child.wait()
