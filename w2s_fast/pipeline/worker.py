"""Worker process: read jobs as JSON lines, compute them, write progress and results as JSON lines.

``pool`` starts it as ``python -P -m w2s_fast.pipeline.worker PID``, with its own process id, so a
script that calls ``w2s_fast.run`` needs no ``if __name__ == "__main__"``. It ends with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

PROGRESS_SECONDS = 0.2  # shortest interval, so that small models do not spend their time on reports
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve jobs until standard input ends."""
    _exit_with_parent(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # A descriptor of its own keeps prints of libraries out of the replies.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from w2s_fast.store import redirect_store_warnings

    redirect_store_warnings(lambda text: _send(replies, warning=text))
    for line in sys.stdin:
        _serve(json.loads(line), replies)


def _serve(message: dict[str, Any], replies: TextIO) -> None:
    from w2s_fast.config import from_dict
    from w2s_fast.errors import W2SError
    from w2s_fast.pipeline.context import reader
    from w2s_fast.pipeline.execute import WorkItem, execute

    last = 0.0

    def progress(step: int, steps: int, loss: float) -> None:
        nonlocal last
        now = time.monotonic()
        if step == steps or now - last >= PROGRESS_SECONDS:
            last = now
            _send(replies, progress=[step, steps])

    try:
        cfg, work_item = from_dict(message["config"]), WorkItem.from_json(message["work_item"])
        read = reader(cfg.task, work_item.data)
        artifact = execute(cfg, work_item, message["threads"], progress, read)
    except W2SError as err:
        _send(replies, error=str(err))
    except Exception as err:
        traceback.print_exc()
        line = " ".join(f"{type(err).__name__}: {err}".split())
        _send(replies, crash=line)
    else:
        _send(replies, done=artifact.to_json())


def _send(replies: TextIO, **message: Any) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _exit_with_parent(parent: int) -> None:
    """End with the parent, even after ``kill -9``: at once on Linux, else within a second.

    Args:
        parent: Its process id, from itself: it may have ended before this process could ask.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
