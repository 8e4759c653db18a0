"""Standard output and error in any encoding, and for readers that stop early, such as ``head``."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

READER_GONE = 141  # the exit code of programs that SIGPIPE ends
_ASCII = str.maketrans("–−─━…×✓✗•", "----.x+x*")


def accept_any_encoding() -> None:
    """Let standard output and error replace what their encoding does not have."""
    codecs.register_error("w2s_fast", _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):  # a file that became a pipe cannot be reconfigured
                stream.reconfigure(errors="w2s_fast")


def flush_output() -> None:
    """Flush standard output and error.

    Raises:
        BrokenPipeError: Nobody reads one of them any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def discard_output() -> None:
    """Discard what nobody reads any more, which Python would report again when it exits."""
    sink = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            os.dup2(sink, stream.fileno())
    os.close(sink)


def _replace(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    if all("\udc80" <= c <= "\udcff" for c in text):  # bytes of a file name
        return bytes(ord(c) - 0xDC00 for c in text), error.end
    plain = (c if c.isascii() else "?" for c in text.translate(_ASCII))
    return "".join(plain), error.end
