"""Commands: light help, one-line errors with exit code 2, ``w2s-fast`` and ``python -m``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import w2s_fast
from w2s_fast.cli.main import COMMANDS, main
from w2s_fast.config import RunConfig, to_yaml
from w2s_fast.files import file_lock

TINY = [
    "--task.n_weak=20", "--task.n_transfer=20", "--task.n_test=20", "--weak.hidden=8",
    "--weak.heads=2", "--weak_train.epochs=1", "--seeds=3", "--workers=1", "--quiet",
]  # fmt: skip


def failing(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that must fail; return its single line."""
    assert main(args) == 2
    streams = capsys.readouterr()
    assert streams.err.startswith("w2s-fast: error: ") and streams.err.count("\n") == 1
    return streams.err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"{w2s_fast.__version__}\n")


@pytest.mark.parametrize("command", ["run", "label", "report", "doctor"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    assert f"w2s-fast {command}" in capsys.readouterr().out


def test_help_is_light() -> None:
    code = (
        "import sys; from w2s_fast.cli.main import main; main(['run', '--help'])\n"
        "heavy = [m for m in ('torch', 'transformers', 'deepspeed', 'matplotlib', 'pyarrow') "
        "if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_print_config_is_a_config_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--print-config"]) == 0
    text = capsys.readouterr().out
    assert text == to_yaml(RunConfig())
    path = tmp_path / "run.yaml"
    path.write_text(text)
    assert main(["run", "--config", str(path), "--seeds", "9", "--print_config"]) == 0
    assert capsys.readouterr().out == text.replace("- 0\n- 1\n- 2\n", "- 9\n")
    assert not Path("out").exists()  # in the empty folder that tests run in


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["rum"], "did you mean 'run'?"),
        (["run", "--sedes", "1"], "did you mean 'seeds'?"),
        (["run", "--losses", "xnet"], "did you mean 'xent'?"),
        (["label", "--task.name", "agrement"], "did you mean 'agreement'?"),
        (["report", "--outt", "x"], "report takes only --from FOLDER, --out DIR"),
        (["report", "--out", "nowhere"], "no results.json in nowhere"),
        (["doctor", "now"], "doctor takes --strict or nothing"),
    ],
)
def test_user_errors(capsys: pytest.CaptureFixture[str], args: list[str], words: str) -> None:
    assert words in failing(capsys, *args)


def test_a_folder_in_use_and_one_that_cannot_be(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with file_lock(tmp_path / ".lock"):
        assert f"another run (process {os.getpid()}) works in" in failing(
            capsys, "run", "--out", str(tmp_path), *TINY
        )
    (tmp_path / "file").write_text("")
    line = failing(capsys, "run", "--out", str(tmp_path / "file" / "x"), *TINY)
    assert "cannot write results" in line and "--out" in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a\tb\nx\t1\n", "text"),
        ("text\tlabel\n", "has no rows"),
        ("text\tlabel\n" + "".join(f"t{i}\t1\n" for i in range(90)), "class"),
    ],
    ids=["column missing", "empty", "one class"],
)
def test_bad_data_is_one_line_and_nothing_is_computed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, words: str
) -> None:
    data, model, out = tmp_path / "data.tsv", tmp_path / "model", tmp_path / "out"
    data.write_text(content)
    model.mkdir()
    args = ["--task.name=local", f"--task.path={data}", f"--student.source={model}", "--out"]
    assert words in failing(capsys, "run", *args, str(out), *TINY)
    assert not list(out.glob("cache/[!.]*"))


def test_label_prints_the_folder_of_the_labels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["label", "--out", str(tmp_path), *TINY]) == 0
    line = capsys.readouterr().out.strip()
    assert line.startswith("seed 3: ")
    folder = Path(line.removeprefix("seed 3: "))
    assert folder == tmp_path / "labels" / "3"
    assert [p.name for p in folder.iterdir()] == ["part-00000.parquet"]


def test_a_strict_doctor_fails_where_something_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("w2s_fast.ops.native.missing", lambda: "")
    assert main(["doctor", "--strict"]) == 0
    monkeypatch.setattr("w2s_fast.ops.native.missing", lambda: "no compiler")
    assert main(["doctor"]) == 0
    capsys.readouterr()
    assert main(["doctor", "--strict"]) == 2
    assert "missing: backend cpp; see the lines above" in capsys.readouterr().err


def test_doctor_shows_kernels_and_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in ("backend cpp", "backend ref", "torch threads", "CPU capability", "triton"):
        assert words in text


def test_the_module_can_be_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "w2s_fast", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.slow
def test_bench_is_forwarded(tmp_path: Path) -> None:
    """``bench`` prints the benchmark's help and returns its exit code, from any folder."""
    command = [sys.executable, "-m", "w2s_fast", "bench"]
    done = subprocess.run(
        [*command, "--help"], capture_output=True, text=True, cwd=tmp_path, env=_with_checkout()
    )
    assert done.returncode == 0 and "usage" in done.stdout
    done = subprocess.run(
        [*command, "nothing"], capture_output=True, text=True, cwd=tmp_path, env=_with_checkout()
    )
    assert done.returncode != 0


def _with_checkout() -> dict[str, str]:
    root = Path(w2s_fast.__file__).resolve().parents[1]
    return {**os.environ, "PYTHONPATH": str(root)}


def test_a_deeply_nested_config(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seeds: " + "[" * 3000)
    assert "is not YAML" in failing(capsys, "run", "--config", str(path))
