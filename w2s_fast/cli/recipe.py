"""``w2s-fast recipe``: list, show and run published experiments."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from w2s_fast.cli.parse import asks_for_help, load_config, take_options
from w2s_fast.errors import W2SError, nearest

if TYPE_CHECKING:
    from rich.console import Console

    from w2s_fast.cli.estimate import StepEstimate
    from w2s_fast.config import RunConfig
    from w2s_fast.recipes import Card

USAGE = """usage: w2s-fast recipe list
       w2s-fast recipe show NAME [--yaml] [--toy]
       w2s-fast recipe run NAME [--toy] [--dry-run] [--quiet] [--NAME VALUE ...]

Runs that reproduce a published table at its scale, each with a toy twin of about a minute on a CPU.

  list    name, experiment and source of every recipe
  show    models and data to download, published numbers, differences, and the cost of a step
  run     run it, with any setting of a run changed by its dotted name

  --yaml  print the configuration file instead, to launch it or to change it
  --toy   the toy twin: the same stages on an embedded task. It says nothing about the numbers
"""
_ACTIONS = ("list", "show", "run")
_RUN_FLAGS = ("--quiet", "--dry-run")


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    if not args or asks_for_help(args):
        print(USAGE, end="")
        return 0 if args else 2
    action, *rest = args
    if action not in _ACTIONS:
        raise W2SError(
            f"recipe {action!r}; expected one of {', '.join(_ACTIONS)}{nearest(action, _ACTIONS)}"
        )
    if action == "list":
        _list(rest)
        return 0
    own, rest = take_options(rest, flags=("toy", "yaml") if action == "show" else ("toy",))
    name, rest = _name(action, rest)
    return _show(name, rest, own) if action == "show" else _run(name, rest, toy="toy" in own)


def _name(action: str, args: Sequence[str]) -> tuple[str, list[str]]:
    from w2s_fast.recipes import recipe_names

    if not args or args[0].startswith("--"):
        names = ", ".join(recipe_names())
        raise W2SError(f"recipe {action} needs the name of a recipe first: one of {names}")
    return args[0], list(args[1:])


def _list(rest: Sequence[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    from w2s_fast.recipes import load_card, recipe_names

    if rest:
        raise W2SError(f"recipe list takes no arguments; found {' '.join(rest)}")
    table = Table("recipe", "experiment", "source", box=None, pad_edge=False)
    for name in recipe_names():
        card = load_card(name)
        table.add_row(name, card.title, card.paper)
    Console().print(table)


def _show(name: str, rest: Sequence[str], own: dict[str, str]) -> int:
    from rich.console import Console

    from w2s_fast.files import read_text
    from w2s_fast.recipes import load_card, run_file, toy_file

    card, file = load_card(name), toy_file(name) if "toy" in own else run_file(name)
    if rest:
        raise W2SError(f"recipe show takes a name, --yaml and --toy; found {' '.join(rest)}")
    if own:
        print(read_text(file), end="")
    else:
        print_card(card, load_config(paths=[file]), Console())
    return 0


def print_card(card: Card, cfg: RunConfig, console: Console) -> None:
    """Print what a recipe reproduces and what it costs."""
    from rich.table import Table

    from w2s_fast.cli.plan import n_devices, print_estimate

    console.print(f"{card.title}\n{card.paper}\n", highlight=False, markup=False)
    console.print("models, once:")
    for model in card.models:
        console.print(f"  {model.download}", highlight=False, markup=False, soft_wrap=True)
    console.print("data:")
    for data in card.data:
        place = f" as {data.path}" if data.path else ", read from the hub"
        content = f": {data.content}" if data.content else ""
        console.print(f"  {data.source}{place}{content}", highlight=False, markup=False)
    table = Table("published", "", "where", box=None, pad_edge=False, title_justify="left")
    for row in card.expected:
        table.add_row(row.quantity, row.value, row.source)
    console.print()
    console.print(table, highlight=False)
    console.print("\ndifferences:")
    for text in card.differences:
        console.print(f"  - {text}", highlight=False, markup=False)
    devices = n_devices(card.devices)
    console.print(f"\na step of the student on {card.devices} devices x hosts, predicted:")
    print_estimate(estimate(card, cfg, devices), cfg, devices, card.tokens, console)
    console.print(f"\nw2s-fast recipe run {card.name} --toy", highlight=False)


def estimate(card: Card, cfg: RunConfig, devices: int) -> StepEstimate:
    """Return the estimate of a step of the student at the scale of the card."""
    from w2s_fast.cli.estimate import estimate_step

    with tempfile.TemporaryDirectory() as folder:
        config = json.dumps(card.student_config)
        (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        student = replace(cfg.student, source=folder)
        return estimate_step(replace(cfg, student=student), devices, card.tokens)


def _run(name: str, rest: Sequence[str], *, toy: bool) -> int:
    from w2s_fast.cli import run
    from w2s_fast.recipes import load_card, run_file, toy_file

    card = load_card(name)
    file = toy_file(name) if toy else run_file(name)
    if not toy:
        _check_models(card, load_config([a for a in rest if a not in _RUN_FLAGS], [file]))
    return run.main(["--config", str(file), *rest])


def _check_models(card: Card, cfg: RunConfig) -> None:
    """Raise an error with the commands to run if models of the card are missing."""
    from w2s_fast.config import model_of, roles

    sources = {model_of(cfg, role).source for role in roles(cfg)}
    missing = [m for m in card.models if m.folder in sources and not Path(m.folder).exists()]
    if missing:
        commands = " && ".join(model.download for model in missing)
        raise W2SError(
            f"{', '.join(m.folder for m in missing)} not found; expected the checkpoints of the "
            f"recipe in the working directory: {commands}. Without them: --toy"
        )
