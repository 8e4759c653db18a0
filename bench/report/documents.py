"""``python -m bench report``: write the generated tables of the documents from committed rows.

``--check`` writes nothing and fails if a document differs from its rows, so that no number in the
documents is typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.alarm import table as alarm_table
from bench.cases import verifiers, w2s
from bench.deception import table as deception_table
from bench.delta import table as delta_table
from bench.evidence import table as evidence_tables
from bench.harness.environment import ROOT
from bench.harness.row_files import RESULTS, Row, key, load
from bench.intervals import table as interval_tables
from bench.label_models import table as label_model_tables
from bench.labeling import table as labeling_tables
from bench.reasoning import table as reasoning_table
from bench.report import headlines, method_cards, speed_tables, trainer_table
from bench.report.measured_rows import MeasuredRows
from bench.side_by_side import table as side_by_side_tables
from bench.supervised import table as supervised_tables

Table = Callable[[MeasuredRows], str]
# document -> marker -> what makes the text between its begin and end
DOCUMENTS: dict[str, dict[str, Table]] = {
    "README.md": {"speed": speed_tables.summary, "evidence": evidence_tables.blocks()["gaps"]},
    "docs/fused_head.md": {"head": speed_tables.linear_summary},
    "docs/speed.md": {
        "losses": headlines.losses,
        "heads": headlines.heads,
        "others": headlines.others,
    },
    "docs/speed_tables.md": {
        "machine": speed_tables.machine,
        "cross_entropy": speed_tables.cross_entropy,
        "accuracy": speed_tables.accuracy,
        "linear": speed_tables.linear,
        "logprob_entropy": speed_tables.logprob_entropy,
        "info_nce": speed_tables.info_nce,
        "two_class": speed_tables.two_class,
        "quantile": speed_tables.quantile,
        "heads": speed_tables.heads,
        "products": speed_tables.products,
    },
    "docs/distributed.md": {"scale": speed_tables.scale},
    "docs/trainers.md": {"steps": trainer_table.steps},
    w2s.PAGE: w2s.blocks(),
    evidence_tables.PAGE: evidence_tables.blocks(),
    method_cards.PAGE: method_cards.blocks(),
    verifiers.PAGE: verifiers.blocks(),
    interval_tables.PAGE: interval_tables.blocks(),
    label_model_tables.PAGE: label_model_tables.blocks(),
    labeling_tables.PAGE: labeling_tables.blocks(),
    supervised_tables.PAGE: supervised_tables.blocks(),
    alarm_table.PAGE: alarm_table.blocks(),
    deception_table.PAGE: deception_table.blocks(),
    reasoning_table.PAGE: reasoning_table.blocks(),
    delta_table.PAGE: delta_table.blocks(),
    side_by_side_tables.PAGE: side_by_side_tables.blocks(),
}


def regenerate(text: str, tables: dict[str, Table], rows: MeasuredRows) -> str:
    """Return a document with its generated tables replaced.

    Raises:
        ValueError: A marker is missing.
    """
    for name, make in tables.items():
        begin, end = f"<!-- generated:{name} begin -->\n", f"<!-- generated:{name} end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no markers {begin.strip()} ... {end}")
        body = make(rows) if rows else "No rows have been recorded yet.\n"
        text = pattern.sub(lambda _, new=begin + body + end: new, text)
    return text


def quotable(rows: list[Row]) -> list[Row]:
    """Return the rows if all of them may be quoted.

    Raises:
        ValueError: A row was measured with ``--quick`` or on a changed tree, or candidates of one
            table cell on different processors or commits, whose ratio says nothing.
    """
    first: dict[tuple[object, ...], Row] = {}
    for row in rows:
        if row["quick"] or row["dirty"]:
            raise ValueError(f"row {key(row)} was measured quick or on a changed tree")
        if "skipped" in row:
            continue
        other = first.setdefault(key({**row, "provider": ""}), row)
        if any(row[name] != other[name] for name in ("cpu", "git_sha")):
            raise ValueError(
                f"row {key(row)} was measured on {row['cpu']} at {row['git_sha']}, and "
                f"{other['provider']} on {other['cpu']} at {other['git_sha']}; measure all "
                "candidates in one run"
            )
    return rows


def main(args: list[str]) -> int:
    """Write the documents, or with ``--check`` compare them; exit code 1 if one differs."""
    p = argparse.ArgumentParser(prog="python -m bench report", description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true", help="fail if a document differs")
    p.add_argument("--results", type=Path, default=RESULTS / "cpu", help="%(default)s")
    options = p.parse_args(args)
    outdated = []
    try:
        rows = MeasuredRows(quotable(load(options.results)))
        for name, tables in DOCUMENTS.items():
            path = ROOT / name
            text = path.read_text()
            new = regenerate(text, tables, rows)
            if new != text:
                outdated.append(name)
                if not options.check:
                    path.write_text(new)
    except (OSError, ValueError) as e:
        print(f"bench report: {e}", file=sys.stderr)
        return 2
    for name in outdated:
        print(f"{name}: {'differs from the rows' if options.check else 'written'}")
    if outdated and options.check:
        print("run `python -m bench report`")
        return 1
    return 0
