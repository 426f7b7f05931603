"""The attacks from beginning to end: their folder, their turns, several at a time, resumed."""

import json
import multiprocessing
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID

from common.errors import ConfigError, RunFailed
from common.runtime.signals import end_with_parent
from common.storage.files import write_atomically
from experiments.attacks.findings import Findings
from experiments.attacks.scale import AttackSetup
from experiments.attacks.turns import Turn, play, turns
from experiments.catalogue import ATTACKS
from experiments.experiment import EXPERIMENT_FILE, machine
from experiments.simulation import OnProgress


def conduct(setup: AttackSetup, parallel: int, console: Console) -> Findings:
    """Run what is not done yet of the attacks in their folder; returns what they found.

    Raises ConfigError, DataError and ModelError for what cannot be run, RunFailed when a process dies.
    """
    _begin(setup)
    every = turns(setup)
    left = [turn for turn in every if not (setup.folder / turn.file).exists()]
    if done := len(every) - len(left):
        console.print(f"{done} of {len(every)} attacks are done already")
    if left:
        with Progress(console=console, transient=True) as progress:
            bar = progress.add_task("attacks", total=len(every), completed=done)
            if parallel == 1:
                for turn in left:
                    play(setup, turn, _shown(progress, bar, turn))
                    progress.advance(bar)
            else:
                _in_processes(setup, left, parallel, progress)
    return Findings.read(setup.folder)


def _in_processes(setup: AttackSetup, left: Sequence[Turn], parallel: int, progress: Progress) -> None:
    # Spawned: a forked torch may hang in its thread pool.
    context = multiprocessing.get_context("spawn")
    bar = progress.task_ids[0]
    with ProcessPoolExecutor(min(parallel, len(left)), context, end_with_parent) as pool:
        waiting = {pool.submit(play, setup, turn, _unheard): turn for turn in left}
        try:
            for done in as_completed(waiting):
                done.result()
                progress.advance(bar)
                progress.console.print(str(waiting[done]))
        except BrokenProcessPool:
            raise RunFailed(
                "a process that ran attacks ended by itself (short of memory?); the same command goes on"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _shown(progress: Progress, bar: TaskID, turn: Turn) -> OnProgress:
    return lambda what, step, steps: progress.update(bar, description=f"{turn}: {what}")


def _unheard(what: str, step: int, steps: int) -> None:
    """Progress within a turn of another process is not shown."""


def _begin(setup: AttackSetup) -> None:
    """Write what the folder holds; found there, it must be the same. Raises ConfigError."""
    scale = asdict(setup.scale)
    # More seeds go on from those that are done.
    del scale["seeds"], scale["first_seed"]
    fixed: dict[str, Any] = {
        "experiment": ATTACKS,
        "model": setup.model,
        "texts": setup.texts.name,
        "documents": setup.documents.name,
        "scale": json.loads(json.dumps(scale, default=str)),
        "threads": setup.threads,
        "settings": {key: str(value) for key, value in setup.settings.items()},
    }
    file, before = setup.folder / EXPERIMENT_FILE, {}
    if file.exists():
        before = json.loads(file.read_text())
        if other := [key for key in fixed if before["fixed"].get(key) != fixed[key]]:
            raise ConfigError(
                f"{setup.folder} holds an experiment with another {', '.join(other)}; "
                "name another --folder, or remove it"
            )
    about = {
        "fixed": fixed,
        "command": "fedpft " + shlex.join(sys.argv[1:]),
        "begun": before.get("begun", datetime.now(UTC).isoformat(timespec="seconds")),
        "machine": machine(),
        "versions": {name: version(name) for name in ("fedpft", "torch", "transformers", "peft")},
    }
    write_atomically(file, json.dumps(about, indent=1).encode())
