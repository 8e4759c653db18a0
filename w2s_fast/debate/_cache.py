"""Answers that were paid for, kept in a file of their own so that a killed run asks once."""

from __future__ import annotations

import json
import threading
from pathlib import Path


class Kept:
    """Texts under the hash of their request, one JSON line each, in the files of a folder.

    Args:
        folder: All ``answers-*.jsonl`` in it are read. A line that a kill cut short is left out.
        writer: Number of the process; each writes a file of its own.
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
        """The text of a request, None if it was never answered."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Keep a text; it is in the file when this returns. May be called from any thread."""
        with self._lock:
            self._texts[key] = text
            with self._path.open("ab") as file:
                # The line break comes first, so that a line cut short spoils no other.
                file.write(b"\n" + json.dumps([key, text]).encode())
