"""The command ``w2s-fast``: dispatch to one module per command, and turn errors into exit codes."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from w2s_fast.cli.output import READER_GONE, accept_any_encoding, discard_output, flush_output
from w2s_fast.distributed import heartbeat
from w2s_fast.distributed.world import exit_process, get_world
from w2s_fast.errors import W2SError, nearest, terminal_line

USAGE = """\
usage: w2s-fast COMMAND [options]

A weak-to-strong experiment: weak supervisor, weak labels, student, ceiling, gap recovered.

commands:
  run      run everything, into --out DIR: results.json, plot.png, plot.svg, report.html
  sweep    many runs as one: models x losses x methods x seeds x tasks
  label    compute only the weak labels, into --out DIR/labels/SEED: Parquet with texts and classes
  report   print the results in --out DIR, and write plot and page again; with --from FOLDER
           those of predictions that others made
  diff     compare the settings and results of two runs
  launch   run on several accelerators or hosts (w2s-fast launch --help)
  export   write a trained model of a run as a folder that transformers loads; --push to the hub
  recipe   list, show and run published experiments (w2s-fast recipe --help)
  predict  class probabilities of new texts by an exported model (w2s-fast predict --help)
  plan     estimate memory and traffic of a training on other machines (w2s-fast plan --help)
  completion  print a script with which bash, zsh or tcsh completes commands and options
  doctor   show what this machine offers: versions, kernels, CPU, CUDA
  bench    measure the speed of the kernels (in a source checkout)

options of run, label, sweep, export and launch (w2s-fast run --help lists all):
  --config FILE          YAML file; --print-config shows one
  --print-config         print the whole configuration and stop; --print-config=skip_default prints
                         what differs from the defaults
  --out DIR              folder of the results (default: out)
  --losses xent logconf  losses of the student (of a sweep: --run.losses)
  --seeds 0 1 2          one run of everything per seed (of a sweep: --run.seeds)
  --student_train.lr X   any other setting by its dotted name
  --quiet                no progress
  --dry-run              of run and sweep: print the stages, and compute nothing

The same command continues a run that was interrupted.
"""
# Each is the module w2s_fast.cli.COMMAND with a function `main(args)` that returns the exit code.
COMMANDS = (
    "run", "sweep", "label", "report", "diff", "launch", "recipe", "plan", "export", "predict",
    "completion", "doctor", "bench",
)  # fmt: skip
CRASHED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    # torch prints the C++ stack of a connection that fails, and raises an error that says the same.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    os.environ["MPLBACKEND"] = "agg"  # figures are files; another name may be no backend at all
    # DeepSpeed's launcher inserts this; the environment has the same value.
    args = args[1:] if args and args[0].startswith("--local_rank") else args
    accept_any_encoding()
    try:
        code = _run_command(args)
        flush_output()
    except BrokenPipeError:
        discard_output()
        code = READER_GONE
    except SystemExit as err:  # rich's answer to a broken pipe
        if not isinstance(err.__context__, BrokenPipeError):
            raise
        code = READER_GONE
    return exit_process(code)


def _run_command(args: list[str]) -> int:
    """Run one command; print an error that the user can fix as one line."""
    try:
        return _dispatch(args)
    except W2SError as err:
        world = get_world()
        process = f" ({world.name})" if world.size > 1 else ""
        print(f"w2s-fast: error: {terminal_line(err)}{process}", file=sys.stderr)
        return USER_ERROR
    except heartbeat.LostError as err:
        heartbeat.print_stderr(f"{err}; run the same command again to continue")
        return heartbeat.EXIT_CODE
    except BrokenPipeError:
        raise
    except Exception:
        if get_world().size == 1:
            raise
        # Printed now: one process of several may wait for the others before it exits.
        traceback.print_exc()
        return CRASHED
    except KeyboardInterrupt:
        print("w2s-fast: interrupted; the same command continues", file=sys.stderr)
        return INTERRUPTED


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if args else USER_ERROR
    if args[0] == "--version":
        from w2s_fast.version import __version__

        print(__version__)
        return 0
    name, *rest = args
    if name not in COMMANDS:
        raise W2SError(
            f"unknown command {name!r}; expected one of {', '.join(COMMANDS)}"
            f"{nearest(name, COMMANDS)}"
        )
    exit_code: int = importlib.import_module(f"w2s_fast.cli.{name}").main(rest)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
