"""A small stage, for tests of the store."""

from __future__ import annotations

from w2s_fast.store import Artifact, Store

CONFIG, INPUTS = {"lr": 1e-3}, {"data": "abc"}


def build(store: Store, text: str = "hello", config: dict[str, float] = CONFIG) -> Artifact:
    """Publish a stage with two files."""
    with store.building("weak", config, INPUTS) as b:
        if b.artifact is None:
            (b.path / "a.txt").write_text(text)
            (b.path / "sub").mkdir()
            (b.path / "sub" / "b.txt").write_text("b")
    assert b.artifact is not None
    return b.artifact


def key(store: Store) -> str:
    return store.key("weak", CONFIG, INPUTS)
