"""Hooks of mkdocs: documents outside of docs/, links to source files, and generated pages."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

from tools.site.links import (
    DOCS,
    ELSEWHERE,
    ROOT,
    SOURCE,
    document_of,
    linked_files,
    outside_fences,
    page_of,
    rewrite,
)
from tools.site.pages import files_of, reference_pages, source_page

_MARKER = re.compile(r"^<!-- generated:\S+ (?:begin|end) -->$", re.MULTILINE)
_BAR = re.compile(r"`[^`\n]*`")
_SHIM = "https://unpkg.com/iframe-worker/shim"  # what the plugin `offline` loads; ours is in docs/
_EXTRA = ("examples",)  # folders that have a page whether or not a document links to them


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not files of docs/."""
    documents = {file: (ROOT / file).read_text() for file in _documents()}
    pages = {ELSEWHERE[file]: documents[file] for file in ELSEWHERE}
    pages |= reference_pages()
    for path in _sources(documents):
        pages[page_of(str(path.relative_to(ROOT)))] = source_page(path)
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to pages, and separate generated tables from their markers."""
    name = page.file.src_uri
    text = outside_fences(markdown, lambda part: _BAR.sub(_bare, _MARKER.sub("", part)))
    if name.startswith((f"{SOURCE}/", "api/")):
        return text
    return rewrite(document_of(name), text)


def _bare(code: re.Match[str]) -> str:
    """Return code of a table cell without the backslashes that GitHub needs before a bar."""
    return code[0].replace("\\|", "|")


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Load the search of pages that are read from the disk from the site itself."""
    return output.replace(_SHIM, get_relative_url("search_from_disk.js", page.file.url))


def _documents() -> list[str]:
    return [*ELSEWHERE, *(DOCS + p.name for p in sorted((ROOT / "docs").glob("*.md")))]


def _sources(documents: dict[str, str]) -> list[Any]:
    """Return linked files and folders that are no documents, and what the folders list."""
    linked = {target for file, text in documents.items() for target in linked_files(file, text)}
    linked = {t for t in linked if t not in ELSEWHERE and not t.startswith(DOCS)}
    paths = {ROOT / name for name in (*linked, *_EXTRA)}
    return sorted(paths | {f for path in paths for f in files_of(path)})
