"""``python -m bench architectures``: compare every class of transformers, patched and unpatched.

Causal, image-text and sequence-to-sequence classes are built tiny and trained for one step in fp32
and bf16. The rows are written to bench/results/architectures.jsonl, the table to
docs/architectures.md; the exit code is 1 if a class is wrong or crashes. Processes check a few
classes each, one process at a time, so that a crash of the interpreter loses one class.

``--only A,B`` prints the rows of these classes. ``--check`` computes nothing and fails if the
document differs from the rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import warnings
from collections.abc import Iterable, Iterator

from bench.architectures.support_page import PAGE, ROWS, Row, load, page
from bench.harness.environment import ROOT

BATCH = 16
TIMEOUT_S = 600


def main(args: list[str]) -> int:
    """Write rows and document, or print or check them; exit code 1 for a failure."""
    summary = __doc__.splitlines()[0]
    p = argparse.ArgumentParser(prog="python -m bench architectures", description=summary)
    p.add_argument("--check", action="store_true", help="fail if the document differs")
    p.add_argument("--only", default="", help="comma-separated names of classes")
    p.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = p.parse_args(args)
    if options.worker:
        return _check_classes(options.worker)
    if options.check:
        return _check_page()
    only = [name for name in options.only.split(",") if name]
    rows = list(check_all(only or None))
    for row in rows:
        if only or is_fault(row):
            print(json.dumps(row))
    if not only:
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
        PAGE.write_text(page(rows))
        print(f"{PAGE.relative_to(ROOT)}: written")
    return int(any(is_fault(row) for row in rows))


def is_fault(row: Row) -> bool:
    """Return whether a class is wrong or crashes in a dtype."""
    return any(row[dtype] in ("wrong", "crashed") for dtype in ("fp32", "bf16"))


def check_all(only: Iterable[str] | None = None) -> Iterator[Row]:
    """Yield the rows of all or some classes, in the order of transformers' mappings."""
    from bench.architectures.tiny_models import classes

    groups = {name: group for group, name in classes()}
    names = [name for name in groups if only is None or name in set(only)]
    for start in range(0, len(names), BATCH):
        remaining = names[start : start + BATCH]
        while remaining:
            rows, reason = _in_process(remaining)
            for row in rows:
                yield {"class": row.pop("class"), "group": groups[remaining.pop(0)], **row}
            if remaining and reason:  # the next class ended the process
                name = remaining.pop(0)
                yield {
                    "class": name, "group": groups[name], "fp32": "crashed", "bf16": "crashed",
                    "fp32_why": reason, "bf16_why": reason,
                }  # fmt: skip


def _in_process(names: list[str]) -> tuple[list[Row], str]:
    """Return the rows that a process completed, and how it ended."""
    command = [sys.executable, "-m", "bench", "architectures", "--worker", *names]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip
        out, reason = done.stdout, f"its process ended with {done.returncode}"
    except subprocess.TimeoutExpired as e:
        out = e.stdout.decode() if isinstance(e.stdout, bytes) else e.stdout or ""
        reason = f"its process took more than {TIMEOUT_S} s"
    lines = [line for line in out.splitlines() if line.startswith('{"class"')]
    return [json.loads(line) for line in lines], reason


def _check_classes(names: list[str]) -> int:
    """Check classes in this process; print the row of each."""
    import torch
    import transformers

    from bench.architectures.check import check

    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    for name in names:
        row: Row = {"class": name}
        for dtype, outcome in check(name).items():
            row |= {dtype: outcome.state, f"{dtype}_why": outcome.why}
        print(json.dumps(row | versions), flush=True)
    return 0


def _check_page() -> int:
    if PAGE.is_file() and PAGE.read_text() == page(load()):
        return 0
    print("docs/architectures.md differs from its rows; run `python -m bench architectures`")
    return 1
