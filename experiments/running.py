"""All cells of an experiment, several at a time; what is done is not done again."""

import json
import math
import multiprocessing
import os
import queue
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.errors import ConfigError, FedPftError, RunFailed
from common.runtime.signals import end_with_parent
from experiments.cells import Cell, ExperimentSetup, run_cell
from experiments.clients import Clients
from experiments.headline import title_of

# A process that runs cells tells the one that started it: its number, the cell, what, step, steps.
_Report = tuple[int, Cell, str, int, int]
DONE, FAILED = "done", "failed"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """A cell to run, with its variant's settings."""

    cell: Cell
    settings: Mapping[str, Any]


def is_done(setup: ExperimentSetup, work: Work) -> bool:
    """Whether the cell's result is there. Raises ConfigError when it is of other settings."""
    file = setup.folder / work.cell.file
    if not file.exists():
        return False
    found = json.loads(file.read_text())["settings"]
    if found != json.loads(json.dumps(dict(work.settings), default=str)):
        raise ConfigError(
            f"{file} was made with other settings of {work.cell.variant}; remove it, or name another folder"
        )
    return True


def run_all(
    setup: ExperimentSetup,
    work: Sequence[Work],
    parallel: int,
    console: Console,
    trained_by: Callable[[], Clients] | None = None,
) -> None:
    """Run what is not done, `parallel` cells at a time in processes of their own.

    With `trained_by`, one after the other in this process, and the clients where it says. Raises what
    run_cell does, and RunFailed when a process dies.
    """
    left = [each for each in work if not is_done(setup, each)]
    if done := len(work) - len(left):
        console.print(f"{done} of {len(work)} cells are done already")
    if not left:
        return
    with _progress(console) as progress:
        total = progress.add_task("cells", total=len(work), completed=done)
        if trained_by is not None:
            clients = trained_by()
            for each in left:
                bar = progress.add_task(_title(each.cell), total=None)
                run_cell(setup, each.cell, dict(each.settings), _shown(progress, bar, each.cell), clients)
                progress.remove_task(bar)
                progress.advance(total)
            return
        _in_processes(setup, left, min(parallel, len(left)), progress, total)


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True)


def _title(cell: Cell) -> str:
    return f"{cell.variant}, {cell.split}, seed {cell.seed}"


def _shown(progress: Progress, bar: TaskID, cell: Cell) -> Callable[[str, int, int], None]:
    return lambda what, step, steps: progress.update(
        bar, description=f"{_title(cell)}: {what}", completed=step, total=steps
    )


def _in_processes(
    setup: ExperimentSetup, work: Sequence[Work], count: int, progress: Progress, total: TaskID
) -> None:
    # Spawned: a forked torch may hang in its thread pool.
    context = multiprocessing.get_context("spawn")
    tasks: Any = context.Queue()
    reports: Any = context.Queue()
    for each in work:
        tasks.put(each)
    for _ in range(count):
        tasks.put(None)
    processes: list[BaseProcess] = [
        context.Process(target=_work, args=(number, os.getpid(), setup, tasks, reports), daemon=True)
        for number in range(count)
    ]
    bars: dict[int, TaskID] = {}
    try:
        for process in processes:
            process.start()
        remaining = len(work)
        while remaining:
            try:
                number, cell, what, step, steps = reports.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                _require_alive(processes)
                continue
            if what == DONE:
                remaining -= 1
                progress.advance(total)
                progress.remove_task(bars.pop(number))
                told = f"{title_of(setup.metric)} {step / 1e4:.4f}" if steps else "diverged"
                progress.console.print(f"{_title(cell)}: {told}")
            elif what.startswith(FAILED):
                raise ConfigError(f"{_title(cell)}: {what.removeprefix(FAILED)}")
            else:
                if number not in bars:
                    bars[number] = progress.add_task(_title(cell), total=None)
                _shown(progress, bars[number], cell)(what, step, steps)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            process.terminate()


def _require_alive(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        if process.exitcode:
            raise RunFailed(
                f"a process that ran cells ended with exit code {process.exitcode} (short of memory?); "
                "the same command goes on"
            )


def _work(number: int, parent: int, setup: ExperimentSetup, tasks: Any, reports: Any) -> None:
    """What a process does: take cells until there are no more."""
    end_with_parent()
    with suppress(KeyboardInterrupt):
        while (work := tasks.get()) is not None:
            cell = work.cell

            def report(what: str, step: int, steps: int, cell: Cell = cell) -> None:
                if os.getppid() != parent:
                    # Whoever started this is gone.
                    os._exit(1)
                reports.put((number, cell, what, step, steps))

            report("starting", 0, 1)
            try:
                figures = run_cell(setup, cell, dict(work.settings), report)
            except FedPftError as error:
                report(f"{FAILED}{error}", 0, 0)
                return
            score = figures["score"]
            scored = score is not None and math.isfinite(score)
            report(DONE, round(score * 1e4) if scored else 0, int(scored))
