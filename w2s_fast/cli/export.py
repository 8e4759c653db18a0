"""``w2s-fast export``: write a trained model as a folder that transformers loads."""

from __future__ import annotations

from collections.abc import Sequence

from w2s_fast.cli.parse import (
    PRINT,
    asks_for_help,
    load_config,
    print_config,
    take_options,
    take_run_options,
)
from w2s_fast.errors import W2SError
from w2s_fast.paths import user_path

USAGE = """usage: w2s-fast export --stage student/0/xent --to FOLDER [--push OWNER/NAME] [--public]
                       [the options of the run]

Writes a trained model of a finished run as a folder that transformers loads, with a model card.

  --stage NAME        weak/SEED, ceiling/SEED, student/SEED/LOSS or student/SEED/METHOD+LOSS
  --to FOLDER         must not exist, or be empty
  --push OWNER/NAME   upload the folder to this repository of the Hugging Face hub, made private
                      unless it exists (pip install 'w2s-fast[hf]'; log in with `hf auth login`)
  --public            of --push: make it public
"""


def main(args: Sequence[str]) -> int:
    """Run the command; return the exit code."""
    own, rest = take_options(args, values=("stage", "to", "push"), flags=("public",))
    if asks_for_help(args) or not {"stage", "to"} <= own.keys():
        print(USAGE, end="")
        return 0 if asks_for_help(args) else 2
    run_options, settings = take_run_options(rest)
    cfg = load_config(settings)
    if PRINT in run_options:
        print_config(cfg, run_options[PRINT])
        return 0
    from w2s_fast.pipeline.export import export
    from w2s_fast.pipeline.push import check_push, push

    if "push" in own:
        check_push(own["push"])
    elif "public" in own:
        raise W2SError("--public without --push; name the repository, as in --push OWNER/NAME")

    folder = user_path(own["to"], "--to")
    export(cfg, own["stage"], folder, quiet="quiet" in run_options)
    print(f"model    {folder}")
    if "push" in own:
        print(f"pushed   {push(folder, own['push'], public='public' in own)}")
    return 0
