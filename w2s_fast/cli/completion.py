"""``w2s-fast completion``: print a script with which a shell completes commands and options.

shtab writes the script from an argument parser that has every command with its options; the
commands parse their arguments by themselves.
"""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from w2s_fast.cli.parse import asks_for_help
from w2s_fast.config import DEVICES, RunConfig, field_types
from w2s_fast.errors import W2SError, nearest

USAGE = """usage: w2s-fast completion [bash | zsh | tcsh]

Prints a completion script (pip install 'w2s-fast[completion]'). For bash, once:

  w2s-fast completion bash > ~/.local/share/bash-completion/completions/w2s-fast
"""
SHELLS = ("bash", "zsh", "tcsh")
_OPTION = re.compile(r"--[a-z][a-z-]*")
_FILES = (
    "config", "data", "to", "out", "output_dir", "cache_dir", "from", "hostfile", "model",
    "task.path", "task.test_path",
)  # fmt: skip
_FILE_ARGUMENTS = ("diff", "launch")  # commands that take files without an option
_SEVERAL = ("losses", "methods")  # options that take several names
# Options of run, label, sweep, export and launch beside the settings.
_OF_RUNS = ("--config", "--out", "--print-config", "--quiet", "--dry-run")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if not args or asks_for_help(args):
        print(USAGE, end="")
        return 0 if args else 2
    shell, *rest = args
    if shell not in SHELLS or rest:
        raise W2SError(
            f"completion {' '.join(args)}: expected one of {', '.join(SHELLS)}"
            f"{nearest(shell, SHELLS)}"
        )
    try:
        import shtab
    except ImportError as err:
        raise W2SError("completion needs shtab: pip install 'w2s-fast[completion]'") from err
    print(shtab.complete(make_parser(), shell=shell))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return a parser that has every command with its options."""
    import shtab

    from w2s_fast.cli.main import COMMANDS

    parser = argparse.ArgumentParser(prog="w2s-fast")
    commands = parser.add_subparsers()
    for name in COMMANDS:
        command = commands.add_parser(name, help=_purpose(name))
        for option in options(name):
            _add_option(command, option)
        if name in _WORDS:
            command.add_argument("words", nargs="*", choices=_WORDS[name]())
        if name in _FILE_ARGUMENTS:
            files: Any = command.add_argument("files", nargs="*")
            files.complete = shtab.FILE
    return parser


def options(command: str) -> list[str]:
    """Return the options of a command."""
    usage = getattr(importlib.import_module(f"w2s_fast.cli.{command}"), "USAGE", "")
    found = dict.fromkeys(_OPTION.findall(usage))
    if command in ("run", "label", "sweep", "export", "launch"):
        found |= dict.fromkeys(_OF_RUNS)
    if command == "sweep":
        from w2s_fast.sweeps.sweep_config import SweepConfig

        found |= dict.fromkeys(f"--{name}" for name in field_types(SweepConfig))
    elif command in ("run", "label", "export", "launch", "plan", "recipe"):
        found |= dict.fromkeys(f"--{name}" for name in field_types(RunConfig))
    return list(found)


def _add_option(command: argparse.ArgumentParser, option: str) -> None:
    import shtab

    name = option.removeprefix("--").removeprefix("run.")
    choices = _CHOICES.get(name, lambda: None)()
    nargs = "*" if name in _SEVERAL else None
    action: Any = command.add_argument(option, nargs=nargs, choices=choices)
    if name in _FILES:
        action.complete = shtab.FILE


def _purpose(command: str) -> str:
    """Return the line of the help that describes a command."""
    from w2s_fast.cli import main as program

    found = re.search(rf"^  {command}\s+(.*)$", program.USAGE, re.MULTILINE)
    return found[1] if found else ""


def _losses() -> list[str]:
    from w2s_fast.losses import LOSSES

    return list(LOSSES)


def _methods() -> list[str]:
    from w2s_fast.methods import METHODS

    return list(METHODS)


def _tasks() -> list[str]:
    from w2s_fast.tasks import TASKS

    return list(TASKS)


def _recipes() -> list[str]:
    from w2s_fast.recipes import recipe_names

    return ["list", "show", "run", *recipe_names()]


_CHOICES: Mapping[str, Callable[[], list[str] | None]] = {
    "losses": _losses,
    "methods": _methods,
    "task.name": _tasks,
    "device": lambda: list(DEVICES),
}
_WORDS: Mapping[str, Callable[[], Sequence[str]]] = {
    "recipe": _recipes,
    "completion": lambda: SHELLS,
}
