"""Where a service is: host and port; and whether only this machine can reach it."""

import ipaddress
import logging
from dataclasses import dataclass

from common.errors import AddressError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """Host and port, as HOST:PORT or [IPv6]:PORT."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Raises AddressError."""
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isdecimal() and int(port) < 65536):
            raise AddressError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:7070")
        return cls(host.removeprefix("[").removesuffix("]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def require_loopback(address: Address, insecure: bool) -> None:
    """Raise AddressError for plain text that others could reach, unless the user wants that."""
    if not (address.loopback or insecure):
        raise AddressError(
            f"{address} can be reached from other machines in plain text; "
            "use certificates (`fedpft certs`), stay on 127.0.0.1, or say --insecure (server.insecure = true)"
        )
    if not address.loopback:
        log.warning("%s is in plain text: whoever reaches it can read and change everything", address)
