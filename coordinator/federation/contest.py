"""Two processes that work under one name: the second is refused, and the owner of the run hears of it."""

from typing import Any
from urllib.parse import unquote

from common.errors import NameTaken
from common.records import JoinRequest
from coordinator.context import RunContext
from coordinator.federation.sessions import Sessions


async def require_only(run: RunContext, sessions: Sessions, joining: JoinRequest, context: Any) -> None:
    """Raise NameTaken for a worker whose name is at work already."""
    try:
        await sessions.require_only(joining)
    except NameTaken:
        _tell(run, sessions, joining.worker, f"one more, from {_host(context)}, is refused")
        raise


def tell_replaced(run: RunContext, sessions: Sessions, token: str, context: Any) -> None:
    """A process calls whose session ended for another's: that one joined beside it, not after it."""
    if (worker := sessions.replaced(token)) is not None:
        _tell(run, sessions, worker, f"the earlier one, at {_host(context)}, ends")


def _tell(run: RunContext, sessions: Sessions, worker: str, how: str) -> None:
    if sessions.contest(worker):
        advice = "give each its own --name and its own --folder"
        text = f"two workers work under the name {worker}: {how}; {advice}"
        run.events.record("name_contested", text, run.traffic.round, worker)


def _host(context: Any) -> str:
    """Where a caller is, for people: "ipv4:10.0.0.7:40000" is 10.0.0.7."""
    return unquote(context.peer()).partition(":")[2].rpartition(":")[0] or "an unknown place"
