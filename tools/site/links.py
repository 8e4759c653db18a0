"""Addresses of the site: which page shows which file of the repository."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
# Documents that lie outside of docs/, and their pages.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CODE_OF_CONDUCT.md": "code_of_conduct.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changes.md",
    "csrc/README.md": "core.md",
}
SOURCE = "source"  # the folder of pages that show source files and folders
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)


def page_of(file: str) -> str:
    """Return the page that shows a file or folder of the repository (``docs/x.md`` -> ``x.md``)."""
    if file in ELSEWHERE:
        return ELSEWHERE[file]
    if file.startswith(DOCS):
        return file.removeprefix(DOCS)
    return f"{SOURCE}/{file.rstrip('/')}.md"


def document_of(page: str) -> str:
    """Return the file of the repository that a page shows."""
    return {page: file for file, page in ELSEWHERE.items()}.get(page, DOCS + page)


def is_address(link: str) -> bool:
    """Whether a link is an address or an anchor of its own page, not a file."""
    return link.startswith("#") or ":" in link


def target_of(document: str, link: str) -> str:
    """Return the file that a relative link in a document leads to, without its anchor."""
    path = link.partition("#")[0]
    return posixpath.normpath(posixpath.join(posixpath.dirname(document), path))


def linked_files(document: str, text: str) -> set[str]:
    """Return the files and folders of the repository that a document links to."""
    links = [m[2] for part in _prose(text) for m in _LINK.finditer(part)]
    return {target_of(document, link) for link in links if not is_address(link)}


def rewrite(document: str, text: str) -> str:
    """Replace links to files by links to their pages; code blocks stay as they are."""
    here = posixpath.dirname(page_of(document)) or "."

    def replace(m: re.Match[str]) -> str:
        if is_address(m[2]):
            return m[0]
        anchor = m[2].partition("#")[1:]
        page = posixpath.relpath(page_of(target_of(document, m[2])), here)
        return f"{m[1]}({page}{''.join(anchor)})"

    return outside_fences(text, lambda part: _LINK.sub(replace, part))


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """Apply a function to the parts of a text that are not in fenced code blocks."""
    parts = _FENCE.split(text)
    parts[::2] = [change(part) for part in parts[::2]]
    return "".join(parts)


def _prose(text: str) -> list[str]:
    return _FENCE.split(text)[::2]
