"""Protobuf ↔ records, for the runs that workers are offered and decline."""

from fedpft.v1 import federation_pb2

from common.errors import BadMessage
from common.records import RunSpec
from common.run_offers import FindRequest
from common.transport.wire import one_line, run_spec_from_pb, run_spec_to_pb, worker_name

_MOST_TOLD = 64


def find_request_to_pb(r: FindRequest) -> federation_pb2.FindRunRequest:
    return federation_pb2.FindRunRequest(
        worker=r.worker,
        protocol_min=r.protocol_min,
        protocol_max=r.protocol_max,
        software=r.software,
        state=r.state,
    )


def find_request_from_pb(m: federation_pb2.FindRunRequest) -> FindRequest:
    protocols = m.protocol_min, m.protocol_max
    return FindRequest(worker_name(m.worker), *protocols, m.software[:_MOST_TOLD], _state(m.state))


def found_to_pb(found: RunSpec | str) -> federation_pb2.FindRunResponse:
    if isinstance(found, str):
        return federation_pb2.FindRunResponse(waiting_for=found)
    return federation_pb2.FindRunResponse(offer=federation_pb2.RunOffer(run=run_spec_to_pb(found)))


def found_from_pb(m: federation_pb2.FindRunResponse) -> RunSpec | str:
    match m.WhichOneof("found"):
        case "offer":
            return run_spec_from_pb(m.offer.run)
        case "waiting_for":
            return one_line(m.waiting_for)
        case _:
            raise BadMessage("an answer of a kind not known here; upgrade the worker")


def decline_to_pb(worker: str, state: str, reason: str) -> federation_pb2.DeclineRunRequest:
    return federation_pb2.DeclineRunRequest(worker=worker, state=state, reason=one_line(reason))


def decline_from_pb(m: federation_pb2.DeclineRunRequest) -> tuple[str, str, str]:
    """Worker, state and reason."""
    reason = one_line(m.reason) or "it gives no reason"
    return worker_name(m.worker), _state(m.state), reason


def _state(text: str) -> str:
    if not 1 <= len(text) <= _MOST_TOLD or not text.isprintable():
        raise BadMessage(f"a worker's state must be 1 to {_MOST_TOLD} printable characters")
    return text
