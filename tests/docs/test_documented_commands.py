"""Every command, option and setting that a document names is taken by the parser of users.

Commands run through ``main`` up to where they would compute; what computes raises ``Parsed``.
"""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

from w2s_fast.cli import (
    completion,
    diff,
    doctor,
    export,
    launch,
    main,
    plan,
    predict,
    recipe,
    report,
)
from w2s_fast.cli.parse import load_config, take_run_options
from w2s_fast.config import field_types

DOCS = sorted(
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/slurm.sh")]
    + list((ROOT / "docs").glob("*.md"))
)
USAGES = {
    "main": main.USAGE,
    "launch": launch.USAGE,
    "plan": plan.USAGE,
    "doctor": doctor.USAGE,
    "report": report.USAGE,
    "diff": diff.USAGE,
    "recipe": recipe.USAGE,
    "predict": predict.USAGE,
    "export": export.USAGE,
    "completion": completion.USAGE,
}
_OURS = re.compile(r"(?:w2s-fast|-m w2s_fast|--module w2s_fast) (?!COMMAND)(.*)")
# Options of programs that are not ours, which some pages name.
_OTHERS = ("--parts", "--record", "--first", "--seconds")


class Parsed(Exception):
    """A command has read all of its arguments."""


def _stop(*_: object, **__: object) -> None:
    raise Parsed


@pytest.fixture
def parse_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Let every command end where it would compute; return an empty working folder."""
    for name in (
        "w2s_fast.pipeline.run", "w2s_fast.pipeline.label", "w2s_fast.pipeline.export.export",
        "w2s_fast.sweeps.run_sweep.sweep", "w2s_fast.sweeps.run_sweep.prepare",
        "w2s_fast.cli.launch.run_job", "w2s_fast.cli.estimate.estimate_step",
        "w2s_fast.report.load_results", "w2s_fast.cli.doctor.print_findings",
        "w2s_fast.comparison.file_results.read_scores", "w2s_fast.pipeline.forecast.forecast",
        "w2s_fast.comparison.run_scores.load_run", "w2s_fast.cli.predict._read",
        "w2s_fast.pipeline.push.check_push",
    ):  # fmt: skip
        monkeypatch.setattr(name, _stop)
    # The checkpoints of a recipe are not here.
    monkeypatch.setattr("w2s_fast.cli.recipe._check_models", lambda *_: None)
    for name in ("check_hosts", "check_port"):
        monkeypatch.setattr(f"w2s_fast.cli.launch.{name}", lambda *_: None)
    monkeypatch.setattr("w2s_fast.training.deepspeed.setup.load_deepspeed", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _commands(path: Path) -> Iterator[str]:
    """Arguments of our command in code blocks and in backticks, as a shell would get them."""
    text = path.read_text()
    blocks = re.findall(r"^```(?:bash|sh|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if path.suffix == ".sh":
        line = next(line for line in text.splitlines() if line.startswith("srun"))
        blocks = [line.replace("$config", "c.yaml").partition(' "$@"')[0]]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    for line in lines + _inline(text):
        if match := _OURS.search(line):
            yield match[1]


def _inline(text: str) -> list[str]:
    """Code in backticks, each on one line."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose)]


def _run(command: str, folder: Path) -> None:
    """Run one documented command; files that it reads are made first."""
    words = shlex.split(command.partition(" > ")[0], comments=True)
    for i, word in enumerate(words):
        file = word.partition("=")[2] or word
        if file.endswith(".yaml"):
            text = "run: {seeds: [0]}\n" if words[0] == "sweep" else "seeds: [0]\n"
            (folder / file).write_text(text)
        elif words[i - 1] == "--hostfile":
            (folder / file).write_text("a slots=8\nb slots=8\n")
    if len(words) == 1 and not words[0].startswith("--"):
        assert words[0] in main.COMMANDS, command
        return
    with contextlib.suppress(Parsed):
        assert main.main(words) == 0, command


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_commands_of_documents(path: Path, parse_only: Path) -> None:
    for command in _commands(path):
        _run(command, parse_only)


@pytest.mark.parametrize("name", USAGES)
def test_commands_of_help_texts(name: str, parse_only: Path) -> None:
    for line in USAGES[name].splitlines():
        # Lines with an example; a usage in brackets names what may be left out.
        if (match := _OURS.search(line)) and not re.search("[[]|VALUE|--help", line):
            _run(match[1].replace("CONFIG.yaml", "c.yaml"), parse_only)


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_options_and_settings_in_backticks(path: Path) -> None:
    """``--NAME VALUE`` and ``task.NAME: VALUE``, of a run or of a sweep."""
    known = field_types()
    blocks = {name.rpartition(".")[0] for name in known}
    for code in _inline(path.read_text()):
        name, colon, value = (part.strip() for part in code.partition(": "))
        if code.startswith("--") and not code.startswith(_OTHERS):
            _check_option(code)
        elif re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name) and name.partition(".")[0] in blocks:
            assert name in known or name in blocks, f"{path.name}: {code}"
            if colon:
                load_config([f"--{name}", value])


def _check_option(code: str) -> None:
    words = shlex.split(code)
    if len(words) == 1:  # an option that the text mentions, of any command
        name = words[0].removeprefix("--").partition("=")[0]
        usages = " ".join(USAGES.values())
        assert name.replace("-", "_") in field_types() or f"--{name}" in usages, code
    elif any(word in code for word in ("--weak_models", "--run.")):
        from w2s_fast.cli.parse import load
        from w2s_fast.sweeps import SweepConfig

        load(SweepConfig, words)
    else:
        load_config(take_run_options(words)[1])


@pytest.mark.parametrize(
    "command",
    [
        "run --task.classes 0 1", "run --task.classes 0,1", "run --task.words bad good",
        "run --print-config", "run --print_config", "run --print-config=skip_default",
        "label --print-config", "label --quiet --out x", "sweep --print-config=skip_default",
        "export --stage weak/0 --to m --quiet", "export --stage weak/0 --to m --out x",
        "launch c.yaml --quiet", "launch c.yaml --print-config", "launch c.yaml --out x --quiet",
        "launch --hostfile hosts c.yaml --config d.yaml --student-train.lr=1e-3 --control",
        "plan --gpus 2 --zero 3 --config c.yaml --seeds 0 1",
        "report --out x", "doctor --strict",
    ],
)  # fmt: skip
def test_every_option_that_help_lists(command: str, parse_only: Path) -> None:
    _run(command, parse_only)
