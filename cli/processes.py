"""Services as child processes of a command, each with a log file."""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Self

from common.errors import RunFailed
from common.runtime.signals import TIED

# A process that was asked to end gets this long before it is killed.
_GRACE_SECONDS = 4.0
_START_SECONDS = 120.0


class Processes:
    """An async context that leaves no process behind."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, module: str, *arguments: str) -> None:
        """Start `python -m module` with the arguments."""
        self._logs.mkdir(parents=True, exist_ok=True)
        # The packaged model is local: nothing may ask a hub.
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", TIED: "yes"}
        with self._log(name).open("ab") as log:
            self._running[name] = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                *arguments,
                # Never written to: it ends with this process, however that ends, and the other one with it.
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C reaches this process alone, which then ends the others in order.
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    async def endpoint(self, name: str, path: Path) -> dict[str, Any]:
        """What the process wrote to `path` once it listened. Raises RunFailed when it ended before."""
        process = self._running[name]
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if process.returncode is not None:
                raise self._failure(name, process.returncode)
            if path.exists():
                found: dict[str, Any] = json.loads(path.read_bytes())
                if found["pid"] == process.pid:
                    return found
            await asyncio.sleep(0.05)
        raise RunFailed(f"{name} did not start within {_START_SECONDS:.0f} s; see {self._log(name)}")

    async def all_ended(self) -> None:
        """Until every process has ended well. Raises RunFailed as soon as one ends badly."""

        async def one(name: str, process: asyncio.subprocess.Process) -> None:
            if code := await process.wait():
                raise self._failure(name, code)

        async with asyncio.TaskGroup() as group:
            for name, process in self._running.items():
                group.create_task(one(name, process))

    def _failure(self, name: str, code: int) -> RunFailed:
        lines = self._log(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1].removeprefix("error: ") if lines else "no output"
        return RunFailed(f"{name} ended with {code}: {last} (all of it in {self._log(name)})")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [p for p in self._running.values() if p.returncode is None]
        for process in running:
            process.terminate()
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await asyncio.gather(*(process.wait() for process in running))
        except TimeoutError:
            for process in running:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
