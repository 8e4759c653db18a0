"""Check, before anything is computed, that all processes run the same program on the same input.

A host with another torch, checkout or copy of the data would silently train another model than the
rest. Every process reports its facts, and the error names those that differ from the majority.
"""

from __future__ import annotations

import os
import platform
import secrets
import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from w2s_fast.config import RunConfig, to_dict
from w2s_fast.distributed.world import World
from w2s_fast.errors import W2SError
from w2s_fast.files import (
    content_hash,
    explain_write_errors,
    remove_temporaries,
    write_bytes,
)
from w2s_fast.pipeline.provenance import package_version
from w2s_fast.version import __version__

_PACKAGES = ("torch", "numpy", "transformers", "deepspeed", "peft")


def check_processes_agree(
    cfg: RunConfig,
    digests: Mapping[int, Mapping[str, str]],
    models: Mapping[str, str],
    world: World,
) -> None:
    """Compare versions, code, settings, data and checkpoints of all processes.

    Args:
        cfg: Configuration of the run.
        digests: ``data_digests`` by seed.
        models: Digest of each checkpoint, by its path in the configuration.
        world: The processes.

    Raises:
        W2SError: Processes differ; raised on every process, naming which differ in what.
    """
    everyone = world.all_gather_object([socket.gethostname(), process_facts(cfg, digests, models)])
    if message := difference(everyone):
        raise W2SError(message)


def process_facts(
    cfg: RunConfig, digests: Mapping[int, Mapping[str, str]], models: Mapping[str, str]
) -> dict[str, str]:
    """Return what must be equal on all processes, by its name in messages."""
    facts = {"python": ".".join(platform.python_version_tuple()[:2])}
    facts |= {name: package_version(name) or "not installed" for name in _PACKAGES}
    facts["w2s_fast"] = __version__
    facts["w2s_fast's source"] = tree_digest(Path(__file__).resolve().parents[1])
    facts["device"] = _device()
    facts["dtype of the models"] = f"{cfg.weak.dtype}, {cfg.student.dtype}"
    facts["configuration"] = content_hash(to_dict(cfg))[:12]
    facts["data"] = content_hash({str(s): dict(d) for s, d in digests.items()})[:12]
    facts |= {f"the checkpoint {path}": digest[:12] for path, digest in models.items()}
    return facts


def tree_digest(root: Path) -> str:
    """Return a digest of the Python sources under ``root``."""
    files = sorted(root.rglob("*.py"))
    sources = {p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in files}
    return content_hash(sources)[:12]


def difference(everyone: Sequence[Sequence[Any]]) -> str:
    """Return one line that names the processes that differ from the majority, "" if none do.

    Args:
        everyone: (host, facts) by rank.
    """
    for name in dict.fromkeys(name for _, facts in everyone for name in facts):
        values = [facts.get(name, "missing") for _, facts in everyone]
        majority = Counter(values).most_common(1)[0][0]
        odd = [r for r, value in enumerate(values) if value != majority]
        if odd:
            first = odd[0]
            where = sorted({str(everyone[r][0]) for r in odd})
            return (
                f"{name} is {values[first]} on {', '.join(where)} "
                f"(rank {', '.join(map(str, odd))}), {majority} elsewhere; make them the same"
            )
    return ""


def check_shared_store(cfg: RunConfig, world: World) -> None:
    """Check that every process sees a file that rank 0 writes into the store.

    Raises:
        W2SError: Some do not, or it cannot be written; raised on every process.
    """
    store = cfg.store_dir.absolute()

    def write() -> list[str]:
        # Of this process: other jobs may use the store. A file of an earlier one has another token.
        name, token = f".shared.{os.getpid()}", secrets.token_hex(8)
        with explain_write_errors("a file for all processes", store):
            remove_temporaries(store)  # of killed jobs
            write_bytes(store / name, token.encode())
        return [name, token]

    name, token = world.call_on_main(write)
    marker = store / name
    sees = marker.is_file() and marker.read_bytes() == token.encode()
    seen = world.all_gather_object(sees)
    if world.is_main_process:
        marker.unlink()
    without = [r for r, good in enumerate(seen) if not good]
    if without:
        raise W2SError(
            f"rank {', '.join(map(str, without))} does not see rank 0's folder {store}; "
            "put --cache_dir on a file system that all hosts share"
        )


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
