"""Rounds of Flower: a SuperLink and SuperNodes as processes, on loopback in plain text, all in memory."""

import json
import os
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import Spread

_APP = Path(__file__).parent / "app"
_ROUNDS = 4
_SECONDS = 300.0


def flower_rounds(python: Path, workers: int, megabytes: float, rounds: int = _ROUNDS) -> dict[str, Any]:
    """Seconds of a round, the first left out, and the most memory of all of the server's processes.

    `python` is an interpreter that has flwr installed. Raises RuntimeError when Flower does not get to the
    end.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # Flower starts further programs by their names. A symbolic link names the environment, too.
        binaries = python.absolute().parent
        environment = {
            **os.environ,
            "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PYTHONPATH": "",
        }
        log = stack.enter_context((folder / "log").open("wb"))

        def start(program: str, *arguments: str) -> psutil.Popen:
            process = psutil.Popen(
                [str(binaries / program), *arguments],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
            stack.callback(_end, process)
            return process

        fleet, control, server = (f"127.0.0.1:{port}" for port in _free_ports(3))
        addresses = ["--fleet-api-address", fleet, "--control-api-address", control]
        link = start("flower-superlink", "--insecure", *addresses, "--serverappio-api-address", server)
        for port in _free_ports(workers):
            client = f"127.0.0.1:{port}"
            start("flower-supernode", "--insecure", "--superlink", fleet, "--clientappio-api-address", client)
        (folder / "home").mkdir(exist_ok=True)
        (folder / "home" / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n\n[superlink.bench]\naddress = "{control}"\ninsecure = true\n'
        )
        figures = folder / "figures.json"
        values = max(1000, int(1e6 * megabytes) // 4)
        config = f'workers={workers} values={values} rounds={rounds} figures="{figures}"'
        time.sleep(3)
        start("flwr", "run", str(_APP), "bench", "--run-config", config)
        peak = _watch(link, figures, folder / "log")
        begun = json.loads(figures.read_text())
    seconds = [after - before for before, after in pairwise(begun)]
    return {"round": Spread.of(seconds[1:]), "peak": peak}


def _watch(link: psutil.Popen, figures: Path, log: Path) -> int:
    """Until the figures are there; the most bytes that the server's processes held at one time."""
    peak, ends = 0, time.monotonic() + _SECONDS
    while not figures.exists() or not figures.read_text():
        if link.poll() is not None or time.monotonic() > ends:
            raise RuntimeError(f"Flower does not get to the end:\n{log.read_text(errors='replace')[-2000:]}")
        held = 0
        for process in (link, *link.children(recursive=True)):
            try:
                held += process.memory_info().rss
            except psutil.Error:
                continue
        peak = max(peak, held)
        time.sleep(0.05)
    return peak


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(process: psutil.Popen) -> None:
    """With all that it started."""
    try:
        processes = [*process.children(recursive=True), process]
    except psutil.Error:
        processes = []
    for one in processes:
        try:
            one.kill()
        except psutil.Error:
            continue
    process.wait()
