"""Shell completion: bash completes commands, settings and names with the printed script."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from w2s_fast.cli.completion import options
from w2s_fast.cli.main import COMMANDS, main

pytest.importorskip("shtab")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("completion") / "w2s.bash"
    with pytest.MonkeyPatch.context() as patch, path.open("w") as f:
        patch.setattr("sys.stdout", f)
        assert main(["completion", "bash"]) == 0
    return path


def complete(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{w}'" for w in ("w2s-fast", *words))
    before = words[-2] if len(words) > 1 else "w2s-fast"
    code = (
        f"source '{script}'; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; "
        'read -r _ _ _ _ f _ <<< "$(complete -p w2s-fast)"; '
        f"$f w2s-fast '{words[-1]}' '{before}'; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_commands(script: Path) -> None:
    assert set(complete(script, "")) >= set(COMMANDS)
    assert complete(script, "swe") == ["sweep"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "--student_train.l"), "--student_train.lr"),
        (("run", "--losses", "logconf_o"), "logconf_openai"),
        (("run", "--methods", "strong"), "strong_to_strong"),
        (("run", "--task.name", "agree"), "agreement"),
        (("sweep", "--run.stu"), "--run.student.source"),
        (("recipe", "deb"), "debate_sciq"),
        (("launch", "--host"), "--hostfile"),
        (("predict", "--text-"), "--text-pair"),
        (("run", "--losses", "xent", "logconf_o"), "logconf_openai"),
        (("run", "--methods", "naive", "strong"), "strong_to_strong"),
        (("sweep", "--run.losses", "logconf_o"), "logconf_openai"),
        (("run", "--device", "cu"), "cuda"),
        (("run", "--print"), "--print-config"),
        (("sweep", "--dry"), "--dry-run"),
        (("label", "--student_train.l"), "--student_train.lr"),
        (("export", "--student_train.l"), "--student_train.lr"),
        (("launch", "--student_train.l"), "--student_train.lr"),
        (("plan", "--student_train.l"), "--student_train.lr"),
        (("recipe", "run", "debate_sciq", "--student_train.l"), "--student_train.lr"),
        (("recipe", "sh"), "show"),
        (("completion", "z"), "zsh"),
    ],
)
def test_options_and_names(script: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in complete(script, *words)


@pytest.mark.parametrize(
    "words", [("predict", "--model"), ("run", "--config"), ("run", "--task.path"), ("diff",)]
)
def test_files(script: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file.yaml").touch()
    assert complete(script, *words, f"{tmp_path}/f") == [f"{tmp_path}/file.yaml"]


def test_every_command_has_options() -> None:
    assert {c for c in COMMANDS if not options(c)} <= {"bench", "completion"}


@pytest.mark.parametrize(
    ("shell", "begin"), [("zsh", "#compdef w2s-fast\n"), ("tcsh", "# AUTOMATICALLY GENERATED")]
)
def test_other_shells(shell: str, begin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(begin) and "w2s-fast" in printed
    # zsh shows what a command does.
    assert ("settings and results of two runs" in printed) == (shell == "zsh")


@pytest.mark.parametrize(("args", "code"), [([], 2), (["--help"], 0)])
def test_usage(args: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *args]) == code
    assert "usage: w2s-fast completion [bash | zsh | tcsh]" in capsys.readouterr().out


def test_a_misspelt_shell(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zhs"]) == 2
    assert "did you mean 'zsh'?" in capsys.readouterr().err


def test_without_shtab(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'w2s-fast[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["fish"], ["bash", "zsh"]])
def test_an_unknown_shell_is_an_error(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", *args]) == 2
    assert "expected one of bash, zsh, tcsh" in capsys.readouterr().err
