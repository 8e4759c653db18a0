"""What a call would launch on a GPU, counted on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from w2s_fast.ops import checks, dispatch, native_cuda, use_backend

# Views and allocations: nothing runs on the device.
NO_LAUNCH = {
    "aten.detach", "aten.alias", "aten.view", "aten.unbind", "aten.unsqueeze", "aten.empty",
    "aten.empty_like", "aten.new_empty", "aten.as_strided", "aten.slice", "aten.select",
    "aten.expand", "aten.new_empty_strided", "aten._reshape_alias",
}  # fmt: skip
KERNELS = (
    "rows", "fixup", "gradient", "scale", "quantile", "two_class", "two_class_gradient",
)  # fmt: skip


def serve_as_a_device(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the host checks in its own memory."""
    with use_backend(backend):
        served = dispatch.backend("cross_entropy", torch.zeros(1))
    monkeypatch.setattr(served, "check_labels", lambda p: None)
    monkeypatch.setattr(checks, "on_host", lambda x: False)


class Launches(TorchDispatchMode):
    """Names of the operators and kernels that a device would run; kernels are not run."""

    def __init__(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.names: list[str] = []
        self.options: list[dict[str, Any]] = []  # of the kernels of Triton
        if backend == "cuda":
            library = native_cuda.library()
            for name in KERNELS:
                monkeypatch.setattr(library, name, self._counted(name))
        else:
            from triton.runtime.interpreter import GridExecutor

            def launched(grid: Any, *args: Any, **kwargs: Any) -> None:
                self.names.append(grid.fn.__name__.removesuffix("_kernel"))
                self.options.append(kwargs)

            monkeypatch.setattr(GridExecutor, "__call__", launched)

    def _counted(self, name: str) -> Callable[..., int]:
        def launched(*args: Any) -> int:
            self.names.append(name)
            return 0

        return launched

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = str(func).rpartition(".")[0]
        if name not in NO_LAUNCH:
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    def take(self) -> list[str]:
        """Return the names since the last time."""
        names, self.names = self.names, []
        return names
