"""What gRPC says of a failed call, in words for people: what is wrong, where, and what to do.

No text of gRPC's reaches a user. What is not in the tables is told by its status code; gRPC's own text is in
the log of `--verbose`. tests/field/test_words.py makes the failures happen.
"""

import logging
import re
from urllib.parse import unquote

from grpc import StatusCode

from common.address import unresolved
from common.errors import BadMessage, FedPftError, PeerError, UnknownHost, Unreachable, WrongService

log = logging.getLogger(__name__)

_WHERE = re.compile(r"ipv[46]:(\S+?): ")
_HOST = re.compile(r"(?:resolving|resolution failed for) \[?(?:dns:/*)?(\S+?)\]?:\d+")

_ANOTHER = "another service answers at {where}; name HOST:PORT of server.listen, not that of metrics or page"

# Signs in gRPC's text, the first that is found counts; what each is to us. {where} is HOST:PORT, or "this
# address" where gRPC does not tell.
_SIGNS: list[tuple[str, type[FedPftError], str]] = [
    # The handshake, broken off by this side.
    (
        "Hostname Verification Check failed",
        Unreachable,
        "the certificate at {where} is for another host; issue it with --san HOST, or use a name that it has",
    ),
    (
        "certificate has expired",
        Unreachable,
        "the certificate at {where} has expired; renew it, or set this host's clock",
    ),
    (
        "certificate is not yet valid",
        Unreachable,
        "the certificate at {where} is not valid yet; set this host's clock",
    ),
    (
        "unsuitable certificate purpose",
        WrongService,
        "the certificate at {where} is no coordinator's; see who answers there",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        Unreachable,
        "the authority in ca.crt did not issue the certificate at {where}; take the ca.crt of the other side",
    ),
    (
        "WRONG_VERSION_NUMBER",
        WrongService,
        "{where} speaks plain text, not TLS; set [tls] there, or leave out --tls and say --insecure",
    ),
    # The handshake, broken off by the other side.
    (
        r"ALERT_|alert (unknown|bad|certificate)|ALERT_CERTIFICATE",
        Unreachable,
        "{where} refuses this side's certificate; ask its owner for one of the authority that it trusts",
    ),
    (
        r"Handshake read failed \((Socket closed|.*reset)",
        Unreachable,
        "{where} ended the TLS handshake: it does not speak TLS, or is just ending",
    ),
    (
        r"Handshake (read|write) failed|[Hh]andshake.*timed out",
        Unreachable,
        "{where} takes connections, but does not answer; see what listens there",
    ),
    ("Tls handshake failed", Unreachable, "the TLS handshake with {where} failed; `fedpft doctor` says more"),
    # No connection.
    (
        "Connection refused",
        Unreachable,
        "nothing listens at {where}; start it there, or correct the address",
    ),
    (
        "No route to host|Network is unreachable|Host is down|Network is down",
        Unreachable,
        "no way leads to {where}; look at the address, and at this host's network",
    ),
    (
        r"Connection timed out|FD (shutdown|Shutdown)|connect.*[Tt]imeout",
        Unreachable,
        "no answer from {where}; see that the address is right and no firewall between",
    ),
    (
        "before receiving SETTINGS frame",
        Unreachable,
        "{where} takes connections, but does not answer; see what listens there",
    ),
    (r"Failed parsing HTTP/2|http1\.x|Expected SETTINGS", WrongService, _ANOTHER),
    (
        "failed to connect to all addresses.*(Socket closed|reset by peer|Broken pipe)",
        Unreachable,
        "{where} closes connections as they open; see that both sides speak TLS (--tls) or none, and that it "
        "trusts this side's certificate",
    ),
    (
        "failed to connect to all addresses",
        Unreachable,
        "{where} cannot be connected to; `fedpft doctor` says more",
    ),
    # What came through a connection, or did not.
    ("(larger than max|max_.*message_length)", BadMessage, "a message is larger than the other side takes"),
    (
        "Concurrent RPC limit exceeded",
        Unreachable,
        "the other side has as many calls as it takes (limits.calls)",
    ),
    (
        "ecompress|Exception deserializing|encoding.*(not supported|unsupported)|deserializ",
        BadMessage,
        "a message arrived that cannot be read; the two sides may be of different versions",
    ),
    ("Received http2 header with status", WrongService, _ANOTHER),
    (r"keepalive|ping.*timeout", Unreachable, "the connection died: probes of it were not answered"),
    ("too_many_pings", Unreachable, "the other side is probed too often; raise --keepalive"),
    (
        "GOAWAY|shut ?down|Cancelling all calls|Channel closed",
        Unreachable,
        "the other side is ending",
    ),
]

_CODES: dict[StatusCode, tuple[type[FedPftError], str]] = {
    # The peer or the way to it was gone, which may pass. No handler of ours answers INTERNAL without naming
    # its error: gRPC itself does, when a connection breaks.
    StatusCode.UNAVAILABLE: (Unreachable, "the connection broke"),
    StatusCode.INTERNAL: (Unreachable, "the connection broke"),
    StatusCode.CANCELLED: (Unreachable, "the call was broken off"),
    StatusCode.DEADLINE_EXCEEDED: (
        Unreachable,
        "no answer in time; see that the address is right and no firewall between",
    ),
    StatusCode.RESOURCE_EXHAUSTED: (Unreachable, "the other side has as many calls as it takes"),
    # Something else that speaks gRPC, such as the port for probes.
    StatusCode.UNIMPLEMENTED: (WrongService, _ANOTHER),
    StatusCode.UNAUTHENTICATED: (WrongService, _ANOTHER),
    StatusCode.PERMISSION_DENIED: (WrongService, _ANOTHER),
}


def told(code: StatusCode, details: str) -> FedPftError:
    """The error that gRPC's own status and text stand for."""
    log.debug("gRPC says %s: %s", code.name, details)
    if host := _HOST.search(details):
        return UnknownHost(unresolved(host[1]))
    found = _WHERE.search(details)
    where = unquote(found[1]) if found else "this address"
    for sign, kind, words in _SIGNS:
        if re.search(sign, details, re.DOTALL):
            return kind(words.format(where=where))
    kind, words = _CODES.get(code, (PeerError, "the other side failed; its log may say more"))
    return kind(words.format(where=where))
