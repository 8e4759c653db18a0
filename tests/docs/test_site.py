"""The site builds without a warning, has its pages, and loads nothing from other hosts."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from helpers.browser import Tab, chromium_tab
from helpers.paths import ROOT

from tools.site import links, pages
from w2s_fast.files import file_lock

NEEDED = ("mkdocs", "material", "mkdocstrings_handlers")
PAGES = {  # page -> a text that it shows
    "index.html": "performance gap",
    "quick_start.html": "Run an experiment on your own data",
    "concepts.html": "(student − weak) / (ceiling − weak)",
    "architecture.html": "Architecture",
    "method_cards.html": "Selection of rows",
    "methods.html": "Notation",
    "tasks.html": "Your own data",
    "trainers.html": "transformers' Trainer",
    "distributed.html": "ZeRO",
    "clusters.html": "sweep_array.sh",
    "speed.html": "Where it is not faster",
    "speed_tables.html": "How it is measured",
    "numerics.html": "Numerics",
    "evidence.html": "MiniLM",
    "api/index.html": "linear_cross_entropy",
    "api/losses.html": "LogConf",
    "api/methods.html": "Confident",
    "coming_from.html": "openai/weak-to-strong",
    "contributing.html": "To change X, edit Y",
    "code_of_conduct.html": "Code of conduct",
    "security.html": "Security",
    "changes.html": "0.2.0",
    "migration.html": "From 0.1 to 0.2",
    "source/examples.html": "bare_loop.py",
    "source/examples/notebooks/csv_to_report.ipynb.html": "reviews.csv",
}


BROWSED = ("index.html", "method_cards.html", "speed.html", "api/index.html")


class _Page(HTMLParser):
    """What a page links to, loads and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := values.get(name))}
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))
        elif tag == "link" and values.get("rel") not in ("prev", "next", "canonical"):
            self.loaded.append(str(values["href"]))
        elif values.get("src"):
            self.loaded.append(str(values["src"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"the extra `docs` is not installed: no {', '.join(missing)}")
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base  # workers share one site
    with file_lock(base / "site.lock"):
        if not (base / "site").exists():
            _build(base / "new_site")
            (base / "new_site").rename(base / "site")
    return base / "site"


def _build(folder: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.fixture(scope="module")
def parsed(site: Path) -> dict[Path, _Page]:
    found = {path: _Page(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert len(found) > 60
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", PAGES)
def test_page_is_there(site: Path, name: str) -> None:
    assert PAGES[name] in (site / name).read_text()


@pytest.mark.slow
def test_every_link_leads_to_a_page_and_an_anchor(parsed: dict[Path, _Page]) -> None:
    for path, page in parsed.items():
        for link in page.links:
            if links.is_address(link) and not link.startswith("#"):
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / file).resolve() if file else path
            assert target.exists(), f"{path.name}: {link}"
            if anchor and target.suffix == ".html":
                assert anchor in parsed[target].ids, f"{path.name}: {link}"


@pytest.mark.slow
def test_everything_that_is_loaded_is_in_the_site(parsed: dict[Path, _Page]) -> None:
    for path, page in parsed.items():
        for source in page.loaded:
            assert not links.is_address(source) or source.startswith("data:"), (path.name, source)
            assert (path.parent / source.partition("?")[0]).exists(), f"{path.name}: {source}"


@pytest.mark.slow
def test_every_public_name_is_in_the_reference(parsed: dict[Path, _Page], site: Path) -> None:
    import w2s_fast
    from w2s_fast.losses import LOSSES
    from w2s_fast.methods import METHODS

    shown = parsed[site / "api" / "index.html"].ids
    for name in set(w2s_fast.__all__) - {"__version__"}:
        assert any(anchor.endswith(f".{name}") for anchor in shown), name
    for page, kinds in (("losses", LOSSES), ("methods", METHODS)):
        shown = parsed[site / "api" / f"{page}.html"].ids
        for kind in kinds.values():
            assert f"{kind.__module__}.{kind.__qualname__}" in shown


def test_a_name_without_a_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import w2s_fast

    monkeypatch.setattr(w2s_fast, "__all__", [*w2s_fast.__all__, "new_name"])
    with pytest.raises(ValueError, match="new_name"):
        pages.reference_pages()


@pytest.mark.parametrize(
    ("document", "link", "expected"),
    [
        ("README.md", "docs/speed.md", "speed.md"),
        ("README.md", "CONTRIBUTING.md", "contributing.md"),
        ("README.md", "docs/img/x.svg", "img/x.svg"),
        ("docs/trust.md", "methods.md#trust", "methods.md#trust"),
        ("docs/trust.md", "#p-right", "#p-right"),
        ("docs/trust.md", "https://arxiv.org/abs/2312.09390", "https://arxiv.org/abs/2312.09390"),
        ("docs/trainers.md", "../examples/trl_dpo.py", "source/examples/trl_dpo.py.md"),
        ("docs/trainers.md", "../examples", "source/examples.md"),
        ("csrc/README.md", "../docs/speed.md", "speed.md"),
        ("examples/notebooks/a.ipynb", "../../docs/tasks.md", "../../../tasks.md"),
        ("examples/notebooks/a.ipynb", "b.ipynb", "b.ipynb.md"),
    ],
)
def test_links_lead_to_pages(document: str, link: str, expected: str) -> None:
    assert links.rewrite(document, f"see [it]({link}).") == f"see [it]({expected})."
    assert links.document_of(links.page_of("docs/x.md")) == "docs/x.md"


def test_code_is_not_rewritten() -> None:
    text = "[a](docs/a.md)\n\n```text\n[a](docs/a.md)\n```\n"
    assert links.rewrite("README.md", text) == text.replace("[a](docs/a.md)", "[a](a.md)", 1)
    assert links.linked_files("README.md", text) == {"docs/a.md"}


@pytest.fixture(scope="module")
def tab(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium_tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("name", BROWSED)
@pytest.mark.parametrize(("width", "dark"), [(1300, False), (390, False), (1300, True)])
def test_page_in_a_browser(site: Path, tab: Tab, name: str, width: int, dark: bool) -> None:
    """Nothing comes from other hosts, the console is empty, and a phone scrolls downwards only."""
    tab.view(width, dark=dark)
    tab.requests.clear()
    tab.errors.clear()
    tab.open(site / name)
    tab.evaluate("localStorage.clear()")
    tab.open(site / name)
    assert [url for url in tab.requests if not url.startswith(("file:", "data:"))] == []
    assert tab.errors == []
    sizes = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll, client = tab.evaluate(sizes)
    assert scroll <= client
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert red < 80 if dark else red > 200, background


@pytest.mark.slow
def test_the_search_works_from_the_disk(site: Path, tab: Tab) -> None:
    tab.view(1300)
    tab.open(site / "api" / "index.html")
    tab.evaluate("document.querySelector('#__search').click()")
    tab.evaluate("document.querySelector('.md-search__input').focus()")
    tab.call("Input.insertText", text="quantile")
    tab.call("Input.dispatchKeyEvent", type="keyUp", key="e")
    deadline, count = time.monotonic() + 60, 0
    while not count and time.monotonic() < deadline:
        time.sleep(0.1)
        count = tab.evaluate("document.querySelectorAll('.md-search-result__item').length")
    assert count, tab.errors
