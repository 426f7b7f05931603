"""Where a service is: host and port; whether only this machine can reach it; how to listen there.

Every part that listens or connects takes its idea of an address from here: IPv4, [IPv6], names, and "0.0.0.0"
or "[::]" for all of a host's addresses.
"""

import errno
import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from common.errors import AddressError

log = logging.getLogger(__name__)

EXAMPLE = "HOST:PORT, such as 127.0.0.1:7070"

_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*\.?", re.I)
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):/+(.*)", re.I)
_MOST_WAITING = 128


@dataclass(frozen=True)
class Address:
    """Host and port, as HOST:PORT or [IPv6]:PORT."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Where to listen; port 0 takes a free one. Raises AddressError."""
        if scheme := _SCHEME.fullmatch(text):
            rest = scheme[2].partition("/")[0]
            raise AddressError(f"{text!r} is a URL, not {EXAMPLE}; leave out what is around {rest!r}")
        host, colon, port = text.rpartition(":")
        if not (colon and host and port.isascii() and port.isdecimal() and int(port) < 65536):
            raise AddressError(f"{text!r} is not {EXAMPLE}")
        return cls(_host(host, text), int(port))

    @classmethod
    def of_peer(cls, text: str) -> "Address":
        """Where to connect to: one host, one port. Raises AddressError."""
        address = cls.parse(text)
        if address.port == 0:
            raise AddressError(f"{text}: port 0 is for listening on a free one; name the port that it became")
        if address.unspecified:
            raise AddressError(
                f"{text}: {address.host} is for listening on all addresses of a host; "
                f"to connect, name one of them, such as {address.from_here} on the same host"
            )
        return address

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The host as a number; None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host.lower().rstrip(".") == "localhost":
            return True
        return self.ip is not None and self.ip.is_loopback

    @property
    def unspecified(self) -> bool:
        """Whether it stands for all addresses of a host."""
        return self.ip is not None and self.ip.is_unspecified

    @property
    def from_here(self) -> "Address":
        """Where a process of the same host reaches what listens there."""
        if not self.unspecified:
            return self
        return replace(self, host="::1" if ":" in self.host else "127.0.0.1")

    @property
    def target(self) -> str:
        """For gRPC's channels, which would take a host named "unix" or "xds" for a way of naming."""
        return f"dns:///{quote(str(self), safe=':.')}"


def _host(host: str, text: str) -> str:
    """The host of an address, without brackets. Raises AddressError."""
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    try:
        number = ipaddress.ip_address(bare)
    except ValueError:
        number = None
    if number is not None:
        if bracketed != (number.version == 6):
            shown = f"[{bare}]" if number.version == 6 else bare
            raise AddressError(f"{text!r} is not {EXAMPLE}; write {shown}:PORT")
        return bare
    if not bare.isascii():
        try:
            bare = bare.encode("idna").decode()
        except UnicodeError:
            raise AddressError(f"{text!r} is not {EXAMPLE}; {bare!r} is no host name") from None
    if bracketed or not _NAME.fullmatch(bare):
        raise AddressError(f"{text!r} is not {EXAMPLE}; {bare!r} is neither a host name nor an IP address")
    if bare.rstrip(".").rpartition(".")[2].isdecimal():
        raise AddressError(f"{text!r} is not {EXAMPLE}; {bare!r} is no IPv4 address")
    return bare


def require_loopback(address: Address, insecure: bool) -> None:
    """Raise AddressError for plain text that others could reach, unless the user wants that."""
    if not (address.loopback or insecure):
        raise AddressError(
            f"{address} can be reached from other machines in plain text; "
            "use certificates (`fedpft certs`), stay on 127.0.0.1, or say --insecure (server.insecure = true)"
        )
    if not address.loopback:
        log.warning("%s is in plain text: whoever reaches it can read and change everything", address)


def listening_socket(address: Address, purpose: str = "listen") -> socket.socket:
    """A socket that listens there; at "0.0.0.0" and "[::]" on all addresses of both kinds, as gRPC does.

    Raises AddressError, with what it is for, when the address is taken or not this machine's.
    """
    try:
        if address.unspecified and socket.has_dualstack_ipv6():
            anywhere = ("::", address.port)
            return socket.create_server(
                anywhere, family=socket.AF_INET6, backlog=_MOST_WAITING, dualstack_ipv6=True
            )
        host = "0.0.0.0" if address.unspecified else address.host
        (family, _, _, _, where), *_ = _resolved(replace(address, host=host), socket.AI_PASSIVE)
        return socket.create_server(where, family=family, backlog=_MOST_WAITING)
    except OSError as error:
        raise AddressError(f"cannot {purpose} on {address}: {_problem(error, address)}") from error


def require_free(address: Address) -> None:
    """Raise AddressError where nothing can listen."""
    listening_socket(address).close()


def _resolved(address: Address, flags: int = 0) -> list[Any]:
    return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=flags)


def unresolved(host: str) -> str:
    """What to say of a name that has no address."""
    return f"the name {host} has no address here; correct it, or add it to the DNS or to /etc/hosts"


def _problem(error: OSError, address: Address) -> str:
    """Why listening fails and what to do."""
    if isinstance(error, socket.gaierror):
        return unresolved(address.host)
    told = error.strerror or str(error)
    match error.errno:
        case errno.EADDRINUSE:
            return "Address already in use; stop what uses it or choose another port"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return "it is no address of this machine; name one of its own, or 0.0.0.0 for all"
        case errno.EACCES | errno.EPERM:
            return f"this user may not listen on port {address.port}; choose one above 1023"
    return f"{told.partition(' (while')[0]}; choose another address"
