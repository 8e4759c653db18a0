"""Ports and interfaces of this host, and whether others listen."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
import time

_GET_ADDRESS = 0x8915  # SIOCGIFADDR
_POLL_S = 0.05


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that is free at the moment."""
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def wait_for_listener(host: str, port: int, timeout_s: float) -> None:
    """Wait until a connection to ``host`` and ``port`` succeeds.

    Raises:
        OSError: None did within ``timeout_s``; the error of the last attempt.
    """
    end = time.monotonic() + timeout_s
    while True:
        left = end - time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(left, _POLL_S)) as s:
                if s.getsockname() != s.getpeername():  # a port of this host can meet itself
                    return
                raise ConnectionRefusedError("nothing listens there")
        except OSError:
            if left <= 0:
                raise
        time.sleep(_POLL_S)


def interface_to(host: str, port: int) -> str | None:
    """Return the network interface that routes to ``host``; None if it is the loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((host, port))  # sends nothing
            own_address = s.getsockname()[0]
            if own_address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                request = struct.pack("256s", name.encode()[:15])
                with contextlib.suppress(OSError):
                    reply = fcntl.ioctl(s.fileno(), _GET_ADDRESS, request)
                    if socket.inet_ntoa(reply[20:24]) == own_address:
                        return name
    except OSError:
        pass
    return None
