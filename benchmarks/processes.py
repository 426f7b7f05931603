"""Processes under measurement: started, talked to by lines of JSON, weighed, and ended."""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[1]


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A command's parser, whose help begins with the module's own words as they are."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


class Child:
    """`python -m module arguments` in a process of its own; unless `synced`, by way of benchmarks.unsynced.

    What it says on its standard output are lines of JSON; what it logs goes to the file `log`.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        log: Path,
        environment: Mapping[str, str] | None = None,
        synced: bool = True,
    ) -> None:
        self._log = log
        way = [] if synced else ["benchmarks.unsynced"]
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *way, module, *arguments],
                cwd=ROOT,
                env=environment_with(environment or {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        self._weighed = psutil.Process(self.process.pid)

    def tell(self, command: str) -> None:
        """Give it a line; what it answers is for `hear`. Raises RuntimeError as `hear` does."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def hear(self) -> Any:
        """Its next line. Raises RuntimeError, with the end of its log, when it ended instead."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> RuntimeError:
        told = self._log.read_text(errors="replace")[-2000:]
        return RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}:\n{told}")

    def ask(self, command: str) -> Any:
        """Its answer to a line."""
        self.tell(command)
        return self.hear()

    # --- weighing; all in bytes or seconds ---

    @property
    def cpu(self) -> float:
        """Seconds of processor time so far, of all its threads, in user and kernel mode."""
        times = self._weighed.cpu_times()
        return float(times.user + times.system)

    @property
    def memory(self) -> int:
        """Resident memory now, mapped files included."""
        return int(self._weighed.memory_info().rss)

    @property
    def peak(self) -> int:
        """The most resident memory since the start, or since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])

    def forget_peak(self) -> None:
        """Let `peak` begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def files(self) -> int:
        """Open file descriptors."""
        return int(self._weighed.num_fds())

    # --- ending ---

    def end(self) -> None:
        """Ask it to end, and see to it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                # Of a process that ended by itself there may be a line that it did not read.
                with suppress(BrokenPipeError):
                    stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    """This one's, in which the repository's packages are found, and more."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "proto")])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def say(answer: object) -> None:
    """A child's side of `Child.hear`."""
    print(json.dumps(answer), flush=True)


@contextmanager
def weighing(child: Child) -> Iterator[dict[str, float]]:
    """What a child takes for what happens within: "cpu" seconds, and "peak" memory in bytes."""
    figures: dict[str, float] = {}
    child.forget_peak()
    before = child.cpu
    yield figures
    figures |= {"cpu": child.cpu - before, "peak": child.peak}
