"""What a run asks of its workers, told to one that does not enter it: for `fedpft doctor`."""

from fedpft.v1 import federation_pb2

from common.records import RunSpec
from common.transport import wire
from common.transport.rpc import call
from worker.connection import Connection, Endpoint


async def describe_run(endpoint: Endpoint, worker: str) -> RunSpec:
    """The run that the coordinator serves; nothing changes there.

    Raises Unreachable, NotAllowed when the run does not admit the worker, PeerError when the coordinator
    is of a version that does not know the question.
    """
    connection = Connection(endpoint)
    try:
        request = federation_pb2.DescribeRunRequest(worker=wire.worker_name(worker))
        reply = await call(connection.stub.DescribeRun(request, timeout=endpoint.patience))
        return wire.run_spec_from_pb(reply.run)
    finally:
        await connection.close()
