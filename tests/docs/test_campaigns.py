"""The command of the campaigns, and docs/robustness.md beside the recorded rows."""

from __future__ import annotations

import json
import re
import signal
import sys
import types
from collections.abc import Iterable
from pathlib import Path

import campaigns.__main__ as command
import pytest
from campaigns import figures
from campaigns.outcome import Outcome
from helpers.paths import ROOT

MACHINE = {
    "date": "2026-01-02T03:04:05Z", "commit": "abc", "processor": "cpu", "python": "3",
    "torch": "2",
}  # fmt: skip


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A campaign in which odd cases fail."""
    module = types.ModuleType("odd_campaign")

    def run(cases: Iterable[int], seed: int, folder: Path) -> Outcome:
        outcome = Outcome()
        assert folder.is_dir() and seed == 3
        for i in cases:
            outcome.cases += 1
            outcome.count("even" if i % 2 == 0 else "odd")
            if i % 2:
                outcome.fail(i, "odd\nnumber")
        return outcome

    module.__dict__["run"] = run
    monkeypatch.setitem(sys.modules, "odd_campaign", module)
    monkeypatch.setitem(command.CAMPAIGNS, "odd", "odd_campaign")


def test_a_campaign_is_counted_and_recorded(
    odd: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "machine", lambda: MACHINE)
    rows = tmp_path / "rows.json"
    call = ["odd", "--seed", "3", "--record", "--rows", str(rows)]
    assert command.main([*call, "--cases", "4"]) == 1
    assert "FAILED case 3: odd number\nodd: 4 cases, 2 failed" in capsys.readouterr().out
    assert command.main([*call, "--first", "6", "--cases", "1"]) == 0
    (row,) = json.loads(rows.read_text())  # the newest replaces
    counts = {"campaign": "odd", "cases": 1, "kinds": {"even": 1}, "failures": []}
    assert row == {**counts, "seed": 3, "seconds": row["seconds"], **MACHINE}
    assert command.main(["odd", "--seed", "3", "--seconds", "0"]) == 0
    assert "odd: 0 cases" in capsys.readouterr().out


def test_a_signal_ends_a_campaign_after_its_case() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with command.until_signal() as stopped:
        cases = command.indices(0, None, None, stopped)
        assert next(cases) == 0
        signal.raise_signal(signal.SIGTERM)
        assert list(cases) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_changed_tree_is_not_recorded(
    odd: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(figures, "environment", lambda: {"dirty": True})
    assert command.main(["odd", "--record"]) == 2
    assert capsys.readouterr().err.startswith("campaigns: the tree has changes")


def test_the_page_shows_the_rows() -> None:
    assert figures.report(check=True), "run `PYTHONPATH=tests python -m campaigns report`"


def test_a_changed_row_is_noticed(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.json", tmp_path / "page.md"
    outcome = Outcome(1234, {"even": 7}, ["case 1: wrong"])
    figures.record(figures.row("odd", outcome, 0, 90.0, MACHINE), rows)
    page.write_text(figures.PAGE.read_text())
    assert not figures.report(page, rows) and figures.report(page, rows, check=True)
    text = page.read_text()
    assert "| `odd` | 1,234 | 1 | 0 | 2 | 2026-01-02 | abc |" in text
    assert "- `odd`: even 7.\n  - failure: case 1: wrong\n" in text
    rows.write_text(rows.read_text().replace("1234", "1235"))
    assert not figures.report(page, rows, check=True)


def test_the_page_explains_every_campaign_and_make_runs_it() -> None:
    explained = set(re.findall(r"^\*\*(\w+)\.\*\*", figures.PAGE.read_text(), re.MULTILINE))
    recipe = (ROOT / "Makefile").read_text().partition("\ncampaigns:")[2].partition("\n\n")[0]
    run = set(re.findall(r"\) (\w+) --", recipe))
    assert explained == run == set(command.CAMPAIGNS)
