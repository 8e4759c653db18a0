"""``python -m bench COMMAND ...``, one of ``COMMANDS``; without a name it measures."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "run": "run",
    "compare": "compare",
    "scale": "cases.scale",
    "heads": "cases.heads",
    "products": "cases.products",
    "trainers": "cases.trainers",
    "w2s": "cases.w2s",
    "architectures": "architectures.command",
    "report": "report.documents",
    "plot": "report.pictures",
    "gpu": "gpu.suite",
}


def main(args: list[str]) -> int:
    """Hand the arguments to one of the commands; return its exit code."""
    name, rest = (args[0], args[1:]) if args and args[0] in COMMANDS else ("run", args)
    return importlib.import_module(f"bench.{COMMANDS[name]}").main(rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
