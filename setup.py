"""Build the torch-free C++ core and the CUDA kernels with ninja. Metadata lives in pyproject.toml.

One ninja rule per source, because every instruction set has its own file and its own flags.
A failed build is a warning and the package falls back to PyTorch; ``W2S_STRICT=1`` makes it an
error. ``W2S_CORE=0`` builds nothing: a wheel for any platform. ``CXX``, ``CXXFLAGS``, ``LDFLAGS``,
``NVCC``, ``NVCCFLAGS`` and ``MAX_JOBS`` are honoured.

The CUDA kernels take a minute and are of use only beside a GPU, so they are built where there are
both nvcc and a driver; ``W2S_CUDA=1`` builds them anyway and makes a failure an error,
``W2S_CUDA=0`` never does. ``W2S_BUILD_EMULATION=1`` also builds their emulation on the host, for
tests.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MISSING = "_core_missing.txt"  # why there is no compiled core; `w2s-fast doctor` shows it
FLAGS = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-math-errno"]
FLAGS += ["-Wall", "-Wextra"]
ISA_FLAGS = {  # x86-64 only; every other file is compiled for the platform's baseline
    "isa_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "isa_avx512.cpp": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", "-mf16c"],
}
# Kernels throw nothing; tables for exceptions would bring a weak symbol into an ISA's file.
KERNEL_FLAGS = ["-fno-exceptions"]
# The platform that is built for: a cross compiler's is in _PYTHON_HOST_PLATFORM.
X86 = sysconfig.get_platform().endswith(("x86_64", "amd64"))
# Machine code for Ampere, Hopper and Blackwell, and PTX of the oldest for all that come after it;
# TORCH_CUDA_ARCH_LIST names others, as for extensions of torch.
ARCHES = "8.0+PTX;9.0;10.0"
NVCC_FLAGS = ["-std=c++17", "-O3", "--threads=4", "-Xcompiler", "-fPIC,-fvisibility=hidden"]
# Fibers leave their stacks by longjmp, which the fortified one takes for an error. fmaf without the
# instruction is a slow function.
EMULATION_FLAGS = ["-DW2S_EMULATED", "-U_FORTIFY_SOURCE", "-O2", *(["-mfma"] if X86 else [])]
CUDA = "w2s_fast._cuda"
EMULATION = "w2s_fast._cuda_emulated"
SOURCES = {
    CUDA: [
        "contrastive.cu",
        "cross_entropy.cu",
        "quantile.cu",
        "two_class.cu",
        "tile.cpp",
        "bindings.cpp",
    ],  # fmt: skip
    EMULATION: ["emulate.cpp", "emulated.cpp", "tile.cpp", "bindings.cpp"],
}


def gencode() -> list[str]:
    """Options of nvcc for the architectures of ``TORCH_CUDA_ARCH_LIST`` from 8.0 on, or ours."""
    flags = []
    for entry in re.split("[;, ]+", os.environ.get("TORCH_CUDA_ARCH_LIST") or ARCHES):
        if not (m := re.fullmatch(r"(\d+)\.(\d[a-z]?)(\+PTX)?", entry)):
            raise RuntimeError(
                f"TORCH_CUDA_ARCH_LIST has {entry!r}; expected numbers as in {ARCHES!r}"
            )
        if int(m[1]) < 8:
            continue  # no asynchronous copies
        arch = m[1] + m[2]
        flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
        if m[3]:
            flags.append(f"-gencode=arch=compute_{arch},code=compute_{arch}")
    if not flags:
        raise RuntimeError("TORCH_CUDA_ARCH_LIST has no architecture from 8.0 on")
    return flags


def sources() -> list[str]:
    """Every C++ file of the core that this processor family can compile, relative to the root."""
    found = sorted(ROOT.glob("csrc/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    return [str(f.relative_to(ROOT)) for f in found if X86 or f.name not in ISA_FLAGS]


def compiler() -> list[str]:
    """The C++ compiler as an argument list: ``CXX``, else the first of g++, clang++, c++."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++"]
    for name in names:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise RuntimeError(f"no C++ compiler found (looked for {', '.join(names)}; set CXX)")


def nvcc() -> list[str]:
    """The CUDA compiler as an argument list: ``NVCC``, else nvcc on the path or in CUDA_HOME."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    names = [os.environ["NVCC"]] if os.environ.get("NVCC") else ["nvcc", f"{home}/bin/nvcc"]
    for name in names:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise RuntimeError(f"no CUDA compiler found (looked for {', '.join(names)}; set NVCC)")


def cuda_wanted() -> bool:
    """Whether the CUDA kernels are built: as ``W2S_CUDA`` says, else beside nvcc and a driver."""
    said = os.environ.get("W2S_CUDA", "")
    if said in ("0", "1"):
        return said == "1"
    try:
        nvcc()
    except RuntimeError:
        return False
    return any(Path(p).exists() for p in ("/proc/driver/nvidia/version", "/dev/dxg"))


def extensions() -> list[Extension]:
    """What this build makes: the core, and the CUDA kernels where they are wanted."""
    if os.environ.get("W2S_CORE") == "0":
        return []
    found = [Extension("w2s_fast._core", sources=sources(), language="c++", optional=True)]
    wanted = [CUDA] if cuda_wanted() else []
    wanted += [EMULATION] if os.environ.get("W2S_BUILD_EMULATION") == "1" else []
    for name in wanted:
        files = [f"csrc/cuda/{file}" for file in SOURCES[name]]
        found.append(Extension(name, sources=files, language="c++", optional=True))
    return found


def quoted(words: list[str]) -> str:
    """Words of a command for a ninja file."""
    return shlex.join(words).replace("$", "$$")


def ninja_file(name: str, files: list[str], objects: Path, target: Path) -> str:
    """Text of a ninja build: one compile edge per source, then one link edge."""
    import pybind11

    def esc(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    includes = [sysconfig.get_path("include"), pybind11.get_include(), str(ROOT / "csrc")]
    system = [w for path in includes[:2] for w in ("-isystem", path)]
    flags = [*FLAGS, *system, "-I", includes[2], *shlex.split(os.environ.get("CXXFLAGS", ""))]
    flags += EMULATION_FLAGS if name == EMULATION else []
    lines = [
        f"builddir = {esc(objects)}",  # where ninja keeps its log
        f"cxx = {quoted(compiler())}",
        f"flags = {quoted(flags)}",
        "rule cxx",
        "  command = $cxx $flags $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = CXX $in",
        "rule link",
        f"  command = {quoted(linker(name))} $in {quoted(link_flags(name))} -o $out",
        "  description = LINK $out",
    ]
    if name == CUDA:
        more = [*gencode(), *shlex.split(os.environ.get("NVCCFLAGS", ""))]
        lines += [
            f"nvcc = {quoted([*nvcc(), *NVCC_FLAGS, *more])}",
            "rule cuda",
            "  command = $nvcc -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = NVCC $in",
        ]
    outs = []
    for file in files:
        out = objects / (Path(file).stem + ".o")
        outs.append(esc(out))
        lines.append(
            f"build {esc(out)}: {'cuda' if file.endswith('.cu') else 'cxx'} {esc(ROOT / file)}"
        )
        base = Path(file).name
        isa = KERNEL_FLAGS + ISA_FLAGS.get(base, []) if base.startswith("isa_") else []
        lines.append(f"  isa = {' '.join(isa)}")
    lines += [f"build {esc(target)}: link {' '.join(outs)}", f"default {esc(target)}", ""]
    return "\n".join(lines)


def linker(name: str) -> list[str]:
    """What links a library; nvcc knows where its runtime lies."""
    return nvcc() if name == CUDA else compiler()


def link_flags(name: str) -> list[str]:
    """CUDA's runtime is linked in: the library fits every torch, whatever CUDA that brings."""
    more = shlex.split(os.environ.get("LDFLAGS", ""))
    if name == CUDA:
        return ["-shared", "-cudart", "static", "-Xlinker", "-s", *more]
    mac = sys.platform == "darwin"
    return [*(["-bundle", "-undefined", "dynamic_lookup"] if mac else ["-shared", "-s"]), *more]


def run_ninja(name: str, files: list[str], folder: Path, target: Path) -> None:
    """Write ``folder/build.ninja`` and run it; ninja itself skips what is up to date."""
    import ninja

    if not files:
        raise RuntimeError("csrc/ holds no C++ source")
    folder.mkdir(parents=True, exist_ok=True)
    script = folder / "build.ninja"
    text = ninja_file(name, files, folder, target)
    if not script.is_file() or script.read_text() != text:
        script.write_text(text)
    program = shutil.which("ninja", path=ninja.BIN_DIR) or shutil.which("ninja") or "ninja"
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    if status := subprocess.call([program, "-f", str(script), *jobs]):
        with_ = shlex.join(linker(name))
        raise RuntimeError(f"compiling with {with_!r} failed (ninja: {status})")


class BuildCore(build_ext):
    """Build every library with ninja, never leaving an old one where a new one failed."""

    def run(self) -> None:
        """Build, after removing from the tree what this build does not make: it would be stale."""
        made = {ext.name for ext in self.extensions}
        for name in {CUDA, EMULATION} - made if self.inplace else ():
            (ROOT / self.get_ext_filename(name)).unlink(missing_ok=True)
        super().run()

    def build_extension(self, ext: Extension) -> None:
        """Compile and link in the build folder, then put the library where the wheel takes it."""
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        self._clear(target)
        try:
            kind = ext.name.rpartition("_")[2]
            folder = ROOT / "build" / f"{kind}-{sys.implementation.cache_tag}-{self.plat_name}"
            run_ninja(ext.name, ext.sources, folder, folder / target.name)
            shutil.copy2(folder / target.name, target)
        except (OSError, RuntimeError, ImportError) as error:
            reason = f"{ext.name} was not built: {error}"
            asked = ext.name != "w2s_fast._core" and os.environ.get("W2S_CUDA") == "1"
            if os.environ.get("W2S_STRICT") == "1" or asked:
                raise SystemExit(f"w2s_fast: ERROR {reason}") from error
            if ext.name == "w2s_fast._core":
                target.with_name(MISSING).write_text(reason + "\n")
            print(f"w2s_fast: WARNING {reason}; a slower path is used", file=sys.stderr)

    def copy_extensions_to_source(self) -> None:
        """In-place and editable builds: the library, or the reason it is missing, to the tree."""
        for ext in self.extensions:
            name = self.get_ext_filename(ext.name)
            target = Path(self.get_finalized_command("build_py").get_package_dir("w2s_fast"))
            self._clear(target / Path(name).name)
            for file in (Path(self.build_lib, name), Path(self.build_lib, name).with_name(MISSING)):
                if file.is_file():
                    shutil.copy2(file, target / file.name)

    @staticmethod
    def _clear(library: Path) -> None:
        library.parent.mkdir(parents=True, exist_ok=True)
        library.unlink(missing_ok=True)
        if library.name.startswith("_core."):
            library.with_name(MISSING).unlink(missing_ok=True)


class FreshLib(build_py):
    """Empty build/lib first: files deleted from the tree must not travel into a wheel."""

    def run(self) -> None:
        """Remove the old staging folder, then copy the modules."""
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    # kernels/ has no __init__.py and is no top-level package: that name belongs to a library which
    # transformers imports. It is installed as w2s_fast.kernels, named here so that it is also found
    # when a wheel is built from an sdist.
    packages=sorted({*find_packages(include=["w2s_fast*"]), "w2s_fast.kernels"}),
    package_dir={"w2s_fast.kernels": "kernels"},
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildCore, "build_py": FreshLib},
)
