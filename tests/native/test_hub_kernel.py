"""The package for the Hub's kernel loader: found offline, beside other versions, by any name."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.paths import ROOT

import w2s_fast
from tools.hub_kernel import write
from tools.hub_kernel.closure import closure, path_of
from tools.hub_kernel.relocate import relocate


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    assert write.main([str(folder)]) == 0
    return folder


LOAD = """
import sys
from pathlib import Path
import torch
import kernels
module = kernels.get_local_kernel(Path({folder!r}), backend="cpu")
z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5]], requires_grad=True)
loss, stats = module.cross_entropy(
    z, torch.tensor([0, 1]), aux=0.5, threshold="median", return_stats=True
)
loss.backward()
compiled = torch.compile(
    lambda z: module.cross_entropy(z, torch.tensor([0, 1])), fullgraph=True, backend="aot_eager"
)
head = torch.ones(3, 4, requires_grad=True)
module.linear_cross_entropy(torch.ones(2, 4), head, torch.tensor([0, 1])).backward()
print(loss.item(), float(compiled(z)), z.grad.flatten().tolist(), head.grad.sum().item())
try:
    module.cross_entropy(z, torch.tensor([0.5]))
except module.W2SError as e:
    print(type(e).__name__)
print([name for name in sys.modules if name.split(".")[0] in ("w2s_fast", "tools", "tests")])
"""


def run(code: str) -> str:
    env = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", code], cwd=ROOT.parent, env=env,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_loader_finds_the_variant_and_its_losses_are_right(repository: Path) -> None:
    pytest.importorskip("kernels", reason="the extra hub-kernel is missing")
    numbers, error, leaked = run(LOAD.format(folder=str(repository))).splitlines()
    z = torch.tensor([[2.0, 0.0, -1.0], [0.0, 3.0, 0.5]], requires_grad=True)
    loss = w2s_fast.cross_entropy(z, torch.tensor([0, 1]), aux=0.5, threshold="median")
    plain = w2s_fast.cross_entropy(z.detach(), torch.tensor([0, 1]))
    loss.backward()
    assert z.grad is not None
    got = [float(x) for x in numbers.replace("[", "").replace("]", "").replace(",", "").split()]
    expected = [loss.item(), plain.item(), *z.grad.flatten().tolist(), 0.0]
    assert got == pytest.approx(expected, abs=1e-6)
    assert error == "W2SError" and leaked == "[]"


TWO = """
import importlib.util, sys
import torch
modules = []
for number, folder in enumerate({folders!r}):
    spec = importlib.util.spec_from_file_location(f"kernel_{{number}}", folder + "/__init__.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    modules.append(module)
import w2s_fast
modules.append(w2s_fast)
for module in modules:
    print(float(module.cross_entropy(torch.eye(3), torch.arange(3))))
"""


@pytest.mark.slow
def test_versions_live_side_by_side(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two variants and the package itself register operators in one process."""
    monkeypatch.setattr(write, "__version__", "0.3.0")
    write.write(tmp_path)
    folders = [str(folder / "build" / "torch-cpu") for folder in (repository, tmp_path)]
    ids = {json.loads(Path(f, "metadata.json").read_text())["id"] for f in folders}
    assert len(ids) == 2
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})" + TWO.format(folders=folders)
    assert len(set(run(code).splitlines())) == 1


@pytest.mark.parametrize("backend", write.BACKENDS)
def test_a_variant_is_whole(repository: Path, backend: str) -> None:
    """Every import is relative and leads to a file; operators have a namespace of their own."""
    folder = repository / "build" / f"torch-{backend}"
    record = json.loads((folder / "metadata.json").read_text())
    assert record["backend"] == {"type": backend} and record["name"] == "w2s-fast"
    assert record["id"].startswith(f"_w2s_fast_{backend}_")
    for path in folder.rglob("*.py"):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] != "w2s_fast", path
                if node.level:
                    base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                    inside = base.with_suffix(".py").is_file() or (base / "__init__.py").is_file()
                    assert inside or base == folder, (path, node.module)
            if isinstance(node, ast.Import):
                assert all(a.name.split(".")[0] != "w2s_fast" for a in node.names), path
        assert "torch.ops.w2s_fast." not in text and '"w2s_fast::' not in text, path


def test_all_public_ops_are_in_it() -> None:
    homes = {n: m for n, m in w2s_fast._HOMES.items() if m.startswith("w2s_fast.ops.")}
    for name, module in homes.items():
        assert name in write.PUBLIC[module.removeprefix("w2s_fast.")]


def test_relocate() -> None:
    source = "from w2s_fast.ops import native\n    from w2s_fast import _core\nx = 1\n"
    moved = relocate(source, "w2s_fast.ops.quantile.api", False, "n")
    assert moved == "from ...ops import native\n    from ... import _core\nx = 1\n"
    inside = relocate(source, "w2s_fast.ops.quantile", True, "n")
    assert inside == moved
    text = 'torch.ops.w2s_fast.a("w2s_fast::b", Library("w2s_fast", "DEF"), "w2s_fast.c")'
    assert relocate(text, "w2s_fast.x", False, "n") == (
        'torch.ops.n.a("n::b", Library("n", "DEF"), "w2s_fast.c")'
    )
    with pytest.raises(ValueError, match=r"expected `from w2s_fast\.\.\. import`"):
        relocate("import w2s_fast\n", "w2s_fast.x", False, "n")


def test_closure() -> None:
    found = closure(["w2s_fast.ops.quantile.api"], ROOT)
    assert "w2s_fast.errors" in found and "w2s_fast.ops.dispatch" in found
    assert not any(name.startswith(("w2s_fast.pipeline", "w2s_fast.cli")) for name in found)
    assert path_of("w2s_fast.kernels._tile", ROOT) == ROOT / "kernels" / "_tile.py"
    assert path_of("w2s_fast.W2SError", ROOT) is None
    with pytest.raises(ValueError, match="w2s_fast.nothing is no module"):
        closure(["w2s_fast.nothing"], ROOT)
