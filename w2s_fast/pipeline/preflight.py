"""Before anything is computed: do all processes run the same program on the same input?

A node with another torch, another checkout or another copy of the data trains another model than
the rest, and nothing would ever say so. Every process tells what it has; whoever differs from the
majority is named.
"""

from __future__ import annotations

import platform
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, to_dict
from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.store import content_hash
from w2s_fast.version import __version__

_PACKAGES = ("torch", "numpy", "transformers", "deepspeed", "peft")


def check_alike(cfg: RunConfig, digests: Mapping[int, Mapping[str, str]], world: World) -> None:
    """Compare versions, code, settings and data of all processes; see the shared folder.

    Raises:
        W2SError: on every process, naming who differs in what.
    """
    everyone = world.all_gather_object([socket.gethostname(), facts(cfg, digests)])
    if message := difference(everyone):
        raise W2SError(message)
    _check_shared(cfg, world)


def facts(cfg: RunConfig, digests: Mapping[int, Mapping[str, str]]) -> dict[str, str]:
    """What must be the same everywhere, by the name a message gives it."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    found |= {name: _version(name) for name in _PACKAGES}
    found["w2s_fast"] = __version__
    found["w2s_fast's source"] = tree_digest(Path(__file__).resolve().parents[1])
    found["device"] = _device()
    found["dtype of the models"] = f"{cfg.weak.dtype}, {cfg.student.dtype}"
    found["configuration"] = content_hash(to_dict(cfg))[:12]
    found["data"] = content_hash({str(s): dict(d) for s, d in digests.items()})[:12]
    return found


def tree_digest(root: Path) -> str:
    """A digest of the Python sources under ``root``."""
    sources = {p.relative_to(root).as_posix(): p.read_text() for p in sorted(root.rglob("*.py"))}
    return content_hash(sources)[:12]


def difference(everyone: Sequence[Sequence[Any]]) -> str:
    """One line that names who differs from the majority; empty if nobody does.

    Args:
        everyone: (host, facts) by rank.
    """
    for name in everyone[0][1]:
        values = [told[name] for _, told in everyone]
        usual = Counter(values).most_common(1)[0][0]
        odd = [r for r, value in enumerate(values) if value != usual]
        if odd:
            first = odd[0]
            where = sorted({str(everyone[r][0]) for r in odd})
            return (
                f"{name} is {values[first]} on {', '.join(where)} "
                f"(rank {', '.join(map(str, odd))}), {usual} elsewhere; make them the same"
            )
    return ""


def _check_shared(cfg: RunConfig, world: World) -> None:
    """Rank 0 leaves a mark in the store; the others must see it."""
    mark = cfg.store_dir.absolute() / ".shared"
    told = content_hash([world.name])[:16]
    if world.is_main_process:
        mark.write_text(told)
    told = world.broadcast_object(told)
    world.barrier()
    sees = mark.is_file() and mark.read_text() == told
    blind = [r for r, good in enumerate(world.all_gather_object(sees)) if not good]
    if blind:
        raise W2SError(
            f"rank {', '.join(map(str, blind))} does not see rank 0's folder {mark.parent}; put "
            "--cache_dir on a file system that all hosts share"
        )


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"
