"""docs/tasks.md lists every task as it is."""

from __future__ import annotations

import re

import pytest
from helpers.paths import ROOT

from w2s_fast.tasks import TASKS
from w2s_fast.tasks._hub import HubTask

PAGE = ROOT / "docs" / "tasks.md"
ROWS = {
    match[0]: [cell.strip() for cell in match[1].split(" | ")]
    for match in re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
}


def test_the_page_lists_the_table_in_its_order() -> None:
    assert list(ROWS) == list(TASKS)
    assert {row[0] for row in ROWS.values()} == {"classification", "preference", "generation"}


@pytest.mark.parametrize("name", TASKS)
def test_a_row_says_what_the_task_is(name: str) -> None:
    task, row = TASKS[name], ROWS[name]
    assert len(row) == 3
    if isinstance(task, HubTask):
        source = f"`{task.repo}`" + (f" `{task.config}`" if task.config else "")
        assert row == [task.kind, source, ", ".join(task.class_names)]
