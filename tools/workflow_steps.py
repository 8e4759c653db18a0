"""``python -m tools.workflow_steps``: run the scripts of the GitHub workflows on this machine.

    python -m tools.workflow_steps lint docs
    python -m tools.workflow_steps wheels --only "build 3.11" --env PIP_EXTRA_INDEX_URL=

Each job's ``run`` steps are executed in order in the current folder, as a runner does: in bash that
stops at the first error, with the environment of workflow and step, once for each value of the
matrix. Actions (``uses``) are left out: the checkout and the Python are those that are here.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from w2s_fast.version import __version__

FOLDER = Path(".github/workflows")
_EXPRESSION = re.compile(r"\$\{\{\s*matrix\.(\w+)\s*\}\}")


@dataclass(frozen=True)
class Step:
    """A script of a workflow.

    Attributes:
        name: Workflow, job, values of the matrix and step.
        script: What bash runs.
        env: Variables of workflow and step.
    """

    name: str
    script: str
    env: Mapping[str, str]


def load(path: Path) -> dict[str, Any]:
    """Read a workflow; YAML 1.1 reads its key ``on`` as True."""
    values = yaml.safe_load(path.read_text())
    return {"on" if key is True else key: value for key, value in values.items()}


def steps(path: Path) -> Iterator[Step]:
    """Yield the scripts of a workflow in order, those of a job for each value of its matrix."""
    workflow = load(path)
    for job, content in workflow["jobs"].items():
        matrix = content.get("strategy", {}).get("matrix", {})
        for values in itertools.product(*matrix.values()):
            chosen = dict(zip(matrix, map(str, values), strict=True))
            for step in content["steps"]:
                if "run" in step:
                    env = {**workflow.get("env", {}), **step.get("env", {})}
                    yield Step(
                        " ".join([path.stem, job, *chosen.values()]) + f": {step['name']}",
                        _filled(step["run"], chosen),
                        {k: _filled(str(v), chosen) for k, v in env.items()},
                    )


def _filled(text: str, matrix: Mapping[str, str]) -> str:
    return _EXPRESSION.sub(lambda m: matrix[m[1]], text)


def run(step: Step, env: Mapping[str, str], temporary: str) -> int:
    """Run a step with the variables of a runner, those of the step and ``env``; the exit code."""
    github = {"GITHUB_REF_NAME": f"v{__version__}", "RUNNER_TEMP": temporary, "CI": "true"}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step.script]
    print(f"== {step.name}", flush=True)
    start = time.perf_counter()
    code = subprocess.run(command, env={**os.environ, **github, **step.env, **env}).returncode
    print(f"== exit code {code}, {time.perf_counter() - start:.0f} s", flush=True)
    return code


def main(args: list[str]) -> int:
    """Run the steps of workflows until one fails; its exit code."""
    p = argparse.ArgumentParser(prog="python -m tools.workflow_steps")
    names = sorted(path.stem for path in FOLDER.glob("*.yml"))
    p.add_argument("names", nargs="*", default=names, metavar="NAME", help=", ".join(names))
    p.add_argument(
        "--env",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="instead of theirs",
    )
    p.add_argument("--only", default="", metavar="TEXT", help="steps with this in their name")
    options = p.parse_args(args)
    if unknown := set(options.names) - set(names):
        p.error(f"no workflow {', '.join(sorted(unknown))}; expected some of {', '.join(names)}")
    env = dict(pair.partition("=")[::2] for pair in options.env)
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.names:
            for step in steps(FOLDER / f"{name}.yml"):
                if options.only in step.name and (code := run(step, env, temporary)) != 0:
                    return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
