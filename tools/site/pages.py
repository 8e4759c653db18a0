"""Pages without a document of their own: source files, notebooks, and the API reference."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from pathlib import Path

import w2s_fast as package
from tools.site.links import ROOT, page_of, rewrite

_LANGUAGES = {
    ".py": "python", ".sh": "bash", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml",
    ".h": "cpp", ".cpp": "cpp", ".cu": "cpp", ".cff": "yaml",
}  # fmt: skip
# Public names by what they are for; `reference_pages` raises for a name that no group has.
_GROUPS = {
    "Losses of logits": (
        "cross_entropy", "SparseTargets", "pack_topk", "make_loss", "balanced_bias",
    ),
    "Losses of hidden states and a head": (
        "linear_cross_entropy", "linear_logprob", "linear_topk_logprob", "linear_topk_ids",
        "TeacherHead", "LMHeadLoss",
    ),
    "Log-probabilities and quantiles": (
        "topk_logprob", "quantile", "kth_value", "top_fraction_mask",
    ),
    "Contrastive losses": ("info_nce", "mix_hard_negatives"),
    "Logits that are divided over processes": (
        "vocab_parallel_cross_entropy", "vocab_parallel_logprob",
    ),
    "Models of other trainers": ("patch", "unpatch"),
    "Experiments": (
        "run", "RunConfig", "TaskConfig", "ModelConfig", "TrainConfig", "SupervisorsConfig",
        "sweep", "SweepConfig", "to_dataframe",
    ),
    "Errors": ("W2SError",),
}  # fmt: skip


def source_page(path: Path) -> str:
    """Return a page that shows a text file, or lists the files of a folder with links."""
    name = str(path.relative_to(ROOT))
    if path.is_dir():
        return f"# {name}\n\n{_listing(path)}"
    if path.suffix == ".ipynb":
        return notebook_page(path)
    fence = "````"  # a file that is shown may have ``` in it
    return f"# {name}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}{fence}\n"


def files_of(path: Path) -> list[Path]:
    """Return the files of a folder that have pages of their own, in order; a file has none."""
    if not path.is_dir():
        return []
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in {*_LANGUAGES, ".ipynb"})


def _listing(path: Path) -> str:
    here = posixpath.dirname(page_of(str(path.relative_to(ROOT))))
    lines = []
    for file in files_of(path):
        page = posixpath.relpath(page_of(str(file.relative_to(ROOT))), here)
        lines.append(f"- [{file.relative_to(path)}]({page})")
    return "\n".join(lines) + "\n"


def notebook_page(path: Path) -> str:
    """Return a notebook's cells as Markdown; notebooks of the repository have no outputs."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    return rewrite(str(path.relative_to(ROOT)), "\n\n".join(parts) + "\n")


def reference_pages() -> dict[str, str]:
    """Return page -> Markdown of the API reference, for mkdocstrings.

    Raises:
        ValueError: A public name belongs to no group.
    """
    from w2s_fast.losses import LOSSES
    from w2s_fast.losses.distillation import DISTILLATIONS
    from w2s_fast.losses.policy import POLICY_LOSSES
    from w2s_fast.losses.preference import PREFERENCES
    from w2s_fast.methods import METHODS, Method, Plan

    grouped = {name for names in _GROUPS.values() for name in names}
    if missing := set(package.__all__) - grouped - {"__version__"}:
        raise ValueError(f"no group of the API reference has {sorted(missing)}; see {__file__}")
    registries: dict[str, Mapping[str, type]] = {
        "Losses of labels": LOSSES,
        "Preference losses": PREFERENCES,
        "Distillation": DISTILLATIONS,
        "Policy losses": POLICY_LOSSES,
    }
    losses = "".join(f"## {title}\n\n{_classes(kinds)}" for title, kinds in registries.items())
    bases = {"the base class": Method, "what a method may ask for": Plan}
    return {
        "api/index.md": _public_names(),
        "api/losses.md": f"# Classes of losses\n\n{losses}",
        "api/methods.md": f"# Classes of methods\n\n{_classes({**METHODS, **bases}, level=2)}",
    }


def _public_names() -> str:
    text = "# API reference\n\nEverything here is importable from `w2s_fast` and stays.\n\n"
    for title, names in _GROUPS.items():
        blocks = "".join(_block(_home(name), 3, f"w2s_fast.{name}") for name in names)
        text += f"## {title}\n\n{blocks}"
    return text


def _home(name: str) -> str:
    """Return the path of a public name in the module that defines it."""
    value = getattr(package, name)
    return f"{value.__module__}.{value.__qualname__}"


def _classes(kinds: Mapping[str, type], level: int = 3) -> str:
    paths = dict.fromkeys(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds.values())
    return "".join(_block(path, level) for path in paths)


def _block(path: str, level: int, heading: str = "") -> str:
    heading = heading or path.rpartition(".")[2]
    return f"::: {path}\n    options: {{heading_level: {level}, heading: {heading}}}\n\n"
