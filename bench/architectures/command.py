"""``python -m bench architectures``: compare every class of transformers with itself, patched.

Causal, image-text and sequence-to-sequence classes are built tiny and trained for one step in fp32
and bf16. Rows go to bench/results/architectures.jsonl and the table to docs/architectures.md; the
exit code is 1 where a class is wrong or crashes. One process at a time does the work, a few classes
each, so that one that ends its interpreter takes nothing else with it.

``--only A,B`` prints what becomes of these classes. ``--check`` computes nothing and fails where
the document differs from the rows.
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
    """Write rows and document, or print or compare them; exit code 1 for a failure."""
    summary = __doc__.splitlines()[0]
    p = argparse.ArgumentParser(prog="python -m bench architectures", description=summary)
    p.add_argument("--check", action="store_true", help="fail where the document differs")
    p.add_argument("--only", default="", help="comma-separated classes to look at")
    p.add_argument("--worker", nargs="*", help=argparse.SUPPRESS)
    options = p.parse_args(args)
    if options.worker:
        return _work(options.worker)
    if options.check:
        return _check()
    wanted = [name for name in options.only.split(",") if name]
    found = list(sweep(wanted or None))
    for row in found:
        if wanted or bad(row):
            print(json.dumps(row))
    if not wanted:
        ROWS.write_text("".join(json.dumps(row) + "\n" for row in found))
        PAGE.write_text(page(found))
        print(f"{PAGE.relative_to(ROOT)}: written")
    return int(any(bad(row) for row in found))


def bad(row: Row) -> bool:
    """Whether a class is wrong or crashes in a dtype."""
    return any(row[dtype] in ("wrong", "crashed") for dtype in ("fp32", "bf16"))


def sweep(only: Iterable[str] | None = None) -> Iterator[Row]:
    """Rows of all classes, or of some, in the order of transformers' mappings."""
    from bench.architectures.tiny_models import classes

    groups = {name: group for group, name in classes()}
    names = [name for name in groups if only is None or name in set(only)]
    for start in range(0, len(names), BATCH):
        left = names[start : start + BATCH]
        while left:
            found, ended = _in_process(left)
            for row in found:
                yield {"class": row.pop("class"), "group": groups[left.pop(0)], **row}
            if left and ended:  # the next one took the process with it
                name = left.pop(0)
                yield {
                    "class": name, "group": groups[name], "fp32": "crashed", "bf16": "crashed",
                    "fp32_why": ended, "bf16_why": ended,
                }  # fmt: skip


def _in_process(names: list[str]) -> tuple[list[Row], str]:
    """Rows of the classes that a process came to, and how it ended if it did not reach all."""
    command = [sys.executable, "-m", "bench", "architectures", "--worker", *names]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            timeout=TIMEOUT_S,
        )  # fmt: skip
        out, ended = done.stdout, f"its process ended with {done.returncode}"
    except subprocess.TimeoutExpired as e:
        out = e.stdout.decode() if isinstance(e.stdout, bytes) else e.stdout or ""
        ended = f"its process took more than {TIMEOUT_S} s"
    lines = [line for line in out.splitlines() if line.startswith('{"class"')]
    return [json.loads(line) for line in lines], ended


def _work(names: list[str]) -> int:
    """Print the row of each class."""
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


def _check() -> int:
    if PAGE.is_file() and PAGE.read_text() == page(load()):
        return 0
    print("docs/architectures.md differs from its rows; run `python -m bench architectures`")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
