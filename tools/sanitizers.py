"""``python -m tools.sanitizers``: run random and fuzzed calls of the core under sanitizers.

The calls are made in tests/native from bytes: shapes, strides, alignments, labels, values and
options. ``memory`` looks for accesses beside a buffer and for undefined behaviour, ``threads`` for
races on a pool of threads, ``fuzz`` lets libFuzzer (clang) search the calls that reach new code.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a sanitizer finds ends the program: a test sees its exit code.
_FLAGS = ("-g1", "-std=c++17", "-fno-math-errno", "-fno-omit-frame-pointer")
_FATAL = "-fno-sanitize-recover=all"


@dataclass(frozen=True)
class Program:
    """One program under sanitizers.

    Attributes:
        main: source in tests/native with the entry.
        sanitizers: value of ``-fsanitize``.
        compiler: program that compiles and links.
        flags: further flags of every source.
        core_flags: further flags of the core's sources.
        link_flags: further flags of the link.
    """

    main: str
    sanitizers: str
    compiler: str = os.environ.get("CXX", "g++")
    flags: tuple[str, ...] = ("-O0",)
    core_flags: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()


PROGRAMS = {
    "memory": Program("fuzz.cpp", "address,undefined", flags=("-O0", "-DW2S_DRIVER")),
    "threads": Program("threads.cpp", "thread"),
    # The search is for new edges of the core, not of the code that makes the calls. libFuzzer's
    # default also traces every comparison, in two thirds of the time: bytes choose shapes directly.
    "fuzz": Program(
        "fuzz.cpp", "address,undefined", "clang++", ("-O2",),
        core_flags=("-fsanitize-coverage=inline-8bit-counters,pc-table",),
        link_flags=("-fsanitize=fuzzer",),
    ),
}  # fmt: skip


def build(name: str, folder: Path, jobs: int = 2, only: str = "") -> Path:
    """Compile and link a program of ``PROGRAMS`` into ``folder``; return its path.

    Args:
        only: the one source that is compiled; objects of the others are in ``folder``.

    Raises:
        subprocess.CalledProcessError: if a source does not compile.
    """
    program = PROGRAMS[name]
    main_source = ROOT / "tests" / "native" / program.main
    sanitize = f"-fsanitize={program.sanitizers}"
    common = (program.compiler, *_FLAGS, *program.flags, _FATAL, sanitize)
    sources = [main_source]
    sources += sorted(p for p in (ROOT / "csrc").glob("*.cpp") if p.name != "bindings.cpp")
    sources += sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))

    def compile_one(source: Path) -> str:
        out = str(folder / f"{source.stem}.o")
        if only not in ("", source.name):
            return out
        flags = () if source == main_source else (*program.core_flags, *_isa_flags(source))
        subprocess.run([*common, *flags, "-c", str(source), "-o", out], check=True)
        return out

    with ThreadPoolExecutor(jobs) as pool:
        objects = list(pool.map(compile_one, sources))
    binary = folder / name
    link = [program.compiler, sanitize, *program.link_flags, *objects, "-pthread"]
    subprocess.run([*link, "-o", str(binary)], check=True)
    return binary


def _isa_flags(source: Path) -> list[str]:
    """Return the flags that the first line of a file of one instruction set names."""
    first = source.read_text().partition("\n")[0]
    return re.findall(r"-m\w+", first) if source.name.startswith("isa_") else []


def main(args: Sequence[str]) -> int:
    """Build and run one program; return its exit code."""
    p = argparse.ArgumentParser(prog="python -m tools.sanitizers", description=__doc__)
    p.add_argument("program", choices=PROGRAMS)
    p.add_argument("--cases", type=int, default=100_000, help="calls to make; default %(default)s")
    p.add_argument("--seed", type=int, default=0, help="default %(default)s")
    p.add_argument("--corpus", type=Path, help="fuzz: folder of inputs that reach new code")
    options = p.parse_args(args)
    with tempfile.TemporaryDirectory() as folder:
        binary = build(options.program, Path(folder))
        command = [str(binary), str(options.cases), str(options.seed)]
        if options.program == "fuzz":
            command = [str(binary), f"-runs={options.cases}", f"-seed={options.seed}"]
            # Weights of rare features (entropic) would take half of the time of calls this short.
            command += ["-max_len=512", "-entropic=0", "-print_final_stats=1"]
            if options.corpus is not None:
                options.corpus.mkdir(parents=True, exist_ok=True)
                command.append(str(options.corpus))
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
