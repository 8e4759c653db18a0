"""The notebooks of examples/notebooks run from an empty folder, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))


def _cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def test_there_are_three() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"losses_in_a_loop", "csv_to_report", "sweep_and_compare"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_run_in_order(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are plain Python, so they run without a kernel."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, cell in enumerate(_cells(path)):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}[{i}]", "exec"), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_form(path: Path) -> None:
    """Format 4.5 with distinct ids, a title first, and neither outputs nor counts."""
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    cells = _cells(path)
    assert cells[0]["cell_type"] == "markdown" and cells[0]["source"][0].startswith("# ")
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
        text = "".join(cell["source"])
        assert not text.startswith(("%", "!")), f"{path.name}: cells are plain Python"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_links(path: Path) -> None:
    from tools.site.links import linked_files

    name = str(path.relative_to(ROOT))
    for cell in _cells(path):
        for target in linked_files(name, "".join(cell["source"])):
            assert (ROOT / target).exists(), f"{name} links to {target}"
