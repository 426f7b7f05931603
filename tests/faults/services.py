"""Coordinator and workers as real processes that start in a moment.

They are forked from a process that has imported torch and transformers already (the standard library's
fork server), and then run what `python -m coordinator` and `python -m worker` run. Importing takes
seconds, and these tests start hundreds of processes.
"""

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).parents[2]

_forkserver = multiprocessing.get_context("forkserver")
_forkserver.set_forkserver_preload(["tests.faults.preload"])


def start(service: str, arguments: list[str], log: Path, environment: Mapping[str, str]) -> ForkServerProcess:
    """A process that runs "coordinator" or "worker" with these arguments; output is appended to `log`."""
    # Where the fork server finds the code under test; it inherits this process's environment once.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    process = _forkserver.Process(target=_run, args=(service, arguments, str(log), dict(environment)))
    process.start()
    return process


def _run(service: str, arguments: list[str], log: str, environment: dict[str, str]) -> None:
    """In the new process."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    os.environ.update(environment)
    sys.argv = [service, *arguments]
    if service == "coordinator":
        from coordinator.__main__ import main
    else:
        from worker.__main__ import main
    main()
