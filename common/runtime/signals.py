"""How a process is asked to end: from its first line on, and whatever it computes.

Python runs a signal's handler in the main thread, between two instructions; one of them may be minutes of a
library's. So a thread of its own is told of signals: what the C library calls writes their numbers into a
socket. The first one ends the process in order, or at once while nothing has begun; another one ends it
at once, always.

Imports nothing that takes time: entry points call `listen` before they import the rest.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

log = logging.getLogger(__name__)

# What asks a process to end; SIGHUP comes when its terminal closes.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Set for a process that is to end when its standard input does: when whoever started it is gone, however.
TIED = "FEDPFT_ENDS_WITH_STDIN"

# What has not ended in order after so long is ended: a library computes that cannot be interrupted. A run is
# as good then as after a kill, and whoever stops services kills them soon.
ORDERLY_SECONDS = 12.0


class Interrupted(KeyboardInterrupt):
    """Raised in a command's main thread by a signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


class _Stage(Enum):
    STARTING = "nothing has begun that an end would interrupt"
    WORKING = "the main thread is told by an exception"
    SERVING = "somebody has taken over"


def exit_code(number: int, service: bool = True) -> int:
    """The code of a process that a signal ended in order: SIGTERM is how services are stopped."""
    return 0 if service and number == signal.SIGTERM else 128 + number


class _Signals:
    """Of this process; there is one while somebody listens."""

    def __init__(self, service: bool) -> None:
        self.service = service
        self.stage = _Stage.STARTING
        self.taker: Callable[[signal.Signals], None] | None = None
        self._first: signal.Signals | None = None
        self._closed = threading.Event()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # A hangup that the starter (nohup) ignores stays ignored.
        numbers = [n for n in ENDING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
        self._before: dict[int, Any] = {n: signal.signal(n, self._in_main_thread) for n in numbers}
        self._fd_before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()

    def close(self) -> None:
        """Handle signals as before. In the main thread."""
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._closed.set()
        # Ends the thread.
        self._writer.close()

    def forked(self) -> None:
        """This is a child without the thread: signals are no business of its parent's."""
        signal.set_wakeup_fd(-1)
        for number in self._before:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def _listen(self) -> None:
        with self._reader:
            while told := self._reader.recv(1):
                if told[0] in ENDING:
                    self._received(signal.Signals(told[0]))

    def _received(self, number: signal.Signals) -> None:
        if self._first is not None:
            if number == self._first == signal.SIGHUP:
                # A terminal that closes may say so twice: the kernel, and the shell.
                return
            os._exit(128 + number)
        self._first = number
        if self.stage is _Stage.STARTING:
            log.info("stopping: %s", number.name)
            os._exit(exit_code(number, self.service))
        if self.taker is not None:
            self.taker(number)
            threading.Thread(target=self._limit, args=(number,), name="orderly end", daemon=True).start()

    def _limit(self, number: signal.Signals) -> None:
        if not self._closed.wait(ORDERLY_SECONDS):
            log.warning("something computes that cannot be interrupted; ending without it")
            os._exit(exit_code(number, self.service))

    def _in_main_thread(self, number: int, frame: object) -> None:
        if self.stage is _Stage.WORKING and self.taker is None:
            raise Interrupted(signal.Signals(number))


_signals: _Signals | None = None


def listen(service: bool) -> None:
    """From now on a signal ends this process; a service is one that SIGTERM ends with code 0."""
    global _signals
    if _signals is None:
        _signals = _Signals(service)
        os.register_at_fork(after_in_child=_forget)
    if os.environ.pop(TIED, None):
        threading.Thread(target=_end_with_stdin, name="starter", daemon=True).start()


def _forget() -> None:
    global _signals
    if _signals is not None:
        _signals.forked()
        _signals = None


@contextmanager
def raised() -> Iterator[None]:
    """While inside, the first signal raises Interrupted in the main thread, unless this is a service."""
    if _signals is None or _signals.service or _signals.stage is not _Stage.STARTING:
        yield
        return
    _signals.stage = _Stage.WORKING
    try:
        yield
    finally:
        if _signals is not None:
            _signals.stage = _Stage.STARTING


@contextmanager
def taken(taker: Callable[[signal.Signals], None]) -> Iterator[None]:
    """While inside, `taker` is called with the first signal, in a thread of its own. In the main thread.

    A second one ends the process at once.
    """
    global _signals
    own = _signals is None
    if _signals is None:
        _signals = _Signals(service=True)
    signals, before = _signals, _signals.stage
    signals.taker, signals.stage = taker, _Stage.SERVING
    try:
        yield
    finally:
        signals.taker, signals.stage = None, before
        if own:
            signals.close()
            _signals = None


def _end_with_stdin() -> None:
    """Ends this process when whoever holds the other end of its standard input is gone."""
    try:
        while os.read(0, 4096):
            pass
    except OSError:
        pass
    end_orphan()


def end_orphan() -> None:
    """End this process: in order, if it can be; what it was started for is gone."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ORDERLY_SECONDS)
    os._exit(128 + signal.SIGTERM)


def end_with_parent() -> None:
    """In a process of `multiprocessing`: end it when its parent dies, however that ends."""
    from multiprocessing import connection, parent_process

    if (parent := parent_process()) is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, name="parent", daemon=True).start()
