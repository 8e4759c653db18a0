"""docs/support.md: current, complete, and true: every cell that says yes is run against fp64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers.support_calls import BY_NAME, FP64
from helpers.support_losses import DRIVERS

from tools.support_matrix import write as document
from tools.support_matrix.table import DTYPES, ENTRIES, NO, REFERENCE, Entry, cell
from w2s_fast.ops import OPS, dispatch, use_backend

ROWS = [(name, i) for name, entry in BY_NAME.items() for i in range(len(entry.options))]


def title(row: Any) -> str | None:
    if isinstance(row, tuple):
        return f"{row[0]}-{BY_NAME[row[0]].options[row[1]].name.replace('`', '')}"
    return str(row).rpartition(".")[2]


@pytest.mark.parametrize("dtype", DTYPES, ids=title)
@pytest.mark.parametrize("row", ROWS, ids=title)
def test_cell(backend: str, row: tuple[str, int], dtype: torch.dtype, one_rank: None) -> None:
    """Served and right, or refused with the words of the table."""
    entry = BY_NAME[row[0]]
    option = copy.copy(entry.options[row[1]])
    found = cell(entry, option, backend, dtype)
    if found.state == NO:
        assert found.why == option.unsupported
        with pytest.raises(option.error, match=option.message):
            DRIVERS[row[0]](backend, dtype, option)
        return
    if found.state == REFERENCE and dtype == FP64:
        with use_backend(backend):
            served = dispatch.backend(entry.op, torch.empty(0, dtype=dtype))
        assert served.__name__ == dispatch.MODULES[entry.op]["ref"]
    DRIVERS[row[0]](backend, dtype, option)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: e.name.split()[0])
def test_every_argument_has_a_row(entry: Entry) -> None:
    asked = {k for option in entry.options for k in option.call}
    named = {w for option in entry.options for w in option.name.replace("`", "").split()}
    missing = {a for a in entry.arguments() if a not in asked | named}
    assert not missing, f"{entry.name}: no row of docs/support.md shows {sorted(missing)}"
    gone = set(entry.data) - {
        n for f in entry.functions() for n in __import__("inspect").signature(f).parameters
    }
    assert not gone, f"{entry.name}: takes {sorted(gone)}, which no function has"


def test_every_op_of_the_table_has_an_entry() -> None:
    assert {entry.op for entry in ENTRIES if entry.op} == set(OPS)
    assert set(DRIVERS) == set(BY_NAME)


def test_document_is_current() -> None:
    pytest.importorskip("triton", reason="backend triton is missing")
    assert document.main(["--check"]) == 0, "run `python -m tools.support_matrix.write`"


def test_a_changed_document_is_noticed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("triton", reason="backend triton is missing")
    page = tmp_path / "support.md"
    monkeypatch.setattr(document, "PAGE", page)
    assert document.main([]) == 0 and page.read_text() == document.page()
    assert document.main(["--check"]) == 0
    page.write_text(page.read_text().replace("| yes |", "| no |", 1))
    assert document.main(["--check"]) == 1
    assert "differs from the code" in capsys.readouterr().out
