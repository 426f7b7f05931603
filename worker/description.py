"""What a run asks of its workers, told to one that does not enter it: for `fedpft doctor`."""

from fedpft.v1 import federation_pb2
from grpc import StatusCode, aio

from common.errors import PeerError
from common.records import RunSpec
from common.transport import wire
from common.transport.rpc import domain_error
from worker.connection import Connection, Endpoint


async def describe_run(endpoint: Endpoint, worker: str) -> RunSpec:
    """The run that the coordinator serves; nothing changes there.

    Raises Unreachable, NotAllowed when the run does not admit the worker, PeerError when the coordinator
    is of a version that does not know the question.
    """
    connection = Connection(endpoint)
    try:
        request = federation_pb2.DescribeRunRequest(worker=wire.worker_name(worker))
        reply = await connection.stub.DescribeRun(request, timeout=endpoint.patience)
        return wire.run_spec_from_pb(reply.run)
    except aio.AioRpcError as error:
        if error.code() is StatusCode.UNIMPLEMENTED:
            raise PeerError("the coordinator is of a version that does not describe its run") from None
        raise domain_error(error) from None
    finally:
        await connection.close()
