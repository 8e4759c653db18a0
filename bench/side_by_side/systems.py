"""The code bases that are compared, and the checks of their checkouts."""

from __future__ import annotations

import ast
import hashlib
from dataclasses import dataclass
from pathlib import Path

from w2s_fast.errors import W2SError

OURS = "ours"


@dataclass(frozen=True)
class System:
    """One code base.

    Attributes:
        name: Key of its shims, its script and its observer.
        title: Its name in tables.
        losses: Its losses, each with the loss of this package that computes the same.
        folder: Name of its checkout in the folder of all; "" for this package.
        commit: The commit that the shims were written for.
        digest: ``package_digest`` of that commit.
        functions: File in the checkout -> functions or classes that the script calls.
    """

    name: str
    title: str
    losses: dict[str, str]
    folder: str = ""
    commit: str = ""
    digest: str = ""
    functions: tuple[tuple[str, tuple[str, ...]], ...] = ()


OPENAI = System(
    "openai",
    "openai/weak-to-strong",
    {"xent": "xent", "logconf": "logconf_openai"},
    "weak-to-strong",
    "6b450f2cee3714d6f886e5e1910bac73633bf69a",
    "7ff72f644b7ca6d3",
    (
        ("weak_to_strong/train.py", ("ModelConfig", "train_and_save_model")),
        ("weak_to_strong/loss.py", ("xent_loss", "logconf_loss_fn")),
        ("weak_to_strong/datasets.py", ("tokenize_dataset",)),
        ("weak_to_strong/common.py", ("get_tokenizer",)),
    ),
)
ELEUTHER = System(
    "eleuther",
    "EleutherAI/w2s",
    {"xent": "xent", "logconf": "logconf_eleuther"},
    "w2s",
    "a929af0bed9d53e6ff3bd05b83a8e1b1568ae847",
    "f07474cc74e6beea",
    (
        ("w2s/sft.py", ("CustomLossTrainer", "train")),
        ("w2s/sft_config.py", ("SFTConfig",)),
        ("w2s/model.py", ("ModelConfig",)),
        ("w2s/loss.py", ("log_confidence_loss", "cross_entropy_loss")),
    ),
)
PEERS = (OPENAI, ELEUTHER)
# The losses of the two others, and the package's own confidence loss.
US = System(
    OURS,
    "w2s_fast",
    {name: name for name in ("xent", "logconf_openai", "logconf_eleuther", "logconf")},
)
SYSTEMS = {system.name: system for system in (*PEERS, US)}


def check_checkout(system: System, peers: Path) -> Path:
    """Return the checkout of a code base in the folder of all.

    Raises:
        W2SError: It is missing, lacks a function that the benchmark calls, or is of another commit.
    """
    folder = peers / system.folder
    if not folder.is_dir():
        raise W2SError(
            f"{folder} is no folder; expected a checkout of {system.title} at commit "
            f"{system.commit[:7]}: clone it into {peers}"
        )
    for file, names in system.functions:
        missing = sorted(set(names) - _definitions(folder / file, system))
        if missing:
            raise W2SError(
                f"{folder / file} does not define {', '.join(missing)}; expected {system.title} "
                f"at commit {system.commit[:7]}"
            )
    if (found := package_digest(system, folder)) != system.digest:
        raise W2SError(
            f"{folder} is another version of {system.title} (digest {found}); the shims were "
            f"written for commit {system.commit}: check it out, without local changes"
        )
    return folder


def package_digest(system: System, folder: Path) -> str:
    """Return a digest of the code base's Python package: names and contents of its files.

    It tells a version without git, as a checkout may be an unpacked archive.
    """
    package = Path(system.functions[0][0]).parts[0]
    h = hashlib.sha256()
    for path in sorted((folder / package).rglob("*.py")):
        h.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        h.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return h.hexdigest()[:16]


def _definitions(file: Path, system: System) -> set[str]:
    """Return the functions and classes at the top of a file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError) as e:
        raise W2SError(
            f"{file} cannot be read ({e}); expected {system.title} at commit {system.commit[:7]}"
        ) from e
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
