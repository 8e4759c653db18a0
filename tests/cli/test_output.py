"""Output in any encoding, and to a reader that has gone."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from w2s_fast.cli.main import main
from w2s_fast.cli.output import READER_GONE, accept_any_encoding

COMMAND = [sys.executable, "-m", "w2s_fast"]


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", b"0.54 - 0.81 + ?l \xff"),
        ("latin-1", b"0.54 - 0.81 + \xf6l \xff"),
        ("cp437", b"0.54 - 0.81 + \x94l \xff"),
        ("utf-8", b"0.54 \xe2\x80\x93 0.81 \xe2\x9c\x93 \xc3\xb6l \xff"),
    ],
)
def test_every_encoding(encoding: str, expected: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoding lacks is replaced; the bytes of a file name stay."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    accept_any_encoding()
    print("0.54 – 0.81 ✓ öl \udcff", end="", flush=True)
    assert raw.getvalue() == expected


def test_tables_in_a_narrow_encoding() -> None:
    env = os.environ | {"PYTHONIOENCODING": "cp437", "TERM": "dumb"}
    done = subprocess.run([*COMMAND, "doctor"], env=env, capture_output=True, check=False)
    assert b"Traceback" not in done.stderr and b" + " in done.stdout, done.stderr


@pytest.mark.parametrize("args", [("run", "--help"), ("doctor",), ("run", "--print-config")])
def test_a_reader_that_stops_early(args: tuple[str, ...]) -> None:
    """As with ``| head``: the command ends without a message."""
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([*COMMAND, *args], stdout=write, stderr=subprocess.PIPE) as process:
        os.close(write)
        _, errors = process.communicate()
    assert process.returncode == READER_GONE
    assert b"BrokenPipe" not in errors and b"Traceback" not in errors


def test_nobody_reads_the_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    with subprocess.Popen([*COMMAND, "rum"], stderr=write) as process:
        os.close(write)
    assert process.returncode == READER_GONE


def test_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python sets a stream to None if its descriptor was closed before the start."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["run", "--help"]) == 0


def test_a_file_that_became_a_pipe() -> None:
    """As in forked processes whose standard output was replaced below Python."""
    code = (
        "import os, sys; from w2s_fast.cli.main import main; read, write = os.pipe()\n"
        "os.dup2(write, 1); sys.exit(main(['--version']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
