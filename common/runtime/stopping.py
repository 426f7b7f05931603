"""Long work in a thread looks here, between two pieces, whether it is to end."""

from collections.abc import Callable
from threading import local
from typing import TypeVar

T = TypeVar("T")

_thread = local()


def stoppable(check: Callable[[], None], work: Callable[..., T], *arguments: object) -> T:
    """The result of `work`, in which `between_pieces` calls `check`."""
    _thread.check = check
    try:
        return work(*arguments)
    finally:
        _thread.check = None


def between_pieces() -> None:
    """Raises Stopped when the work that this thread does is to end."""
    check: Callable[[], None] | None = getattr(_thread, "check", None)
    if check is not None:
        check()
