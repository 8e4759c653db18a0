"""Weights of a module as tensors by name, and as safetensors files.

A module may be partitioned over processes (ZeRO-3): its tensors are then brought together one at a
time, and never all of them in one place.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2s_fast.distributed.world import SINGLE_PROCESS, World
from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SHARD_BYTES = 5 * 10**9


def save_weights(
    model: nn.Module,
    path: str | Path,
    world: World = SINGLE_PROCESS,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a model's weights: one safetensors file, or several and their index beside it.

    All processes take part, rank 0 writes; it holds one file at a time in memory. The file at
    ``path`` appears last, so it stands for the whole.

    Raises:
        W2SError: on every process, if they could not be written.
    """
    tensors = {name: t for name, t in module_tensors(model).items()}
    save_tensors(((n, tensors[n]) for n in tensors), path, world, shard_bytes)


def save_tensors(
    tensors: Iterable[tuple[str, Tensor]], path: str | Path, world: World, shard_bytes: int
) -> None:
    """The same for any tensors by name, partitioned or not."""
    path = Path(path)
    writer = _Writer(path, shard_bytes) if world.is_main_process else None
    error = ""
    for name, t in tensors:
        with whole([t]):
            if writer is not None and not error:
                error = writer.add(name, t)
    if writer is not None and not error:
        error = writer.finish()
    error = world.broadcast_object(error)
    if error:
        raise W2SError(f"weights could not be written to {path}: {error}")


class _Writer:
    """Collects tensors up to the size of a file, then writes it."""

    def __init__(self, path: Path, shard_bytes: int) -> None:
        self.path, self.limit = path, shard_bytes
        self.ready: dict[str, Tensor] = {}
        self.bytes = self.total = 0
        self.files: dict[str, list[str]] = {}

    def add(self, name: str, t: Tensor) -> str:
        """Take a tensor in; what went wrong, or nothing."""
        error = ""
        if self.ready and self.bytes + t.nbytes > self.limit:
            error = self.write(self.path.with_name(f"{self.path.stem}-{len(self.files):05d}.part"))
        self.ready[name] = t.detach().to("cpu", copy=True).contiguous()
        self.bytes += t.nbytes
        self.total += t.nbytes
        return error

    def write(self, path: Path) -> str:
        """Write what was collected, whole or not at all."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            save_file(self.ready, temporary, metadata={"format": "pt"})
            os.replace(temporary, path)
        except (OSError, SafetensorError) as e:
            temporary.unlink(missing_ok=True)
            return _line(e)
        self.files[path.name] = list(self.ready)
        self.ready, self.bytes = {}, 0
        return ""

    def finish(self) -> str:
        """Write the last file; name them as transformers does where there are several."""
        if not self.files:
            return self.write(self.path)
        last = self.path.with_name(f"{self.path.stem}-{len(self.files):05d}.part")
        if error := self.write(last):
            return error
        names: dict[str, str] = {}
        n = len(self.files)
        for i, (part, tensors) in enumerate(self.files.items()):
            name = f"{self.path.stem}-{i + 1:05d}-of-{n:05d}.safetensors"
            os.replace(self.path.with_name(part), self.path.with_name(name))
            names |= dict.fromkeys(tensors, name)
        index = {"metadata": {"total_size": self.total}, "weight_map": names}
        _index(self.path).write_text(json.dumps(index, indent=1, sort_keys=True))
        return ""


def load_weights(model: nn.Module, path: str | Path, world: World = SINGLE_PROCESS) -> None:
    """Load what ``save_weights`` wrote into a model built from the same configuration.

    All processes take part. A partitioned model is filled tensor by tensor from rank 0's reading.

    Raises:
        W2SError: if the files cannot be read or do not fit.
    """
    load_module(model, read_tensors(path), world)


def read_tensors(path: str | Path) -> Mapping[str, Tensor]:
    """Tensors of a safetensors file, or of the files its index names; each is read when asked for.

    Raises:
        W2SError: if a file cannot be read.
    """
    path = Path(path)
    if not path.exists() and _index(path).exists():
        try:
            places: dict[str, str] = json.loads(_index(path).read_text())["weight_map"]
        except (OSError, ValueError, KeyError) as e:
            raise W2SError(f"weights {path} cannot be read: {_line(e)}") from e
        return _Lazy({name: path.with_name(file) for name, file in places.items()})
    return _Lazy(dict.fromkeys(_names(path), path))


class _Lazy(Mapping[str, "Tensor"]):
    """Tensors by name, read when asked for."""

    def __init__(self, places: dict[str, Path]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> Tensor:
        path = self._places[name]
        with _opened(path) as f:
            return f.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            yield f
    except (OSError, SafetensorError) as e:
        raise W2SError(f"weights {path} cannot be read: {_line(e)}") from e


def _names(path: Path) -> list[str]:
    with _opened(path) as f:
        return list(f.keys())


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, tied ones once; partitioned ones as they are."""
    out: dict[str, Tensor] = {}
    seen: set[object] = set()
    for name, t in module.state_dict(keep_vars=True).items():
        key = id(t) if is_partitioned(t) else (t.data_ptr(), t.shape)
        if (t.numel() == 0 and not is_partitioned(t)) or key not in seen:
            seen.add(key)
            out[name] = t
    return out


def is_partitioned(t: Tensor) -> bool:
    """Whether ZeRO-3 keeps this parameter in parts; it is empty outside of ``whole``."""
    return hasattr(t, "ds_id")


def shape_of(t: Tensor) -> torch.Size:
    """Shape of a tensor, of a partitioned one as a whole."""
    return t.ds_shape if is_partitioned(t) else t.shape  # type: ignore[attr-defined]


@contextlib.contextmanager
def whole(tensors: Iterable[Tensor], change: bool = False) -> Iterator[None]:
    """Bring partitioned parameters together inside the block; all processes must enter it.

    ``change``: what rank 0 wrote into them goes out to the others.
    """
    parts = [t for t in tensors if is_partitioned(t)]
    if not parts:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parts, modifier_rank=0 if change else None):
        yield


def load_module(
    module: nn.Module, tensors: Mapping[str, Tensor], world: World = SINGLE_PROCESS
) -> None:
    """Copy saved tensors into a module of the same architecture.

    Raises:
        W2SError: if names or shapes do not fit.
    """
    own = module_tensors(module)
    for name in sorted({*own, *tensors}):
        target = own.get(name)
        with whole([] if target is None else [target], change=True):
            partitioned = target is not None and is_partitioned(target)
            if partitioned and not world.is_main_process and name in tensors:
                continue  # DeepSpeed broadcasts rank 0's values of a partitioned tensor
            _copy(name, tensors.get(name), target)


def _copy(name: str, there: Tensor | None, target: Tensor | None) -> None:
    if there is None or target is None or there.shape != target.shape:
        raise W2SError(
            f"saved weights do not fit the model at {name!r}: saved "
            f"{None if there is None else tuple(there.shape)}, expected "
            f"{None if target is None else tuple(target.shape)}; build the model they came from"
        )
    target.detach().copy_(there)


def _index(path: Path) -> Path:
    return path.with_name(f"{path.name}.index.json")


def _line(e: BaseException) -> str:
    return " ".join(str(e).split())[:300]
