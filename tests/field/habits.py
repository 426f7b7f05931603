"""What goes wrong within a worker, done to its code before it begins: see `Federation.habits`."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from common.errors import UnknownArtifact
from worker import local_model
from worker.client import CoordinatorClient
from worker.loop import Worker
from worker.train import LocalUpdate, fine_tune


def _train(how: Callable[..., LocalUpdate]) -> None:
    local_model.fine_tune = how


def _once(trouble: Callable[..., LocalUpdate]) -> None:
    """In the first training of the process."""
    times: list[None] = []

    def train(*arguments: Any, **settings: Any) -> LocalUpdate:
        times.append(None)
        return (trouble if len(times) == 1 else fine_tune)(*arguments, **settings)

    _train(train)


def _spoilt(*arguments: Any, **settings: Any) -> LocalUpdate:
    update = fine_tune(*arguments, **settings)
    first = sorted(update.delta)[0]
    return replace(update, delta=update.delta | {first: torch.full_like(update.delta[first], torch.nan)})


def sends_what_is_no_number() -> None:
    """As if memory or a library had spoilt the update after its worker had looked at it."""
    _once(_spoilt)


def _odd_loss(*arguments: Any, **settings: Any) -> LocalUpdate:
    return replace(fine_tune(*arguments, **settings), loss=float("nan"))


def says_a_loss_of_nan() -> None:
    """As workers of earlier versions did."""
    _once(_odd_loss)


def _wild(*arguments: Any, **settings: Any) -> LocalUpdate:
    *others, spec = arguments
    return fine_tune(*others, replace(spec, learning_rate=1e20, head_learning_rate=1e20), **settings)


def diverges() -> None:
    """In its first round, truly."""
    _once(_wild)


def _hungry(*arguments: Any, **settings: Any) -> LocalUpdate:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def runs_out_of_memory() -> None:
    """As torch says it; the process lives."""
    _once(_hungry)


def _killed(*arguments: Any, **settings: Any) -> LocalUpdate:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def is_killed_in_training() -> None:
    """As by the kernel, when memory runs out."""
    _train(_killed)


def is_killed_at_the_same_step() -> None:
    """It always comes as far as this."""

    def train(*arguments: Any, **settings: Any) -> LocalUpdate:
        told = settings["on_step"]

        def on_step(step: int, steps: int, loss: float) -> None:
            told(step, steps, loss)
            if step == 2:
                time.sleep(0.5)
                os.kill(os.getpid(), signal.SIGKILL)

        return fine_tune(*arguments, **settings | {"on_step": on_step})

    _train(train)


def _broken(*arguments: Any, **settings: Any) -> LocalUpdate:
    raise ValueError("a library that does not fit the driver")


def ends_with_an_error_in_training() -> None:
    """It says goodbye, and its supervisor starts it again."""
    _train(_broken)


def _stuck(*arguments: Any, **settings: Any) -> LocalUpdate:
    time.sleep(600)
    raise AssertionError


def hangs_in_training() -> None:
    """Its heartbeats go on."""
    _train(_stuck)


def cannot_fetch() -> None:
    """What its task names is not there any more."""
    fetch = Worker._fetch

    async def fails(self: Worker, *arguments: Any) -> Any:
        Worker._fetch = fetch  # type: ignore[method-assign]
        raise UnknownArtifact("there is no artifact 0123456789ab…")

    Worker._fetch = fails  # type: ignore[method-assign]


def sends_no_nonce() -> None:
    """As workers of earlier versions."""
    begin = CoordinatorClient.__init__

    def without(self: CoordinatorClient, *arguments: Any, **settings: Any) -> None:
        begin(self, *arguments, **settings)
        self._joining = replace(self._joining, process="")

    CoordinatorClient.__init__ = without  # type: ignore[method-assign]
