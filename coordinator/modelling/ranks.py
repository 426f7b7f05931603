"""`fedpft build --processes`: the processes of one build, started here, and ended here whatever happens.

They meet over a file and talk over loopback. What one of them says when it fails is told once.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import torch

from common import errors
from common.config.choices import AlignmentMethod
from common.config.run import RunConfig
from common.errors import ConfigError, FedPftError, RunFailed
from common.runtime.signals import TIED
from coordinator.modelling.prebuild import require_buildable

MODULE = "coordinator.modelling.rank"
# In their folder: what to do, where they meet, and what one has to say that fails.
TASK_FILE, MEETING_FILE, REPORT_FILE = "task.json", "meeting", "report-{}.json"

# Where one has died, the others notice: so long is waited for what they say, to tell the first one's fate.
_ALSO_SECONDS = 0.5
_GRACE_SECONDS = 4.0
# Bytes: what is as large goes back to the system when it is freed.
_GIVEN_BACK = 1 << 20


def build_together(config: RunConfig, out: Path, processes: int) -> None:
    """`build_ahead` by several processes, each of which holds a part of both models.

    Raises as that does; ConfigError when the settings are not for several processes, RunFailed when one of
    them dies.
    """
    _require_fit(config, processes)
    require_buildable(config, out)
    with tempfile.TemporaryDirectory(prefix="fedpft-build-") as folder:
        task = {"config": config.model_dump_json(), "out": str(out)}
        (Path(folder) / TASK_FILE).write_text(json.dumps(task))
        _run(Path(folder), processes)


def _require_fit(config: RunConfig, processes: int) -> None:
    a = config.alignment
    if a.method is not AlignmentMethod.GRADIENT:
        raise ConfigError(
            f'--processes {processes} needs alignment.method = "gradient", got "{a.method}": a closed form '
            "is one pass, which one process makes"
        )
    if config.compute.device_map is not None:
        raise ConfigError("compute.device_map must be unset for --processes, which share the FM out")
    if a.batch_size < processes:
        raise ConfigError(
            f"--processes must be <= alignment.batch_size, whose rows are shared out: got {processes} and "
            f"{a.batch_size}"
        )
    if torch.cuda.is_available() and (there := torch.cuda.device_count()) < processes:
        raise ConfigError(
            f"--processes must be <= the CUDA devices, got {processes} and {there}; "
            "CUDA_VISIBLE_DEVICES= (empty) computes on CPUs"
        )


def _run(folder: Path, count: int) -> None:
    """Start them and wait. Raises what the first one that fails had to say."""
    running: list[subprocess.Popen[bytes]] = []
    ended: queue.Queue[int] = queue.Queue()
    try:
        for rank in range(count):
            running.append(_started(folder, rank, count))
            threading.Thread(target=_await, args=(running[rank], rank, ended), daemon=True).start()
        for _ in range(count):
            if running[rank := ended.get()].returncode:
                raise _failure(folder, running, [rank, *_more(ended)])
    finally:
        _end(running)


def _started(folder: Path, rank: int, count: int) -> "subprocess.Popen[bytes]":
    loopback = "lo" if sys.platform == "linux" else "lo0"
    environment = os.environ | {
        TIED: "yes",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Layers come and go whole: glibc is to give them back, and not to keep them for the next.
        "MALLOC_MMAP_THRESHOLD_": str(_GIVEN_BACK),
    }
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, str(folder), str(rank), str(count)],
        # Never written to: they end with this process, however that ends.
        stdin=subprocess.PIPE,
        # One speaks for all.
        stdout=None if rank == 0 else subprocess.DEVNULL,
        stderr=None if rank == 0 else subprocess.DEVNULL,
        env=environment,
        # Ctrl-C reaches this process alone.
        start_new_session=True,
    )


def _await(process: "subprocess.Popen[bytes]", rank: int, ended: "queue.Queue[int]") -> None:
    process.wait()
    ended.put(rank)


def _more(ended: "queue.Queue[int]") -> list[int]:
    """Those that end besides, and soon."""
    found: list[int] = []
    with suppress(queue.Empty):
        while True:
            found.append(ended.get(timeout=_ALSO_SECONDS))
    return found


def _failure(folder: Path, running: "list[subprocess.Popen[bytes]]", ended: list[int]) -> FedPftError:
    """Of what has happened the reason: a signal, what the user can mend, anything else, in this order."""
    count = len(running)
    for rank in ended:
        if (code := running[rank].returncode) < 0:
            return RunFailed(
                f"process {rank + 1} of {count} was ended by {signal.Signals(-code).name}; "
                "the same command goes on from the last checkpoint"
            )
    told = [(rank, report) for rank in ended if (report := _report(folder, rank)) is not None]
    for _, (kind, text) in told:
        if isinstance(found := getattr(errors, kind, None), type) and issubclass(found, FedPftError):
            return found(text)
    for rank, (kind, text) in told:
        return RunFailed(f"process {rank + 1} of {count} failed: {kind}: {text}")
    return RunFailed(f"process {ended[0] + 1} of {count} ended with {running[ended[0]].returncode}")


def _report(folder: Path, rank: int) -> tuple[str, str] | None:
    try:
        kind, text = json.loads((folder / REPORT_FILE.format(rank)).read_text())
    except (OSError, ValueError):
        return None
    return str(kind), str(text)


def _end(running: "list[subprocess.Popen[bytes]]") -> None:
    """Whoever still runs is ended, and none left to be waited for."""
    for process in running:
        if process.poll() is None:
            process.terminate()
    for process in running:
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()
