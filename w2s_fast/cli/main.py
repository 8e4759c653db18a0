"""The command ``w2s-fast``: parse, call, print. Errors of the user are one line and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from w2s_fast.distributed import heartbeat, world
from w2s_fast.errors import W2SError, nearest

USAGE = """\
usage: w2s-fast COMMAND [options]

A weak-to-strong experiment: weak supervisor, weak labels, student, ceiling, gap recovered.

commands:
  run      everything, into --out DIR: results.json, plot.png, plot.svg, report.html
  sweep    many runs as one: models x losses x methods x seeds x tasks
  label    only the weak labels; says where their Parquet files are
  report   show the results in --out DIR again, and write plot and page anew
  launch   run on several accelerators or hosts (w2s-fast launch --help)
  export   a trained model of a run as a folder that transformers loads
  plan     memory and traffic of a training on machines not at hand (w2s-fast plan --help)
  doctor   what this machine offers: versions, kernels, CPU, CUDA
  bench    speed of the kernels (in a source checkout)

options of run and label (w2s-fast run --help lists all):
  --config FILE          YAML file; --print-config shows one
  --print-config         print the whole configuration and stop
  --out DIR              folder of the results (default: out)
  --losses xent logconf  losses of the student
  --seeds 0 1 2          one run of everything per seed
  --student_train.lr X   any other setting by its dotted name
  --quiet                no progress

The same command continues a run that was interrupted.
"""
CRASHED, USER_ERROR, INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    # DeepSpeed's launcher puts this in front; the environment says it too.
    args = args[1:] if args and args[0].startswith("--local_rank") else args
    return world.end(_guarded(args))


def _guarded(args: list[str]) -> int:
    """Run one command; an error the user can mend is one line."""
    try:
        return _dispatch(args)
    except W2SError as err:
        here = world.world()
        who = f" ({here.name})" if here.size > 1 else ""
        print(f"w2s-fast: error: {' '.join(str(err).split())}{who}", file=sys.stderr)
        return USER_ERROR
    except heartbeat.LostError as err:
        heartbeat.say(f"{err}; run the same command again to continue")
        return heartbeat.EXIT_CODE
    except Exception:
        if world.world().size == 1:
            raise
        traceback.print_exc()  # here: on its way out a process of several may wait for the others
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
    return COMMANDS[name](rest)


def _run(args: list[str]) -> int:
    from w2s_fast.cli.parse import load_config, make_parser

    if {"-h", "--help"} & set(args):
        print(make_parser().format_help())
        return 0
    quiet, args = _flag("--quiet", args)
    shown, args = _flag("--print-config", args)
    cfg = load_config(args)
    if shown:
        from w2s_fast.config import to_yaml

        print(to_yaml(cfg), end="")
        return 0
    from rich.console import Console

    from w2s_fast.pipeline import run
    from w2s_fast.report.terminal import print_results

    results = run(cfg, quiet=quiet)
    if world.world().first:
        print_results(results, Console())
        _say_where(Path(cfg.output_dir))
    return 0


def _label(args: list[str]) -> int:
    from w2s_fast.cli.parse import load_config, make_parser

    if {"-h", "--help"} & set(args):
        print(make_parser("w2s-fast label").format_help())
        return 0
    quiet, args = _flag("--quiet", args)
    from w2s_fast.pipeline import label

    for seed, path in label(load_config(args), quiet=quiet).items():
        if world.world().first:
            print(f"seed {seed}: {path}")
    return 0


def _report(args: list[str]) -> int:
    out = _only_out(args)
    if out is None:
        print("usage: w2s-fast report [--out DIR]   (default: out)")
        return 0
    from rich.console import Console

    from w2s_fast.report import load_results, write_report
    from w2s_fast.report.terminal import print_results
    from w2s_fast.store import write_errors

    results = load_results(out)
    with write_errors("the report", out.absolute()):
        write_report(out, results)
    print_results(results, Console())
    _say_where(out)
    return 0


def _doctor(args: list[str]) -> int:
    if args:
        print("usage: w2s-fast doctor")
        if {"-h", "--help"} & set(args):
            return 0
        raise W2SError(f"unexpected argument {args[0]!r}; doctor takes none")
    from rich.console import Console

    from w2s_fast.cli.doctor import examine, print_findings

    print_findings(examine(), Console())
    return 0


def _bench(args: list[str]) -> int:
    root = Path(__file__).resolve().parents[2]
    if not (root / "bench" / "__main__.py").is_file():
        raise W2SError(
            "the benchmarks are not part of the installed package; run this command in a source "
            "checkout of w2s_fast, installed with `pip install -e .`"
        )
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "bench", *args]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


def _launch(args: list[str]) -> int:
    from w2s_fast.cli import launch

    if not args or {"-h", "--help"} & set(args):
        print(launch.USAGE, end="")
        return 0 if args else USER_ERROR
    return launch.launch(launch.parse(args))


def _plan(args: list[str]) -> int:
    from w2s_fast.cli import estimate

    if not args or {"-h", "--help"} & set(args):
        print(estimate.USAGE, end="")
        return 0 if args else USER_ERROR
    return estimate.main(args)


def _sweep(args: list[str]) -> int:
    from w2s_fast.cli.sweep import main as sweep

    return sweep(args)


def _export(args: list[str]) -> int:
    from w2s_fast.cli.parse import load_config

    own: dict[str, str] = {}
    rest: list[str] = []
    left = list(args)
    while left:
        option, eq, value = left.pop(0).partition("=")
        if option in ("--stage", "--to"):
            own[option] = value if eq else left.pop(0) if left else ""
        else:
            rest.append(f"{option}{eq}{value}")
    if {"-h", "--help"} & set(args) or not all(own.get(name) for name in ("--stage", "--to")):
        print("usage: w2s-fast export --stage student/0/xent --to FOLDER [the options of the run]")
        return 0 if {"-h", "--help"} & set(args) else USER_ERROR
    from w2s_fast.pipeline.export import export

    export(load_config(rest), own["--stage"], Path(own["--to"]))
    print(f"model    {own['--to']}")
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": _run,
    "sweep": _sweep,
    "label": _label,
    "report": _report,
    "launch": _launch,
    "plan": _plan,
    "export": _export,
    "doctor": _doctor,
    "bench": _bench,
}


def _flag(name: str, args: list[str]) -> tuple[bool, list[str]]:
    """Return whether ``name`` is among ``args`` (dashes or underscores), and the other args."""
    rest = [a for a in args if a.replace("_", "-") != name]
    return len(rest) < len(args), rest


def _only_out(args: list[str]) -> Path | None:
    """Return the folder of ``--out``; None when help was asked for."""
    out, rest = "out", list(args)
    while rest:
        option, eq, value = rest.pop(0).partition("=")
        if option in ("-h", "--help"):
            return None
        if option != "--out" or not (eq or rest):
            raise W2SError(f"unexpected argument {option!r}; report takes only --out DIR")
        out = value if eq else rest.pop(0)
    return Path(out)


def _say_where(out: Path) -> None:
    from w2s_fast.report import PAGE, PLOT, RESULTS

    print(f"\nresults  {out / RESULTS}\nplot     {out / PLOT}.png\npage     {out / PAGE}")


if __name__ == "__main__":
    sys.exit(main())
