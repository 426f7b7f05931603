"""gRPC's health service alone, in plain text, for probes that have no certificate, such as Kubernetes's."""

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from common.address import Address
from common.transport.rpc import new_server


class HealthProbe:
    """Answers SERVING while the event loop turns; tells nothing else."""

    def __init__(self, listen: str) -> None:
        """Raises AddressError."""
        self._server, self.address = new_server(Address.parse(listen))

    async def start(self) -> None:
        """From now on the service is well."""
        checks = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(checks, self._server)
        await checks.set("", health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def stop(self) -> None:
        """No more."""
        assert isinstance(self._server, aio.Server)
        await self._server.stop(None)
