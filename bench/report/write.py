"""``python -m bench report``: write the speed tables of the documents from the committed rows.

``--check`` writes nothing and fails where a document differs from its rows, so that no number in
them was typed by hand.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.cases import w2s
from bench.harness import results
from bench.harness.environment import ROOT
from bench.report import tables, trainer_table

_NONE = "No rows have been recorded yet: `python -m bench run --record`.\n"
# document -> marker -> what stands between its begin and end
DOCUMENTS: dict[str, dict[str, Callable[[tables.Table], str]]] = {
    "README.md": {"speed": tables.summary},
    "docs/fused_head.md": {"head": tables.linear_summary},
    "docs/speed.md": {
        "machine": tables.machine,
        "cross_entropy": tables.cross_entropy,
        "accuracy": tables.accuracy,
        "linear": tables.linear,
        "two_class": tables.two_class,
        "quantile": tables.quantile,
        "heads": tables.heads,
        "products": tables.products,
    },
    "docs/distributed.md": {"scale": tables.scale},
    "docs/trainers.md": {"steps": trainer_table.steps},
    w2s.PAGE: w2s.blocks(),
}


def render(text: str, parts: dict[str, Callable[[tables.Table], str]], table: tables.Table) -> str:
    """The document with its generated parts written anew.

    Raises:
        ValueError: if a marker is missing.
    """
    for name, make in parts.items():
        begin, end = f"<!-- generated:{name} begin -->\n", f"<!-- generated:{name} end -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"no markers {begin.strip()} ... {end}")
        body = make(table) if table else _NONE
        text = pattern.sub(lambda _, body=body, b=begin, e=end: b + body + e, text)
    return text


def quotable(found: list[results.Row]) -> list[results.Row]:
    """The rows, if every one may be quoted.

    Raises:
        ValueError: if a row is from a toy run or a changed tree.
    """
    for row in found:
        if row["quick"] or row["dirty"]:
            raise ValueError(f"row {results.key(row)} was measured quick or on a changed tree")
    return found


def main(args: list[str]) -> int:
    """Write the documents, or with ``--check`` compare them; exit code 1 if one differs."""
    p = argparse.ArgumentParser(prog="python -m bench report", description=__doc__.splitlines()[0])
    p.add_argument("--check", action="store_true", help="fail where a document differs")
    p.add_argument("--results", type=Path, default=results.RESULTS / "cpu", help="%(default)s")
    options = p.parse_args(args)
    stale = []
    try:
        table = tables.Table(quotable(results.load(options.results)))
        for name, parts in DOCUMENTS.items():
            path = ROOT / name
            text = path.read_text()
            new = render(text, parts, table)
            if new != text:
                stale.append(name)
                if not options.check:
                    path.write_text(new)
    except (OSError, ValueError) as e:
        print(f"bench report: {e}", file=sys.stderr)
        return 2
    for name in stale:
        print(f"{name}: {'differs from the rows' if options.check else 'written'}")
    if stale and options.check:
        print("run `python -m bench report`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
