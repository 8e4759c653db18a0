"""Cache of an endpoint's answers on disk, so that a killed run requests each only once."""

from __future__ import annotations

import json
import threading
from pathlib import Path


class AnswerCache:
    """Texts by the hash of their request, one JSON line each, in the files of a folder.

    Args:
        folder: All its ``answers-*.jsonl`` are read, except lines that a kill cut short.
        writer: Number of the process; each writes its own file.
    """

    def __init__(self, folder: Path, writer: int = 0) -> None:
        self._lock = threading.Lock()
        self._texts: dict[str, str] = {}
        for path in sorted(folder.glob("answers-*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    key, text = json.loads(line)
                except ValueError:
                    continue
                self._texts[key] = text
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
                file.write(b"\n" + json.dumps([key, text]).encode())
