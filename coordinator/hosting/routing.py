"""Which run a worker's call concerns, and which run is offered to it. Lives on the event loop."""

from collections import OrderedDict
from collections.abc import AsyncIterator
from typing import Any

from common.errors import FedPftError, ProtocolMismatch, UnknownRun, UnknownSession, Unreachable
from common.hosted_runs import RunState
from common.protocol import FIND_SINCE
from common.records import JoinRequest, RunSpec
from common.run_offers import FindRequest
from common.transport.rpc import run_named
from coordinator.federation.needs import negotiated
from coordinator.hosting.host import Host
from coordinator.hosting.hosted import HostedRun
from coordinator.hosting.placing import Place, in_order

# Connections of workers that do not say which run they mean.
_MOST_REMEMBERED = 20_000


class Routing:
    """Of all calls that reach a server."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._peers: OrderedDict[str, str] = OrderedDict()

    def of(self, context: Any, token: str = "") -> HostedRun:
        """The run that a call names; where it names none, that of its session, or of its connection.

        Raises UnknownRun, UnknownSession, and Unreachable where no run is active.
        """
        active = self._host.active
        if named := run_named(context):
            if named in active:
                return active[named]
            entry = self._host.catalogue.get(named).entry
            if entry.state is RunState.RUNNING:
                raise Unreachable(f"run {named} is being opened")
            raise UnknownRun(f"run {named} is {entry.state}{f': {entry.reason}' if entry.reason else ''}")
        for run, hosted in active.items():
            if token and hosted.sessions.holds(token):
                self._remember(context, run)
                return hosted
        if (run := self._peers.get(context.peer(), "")) in active:
            return active[run]
        return self._only()

    def _only(self) -> HostedRun:
        active = self._host.active
        self._require_open()
        if len(active) > 1:
            # To join again brings it to a run of its own.
            raise UnknownSession("the coordinator does not know this session; join again")
        return next(iter(active.values()))

    def _require_open(self) -> None:
        """Raise Unreachable while runs that were open are not yet, after a start, or while there are none."""
        if self._host.opening:
            raise Unreachable("the coordinator is opening its runs")
        if not self._host.active:
            raise Unreachable("no run is active at this coordinator")

    def to_join(self, joining: JoinRequest, context: Any) -> HostedRun:
        """The run that a worker enters: the one it names, or else the first that is offered to it.

        Raises UnknownRun, Unreachable, and ProtocolMismatch for a worker that cannot tell runs apart where
        there are several.
        """
        if run_named(context):
            return self.of(context)
        self._require_open()
        hosted = self._first(joining.worker) if len(self._host.active) > 1 else self._only()
        if joining.protocol_max < FIND_SINCE and len(self._host.active) > 1:
            raise ProtocolMismatch(
                f"this coordinator holds {len(self._host.active)} runs, which a worker of protocol "
                f"{joining.protocol_max} cannot tell apart; update the worker"
            )
        self._remember(context, hosted.context.store.run_id())
        return hosted

    def to_describe(self, worker: str, context: Any) -> HostedRun:
        """The run that is told to a worker which names none. Raises UnknownRun, Unreachable."""
        if run_named(context):
            return self.of(context)
        self._require_open()
        return self._only() if len(self._host.active) < 2 else self._first(worker)

    def _first(self, worker: str) -> HostedRun:
        for run in self._in_order(worker):
            hosted = self._host.active[run]
            # No state that a worker could have declined in.
            if not hosted.federation.offers.waiting_for(worker, ""):
                return hosted
        raise Unreachable(f"no run at this coordinator is for worker {worker} now")

    async def found(self, asked: FindRequest) -> AsyncIterator[RunSpec | str]:
        """What there is for a worker, now and whenever that changes.

        Raises ProtocolMismatch, and Unreachable once this process is about to end.
        """
        negotiated(asked)
        told: RunSpec | str | None = None
        while True:
            if self._host.closed:
                raise Unreachable("the coordinator is stopping")
            now = self._offered(asked)
            if now != told:
                yield (told := now)
                continue
            await self._host.offers_changed.wait()

    def _offered(self, asked: FindRequest) -> RunSpec | str:
        reasons = []
        for run in self._in_order(asked.worker):
            offers = self._host.active[run].federation.offers
            if reason := offers.waiting_for(asked.worker, asked.state):
                reasons.append(reason)
                continue
            try:
                if (spec := offers.offer(asked.worker, asked.state)) is not None:
                    return spec
            except FedPftError:
                # What is wrong with the run ends it; that is told where it is.
                continue
        if len(reasons) == 1:
            return reasons[0]
        return f"a run: none of the {len(reasons)} active ones is for this worker" if reasons else "a run"

    def _in_order(self, worker: str) -> list[str]:
        return in_order([self._place(run, hosted, worker) for run, hosted in self._host.active.items()])

    def _place(self, run: str, hosted: HostedRun, worker: str) -> Place:
        config = hosted.context.config
        admitted = config.admission.workers
        needed = config.rounds.workers if admitted is None else len(set(admitted))
        kept = self._host.catalogue.get(run)
        here = hosted.sessions.is_present(worker)
        return Place(run, kept.waits, len(hosted.sessions.present()), needed, here)

    def _remember(self, context: Any, run: str) -> None:
        self._peers[context.peer()] = run
        self._peers.move_to_end(context.peer())
        while len(self._peers) > _MOST_REMEMBERED:
            self._peers.popitem(last=False)
