"""A connection of an admin's, whichever service is called by it."""

from types import TracebackType
from typing import Self

from common.address import Address
from common.transport.rpc import new_channel
from common.trust.tls import Tls


class Connection:
    """An async context; connects lazily."""

    def __init__(self, address: Address, tls: Tls | None = None) -> None:
        self._channel = new_channel(address, tls=tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._channel.close()
