"""Connections that end when the time of a request is over, whatever it waits for.

A timeout of a socket starts anew with every byte, so a server that sends one now and then holds a
request for ever.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
import urllib.request
from functools import partial
from typing import Any


class Deadline:
    """The end of one request: then its connections are shut down, and reads of them return.

    Use as a context, in which the time runs.

    Args:
        seconds: Duration, from looking up the address to the last byte of the reply.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._twins: list[socket.socket] = []

    def __enter__(self) -> Deadline:
        self._end = time.monotonic() + self._seconds
        self._timer = threading.Timer(self._seconds, self._shut)
        self._timer.daemon = True
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for twin in self._twins:
                twin.close()

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def connect(self, address: tuple[str, int], *_: object) -> socket.socket:
        """Return a connection to the first address of a host that takes one.

        Raises:
            OSError: None does, or the time is over.
        """
        error = OSError(f"{address[0]} has no address")
        for family, kind, protocol, _name, where in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            if self.over:
                raise TimeoutError("timed out")
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(self._end - time.monotonic(), 1e-3))
                sock.connect(where)
                self._watch(sock)
                return sock
            except OSError as e:
                sock.close()
                error = e
        raise error

    def open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        """Send a request; return the reply of any status, a redirect too, without its body."""
        opener = urllib.request.build_opener(_Http(self), _Https(self), _AnyStatus)
        reply: http.client.HTTPResponse = opener.open(request, timeout=self._seconds)
        return reply

    def _watch(self, sock: socket.socket) -> None:
        # A twin, because TLS takes the socket itself away from whoever made it.
        with self._lock:
            if self.over:  # nothing would shut it down any more
                raise TimeoutError("timed out")
            self._twins.append(sock.dup())

    def _shut(self) -> None:
        with self._lock:
            for twin in self._twins:
                with contextlib.suppress(OSError):  # the server was faster
                    twin.shutdown(socket.SHUT_RDWR)


class _AnyStatus(urllib.request.HTTPErrorProcessor):
    """Return every reply; a redirect that is followed would send the key to another address."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


class _HttpConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Here and not in connect(), which talks to a proxy and makes TLS before it returns.
        self._create_connection = deadline.connect


class _HttpsConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, deadline: Deadline, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._create_connection = deadline.connect


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HttpConnection, deadline=self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(partial(_HttpsConnection, deadline=self._deadline), req)
