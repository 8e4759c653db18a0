"""Ports and interfaces of this host."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct

_GET_ADDRESS = 0x8915  # SIOCGIFADDR


def free_port(host: str = "127.0.0.1") -> int:
    """A port nobody listens on right now."""
    with socket.socket() as s:
        s.bind((host, 0))
        return s.getsockname()[1]


def interface_to(host: str, port: int) -> str | None:
    """Name of the network interface that leads to ``host``; None for this host's loopback."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect((host, port))  # sends nothing
            own = s.getsockname()[0]
            if own.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                asked = struct.pack("256s", name.encode()[:15])
                with contextlib.suppress(OSError):
                    answer = fcntl.ioctl(s.fileno(), _GET_ADDRESS, asked)
                    if socket.inet_ntoa(answer[20:24]) == own:
                        return name
    except OSError:
        pass
    return None
