"""One processor for several computing threads: each computes in its turn, as if it were alone.

What libraries keep for the whole process (states of random number generators, the number of threads, the
default dtype) is put away with who gives up the turn, and is as it was when it comes back: the bits of a
computation do not depend on who computes beside it.
"""

import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from common.errors import Stopped
from common.runtime.compute import ComputeThread

T = TypeVar("T")

# Who computes for longer gives up the turn at its next `check`, if somebody waits.
SLICE_SECONDS = 1.0


@dataclass(frozen=True)
class _Surroundings:
    """What libraries keep for the whole process."""

    torch_state: torch.Tensor
    cuda_states: tuple[torch.Tensor, ...]
    python_state: Any
    numpy_state: Any
    threads: int
    dtype: torch.dtype

    @classmethod
    def now(cls) -> "_Surroundings":
        numpy = sys.modules.get("numpy")
        return cls(
            torch.get_rng_state(),
            tuple(torch.cuda.get_rng_state_all()) if torch.cuda.is_initialized() else (),
            random.getstate(),
            numpy.random.get_state() if numpy is not None else None,
            torch.get_num_threads(),
            torch.get_default_dtype(),
        )

    def restore(self) -> None:
        torch.set_rng_state(self.torch_state)
        if self.cuda_states:
            torch.cuda.set_rng_state_all(list(self.cuda_states))
        random.setstate(self.python_state)
        if self.numpy_state is not None:
            sys.modules["numpy"].random.set_state(self.numpy_state)
        # Of this thread alone: OpenMP counts by thread.
        torch.set_num_threads(self.threads)
        torch.set_default_dtype(self.dtype)


@dataclass(eq=False)
class _Turn:
    """One computation's place in the queue."""

    name: str
    begun: float = field(default=0.0, init=False)


class ComputingTurns:
    """Hands the turn round, first come, first served. Safe to use from several threads.

    `told` hears who computes from now on, by name; "" where nobody does.
    """

    def __init__(
        self, told: Callable[[str], None] = lambda name: None, slice_seconds: float | None = None
    ) -> None:
        self._told, self._slice = told, SLICE_SECONDS if slice_seconds is None else slice_seconds
        self._changed = threading.Condition()
        self._queue: deque[_Turn] = deque()
        self._holder: _Turn | None = None

    def take(self, turn: _Turn, require_going_on: Callable[[], None]) -> None:
        """Wait for the turn. Raises what `require_going_on` raises, which is asked again and again."""
        with self._changed:
            self._queue.append(turn)
            try:
                while self._holder is not None or self._queue[0] is not turn:
                    require_going_on()
                    self._changed.wait(0.2)
            except BaseException:
                self._queue.remove(turn)
                self._changed.notify_all()
                raise
            self._queue.popleft()
            self._holder, turn.begun = turn, time.monotonic()
            self._told(turn.name)

    def give_up(self, turn: _Turn) -> None:
        """Let the next one compute."""
        with self._changed:
            if self._holder is turn:
                self._holder = None
                if not self._queue:
                    self._told("")
                self._changed.notify_all()

    def due(self, turn: _Turn) -> bool:
        """Whether the turn has lasted, and somebody waits for it."""
        mine = self._holder is turn
        return mine and bool(self._queue) and time.monotonic() - turn.begun >= self._slice


class ComputeInTurns(ComputeThread):
    """A run's own thread, which computes while it has the turn."""

    def __init__(self, turns: ComputingTurns, name: str, threads: int) -> None:
        """`name` is told to who asks which run computes; `threads` of torch, until the run says otherwise."""
        super().__init__()
        self._turns, self._turn = turns, _Turn(name)
        self._threads = threads
        self._surroundings: _Surroundings | None = None

    def _computed(self, work: Callable[..., T], *arguments: object) -> T:
        self._enter()
        try:
            return super()._computed(work, *arguments)
        finally:
            self._leave()

    def _enter(self) -> None:
        """Raises Stopped when the run is to end before its turn comes."""
        self._turns.take(self._turn, self._require_going_on)
        if self._surroundings is None:
            torch.set_num_threads(self._threads)
            # Who had the turn may have given it up in the middle of something.
            torch.set_default_dtype(torch.float32)
        else:
            self._surroundings.restore()

    def _leave(self) -> None:
        self._surroundings = _Surroundings.now()
        self._turns.give_up(self._turn)

    def _require_going_on(self) -> None:
        if self._stopping.is_set():
            raise Stopped("stopped")

    def check(self) -> None:
        """Called from within computations: another run may compute meanwhile. Raises Stopped after `stop`."""
        super().check()
        if self._turns.due(self._turn):
            self._leave()
            # Also where the run is to end meanwhile: what is undone on the way out (states of generators, the
            # default dtype) is the process's, and must not be undone under another run's hands.
            self._turns.take(self._turn, lambda: None)
            assert self._surroundings is not None
            self._surroundings.restore()
            super().check()
