"""Commands as real processes that start in a moment.

They are forked from a process that has imported torch and transformers already (the standard library's
fork server), and then run what `python -m MODULE` runs. Importing takes seconds of a core, and tests start
hundreds of processes. What an import itself does is told by those few tests that start a process from cold.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

ROOT = Path(__file__).parents[1]

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.preload"])


def start(
    module: str,
    arguments: list[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    habit: Callable[[], None] | None = None,
) -> ForkServerProcess:
    """A process that runs `python -m module` with these arguments; output is appended to `log`.

    Its environment is this process's, with `environment` on top; its working directory the repository.
    `habit`, a function of a module, is called in it before: it may change what the service does.
    """
    given = {**os.environ, **(environment or {})}
    log.touch()
    process = _forkserver.Process(target=_run, args=(module, arguments, str(log), given, habit))
    # Where the fork server finds the code under test; the first process starts it.
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "proto")])):
        process.start()
    return process


def _run(
    module: str,
    arguments: list[str],
    log: str,
    environment: dict[str, str],
    habit: Callable[[], None] | None,
) -> None:
    """In the new process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.close(descriptor)
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [module, *arguments]
    if habit is not None:
        habit()
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # The standard library's forked processes leave without this.
        atexit._run_exitfuncs()


def call(module: str, *arguments: str) -> tuple[int, str]:
    """Run `python -m module` to its end: its exit code, and all that it printed."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        code = Service(module, list(arguments), log).wait()
        return code, log.read_text()


class Service:
    """A process of `start`, with what tests use of `subprocess.Popen`."""

    def __init__(
        self,
        module: str,
        arguments: list[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        habit: Callable[[], None] | None = None,
    ) -> None:
        self._process = start(module, arguments, log, environment, habit)
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """As `poll`."""
        return self.poll()

    def poll(self) -> int | None:
        """Its exit code, the signal that killed it as a negative number, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self._process), timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)
