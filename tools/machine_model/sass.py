"""Read machine code: instructions of every function of a cubin, and its registers and memory.

The disassemblers cuobjdump and nvdisasm come with the Triton wheel.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from w2s_fast.errors import W2SError

_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_?\w+|\$\S+):$")
_LINE = re.compile(
    r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?);?\s*\}?$"
)
_TARGET = re.compile(r"\.L_?\w+(?![\w$])")
_USAGE = re.compile(r"Function (\S+?):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


@dataclass(frozen=True)
class Instruction:
    """One machine instruction.

    Attributes:
        opcode: with its modifiers, ``LDG.E.128``.
        operands: the text after it.
        guard: the predicate that enables it, ``!P0``; empty if it always runs.
    """

    opcode: str
    operands: str
    guard: str = ""

    @property
    def base(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def targets(self) -> list[str]:
        """Labels that the instruction names."""
        return _TARGET.findall(self.operands)

    @property
    def wide(self) -> bool:
        """Whether it moves 16 bytes between memory and registers or shared memory."""
        return self.base in ("LDG", "LDS", "LDGSTS", "STG", "LD", "ST") and (
            "128" in self.opcode.split(".")
        )


@dataclass(frozen=True)
class Function:
    """A kernel: its instructions in order of addresses, and label -> index of what follows it."""

    name: str
    code: tuple[Instruction, ...]
    labels: dict[str, int]


@dataclass(frozen=True)
class Usage:
    """What one thread and block of a kernel occupy: registers, bytes of stack and shared memory."""

    registers: int
    stack: int
    shared: int


def tool(name: str, *arguments: str, folder: Path | None = None) -> str:
    """Return what a tool of Triton's CUDA binaries prints; ``folder`` is where it runs.

    Raises:
        W2SError: if Triton is missing.
    """
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise W2SError("triton is missing: its wheel brings cuobjdump and nvdisasm")
    tools = Path(spec.origin).parent / "backends" / "nvidia" / "bin"
    # cuobjdump starts nvdisasm.
    env = dict(os.environ, PATH=f"{tools}{os.pathsep}{os.environ.get('PATH', '')}")
    command = [str(tools / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, check=True)
    return done.stdout


def disassemble(cubin: Path) -> str:
    """Return the code of a cubin as text, with lines of the source where the cubin names them."""
    return tool("nvdisasm", "-c", "-gi", str(cubin))


def code_of(cubins: Iterable[Path]) -> dict[str, tuple[Function, Usage]]:
    """Return symbol -> function and usage of everything in cubins; takes seconds."""
    found = {}
    for cubin in cubins:
        usages = usages_of(cubin)
        for function in parse(disassemble(cubin)):
            found[function.name] = function, usages[function.name]
    return found


def parse(text: str) -> Iterator[Function]:
    """Parse what ``nvdisasm -c`` prints, lines of the source or not."""
    name = ""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _FUNCTION.match(line):
            if name:
                yield Function(name, tuple(code), labels)
            name, code, labels = found[1], [], {}
        elif found := _LABEL.match(line):
            labels[found[1]] = len(code)
        elif found := _LINE.match(line):
            code.append(Instruction(found[2], found[3].strip(), found[1] or ""))
    if name:
        yield Function(name, tuple(code), labels)


def usages_of(cubin: Path) -> dict[str, Usage]:
    """Return function -> registers, stack and static shared memory."""
    text = tool("cuobjdump", "--dump-resource-usage", str(cubin))
    return {m[1]: Usage(int(m[2]), int(m[3]), int(m[4])) for m in _USAGE.finditer(text)}
