"""Cache of an endpoint's answers on disk, so that a killed run requests each only once."""

from __future__ import annotations

import json
import threading
import warnings
from pathlib import Path

from w2s_fast.files import content_hash
from w2s_fast.store import StoreWarning


class AnswerCache:
    """Texts by the hash of their request, one JSON line each, in the files of a folder.

    A line holds request, text and a checksum of both.

    Args:
        folder: All its ``answers-*.jsonl`` are read, except lines that are damaged, for instance
            cut short by a kill; a warning says so.
        writer: Number of the process; each writes its own file.
    """

    def __init__(self, folder: Path, writer: int = 0) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        lines = [
            line
            for path in sorted(folder.glob("answers-*.jsonl"))
            for line in path.read_bytes().split(b"\n")
            if line
        ]
        answers = [answer for line in lines if (answer := _read(line)) is not None]
        self._texts.update(answers)
        if (n_damaged := len(lines) - len(answers)) and writer == 0:
            text = f"{n_damaged} of {len(lines)} answers in {folder} are damaged or cut short"
            warnings.warn(f"{text}; requesting them again", StoreWarning, stacklevel=2)
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"answers-{writer}.jsonl"

    def get(self, key: str) -> str | None:
        """Return the text of a request, None if it has not been answered."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Store a text; it is in the file on return. Can be called from any thread."""
        with self._lock:
            self._texts[key] = text
            with self._path.open("ab") as file:
                # The line break comes first, so that a line cut short does not damage the next.
                line = json.dumps([key, text, content_hash([key, text])])
                file.write(b"\n" + line.encode())


def _read(line: bytes) -> tuple[str, str] | None:
    """Return the request and the text of a line, None if it is damaged."""
    try:
        key, text, checksum = json.loads(line)
        return (key, text) if content_hash([key, text]) == checksum else None
    except (ValueError, TypeError):
        return None
