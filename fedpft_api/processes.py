"""Services as processes of a notebook or script: they end with it, in order, and tell why when they fail."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from common.address import Address
from common.errors import ConfigError, RunFailed
from common.runtime.home import known_home
from common.runtime.signals import TIED

# A process that was asked to end gets this long before it is killed.
_GRACE_SECONDS = 15.0


class Service:
    """A process of `python -m MODULE`, with its log in a file; a context that ends it."""

    def __init__(self, name: str, module: str, arguments: Sequence[str], log: Path) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                # Never written to: it ends with this process, however that ends, and the service with it.
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=file,
                env=os.environ | {TIED: "yes"},
                # Interrupting a cell is for the cell.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended. Raises RunFailed when it ended badly, TimeoutError after `timeout` seconds."""
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} has not ended within {timeout:g} s") from None
        self._let_go()
        if code:
            raise self.failure()

    def failure(self) -> RunFailed:
        """Why it has ended, by the last line of its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else "it said nothing"
        code = self._process.returncode
        return RunFailed(f"{self.name} ended with {code}: {last} (all of it in {self.log})")

    def stop(self) -> None:
        """End it in order; started again, it goes on from where it was."""
        if self.alive:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        if self.alive:
            self._process.kill()
            self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<{self.name}, process {self.pid}, {'at work' if self.alive else 'ended'}>"


class Worker(Service):
    """A worker as a process."""


def worker(
    coordinator: str,
    data: Path | str | None = None,
    *,
    name: str,
    folder: Path | str | None = None,
    **options: str | float | bool | Path,
) -> Worker:
    """Start a worker on private data; it joins the run at `coordinator`, HOST:PORT, and ends with it.

    `folder` holds its downloads and its log, worker.log; unset: where `fedpft worker` has it. Other options
    are those of `fedpft worker`, with "_" for "-": `threads=1`, `require_secure=True`, `tls="worker-1"`.
    What is wrong with them is told by `wait`. Raises AddressError, ConfigError.
    """
    Address.of_peer(coordinator)
    if folder is None and known_home() is None:
        raise ConfigError("this user has no home directory; name a folder that is kept: folder=DIR")
    place = Path(folder) if folder is not None else (known_home() or Path()) / ".cache" / "fedpft" / name
    given = ["--coordinator", coordinator, "--name", name, "--folder", str(place.absolute())]
    given += [] if data is None else ["--data", str(Path(data).absolute())]
    for key, value in ({"log": "human"} | options).items():
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            given += [option] if value else []
        else:
            given += [option, str(value)]
    return Worker(f"worker {name}", "worker", given, place / "worker.log")
