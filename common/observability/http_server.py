"""A small HTTP server in a thread of its own: what serves the metrics and the status page."""

import logging
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.types import StartResponse, WSGIEnvironment

from common.address import Address, listening_socket

log = logging.getLogger(__name__)

Application = Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]]


class HttpServer:
    """Answers by a WSGI application while the process does something else. `port` is where it listens; `what`
    it serves is for the error's message.

    Raises AddressError when it cannot listen there.
    """

    def __init__(self, address: Address, application: Application, what: str) -> None:
        self._server = _Server(address, application, what)
        self.port = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """A browser holds several connections open."""

    daemon_threads = True

    def __init__(self, address: Address, application: Application, what: str) -> None:
        super().__init__((address.host, address.port), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listening_socket(address, f"serve {what}")
        # As the library's own `server_bind`, which would ask the DNS for this host's name.
        self.server_name, self.server_port = address.host, self.socket.getsockname()[1]
        self.setup_environ()
        self.set_app(application)


class _Handler(WSGIRequestHandler):
    # Who connects and says nothing is not waited for.
    timeout = 30

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)
