"""The files of ``w2s-fast label``: readable without the run that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from helpers.toy_run import config

from w2s_fast.integrations.batches import read_labels
from w2s_fast.pipeline import label
from w2s_fast.pipeline.context import load_data
from w2s_fast.pipeline.label_files import write_label_files


def test_texts_and_class_names_stand_beside_probabilities(tmp_path: Path) -> None:
    cfg = config(tmp_path, seeds=[3])
    (folder,) = label(cfg).values()
    assert folder == tmp_path / "labels" / "3"
    table = pq.read_table(folder)
    assert table.column_names == ["id", "text", "label", "probs"]
    data = load_data(cfg.task, 3)
    assert table["text"].to_pylist() == list(data.transfer.texts)
    probs = np.array(table["probs"].to_pylist())
    names = [data.class_names[c] for c in probs.argmax(1)]
    assert table["label"].to_pylist() == names and set(names) == {"singular", "plural"}
    labels = read_labels(folder, data.transfer.ids, n_classes=2)
    assert np.allclose(labels.probs, probs)


def test_a_second_call_replaces_the_files(tmp_path: Path) -> None:
    cfg = config(tmp_path)
    (folder,) = label(cfg).values()
    first = {p.name: p.read_bytes() for p in folder.iterdir()}
    (folder / "part-00009.parquet").write_bytes(b"of a larger run")
    hidden = folder.with_name(".0")
    hidden.symlink_to(tmp_path)  # is removed, and what it leads to stays
    label(cfg)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == first
    assert [p.name for p in folder.parent.iterdir()] == ["0"] and (tmp_path / "cache").is_dir()


@pytest.mark.parametrize("kind", ["preference", "generation"])
def test_columns_of_other_kinds(tmp_path: Path, kind: str) -> None:
    """Two texts of a preference; a prompt and what the weak model wrote."""
    from w2s_fast.pipeline.artifacts import write_probs, write_texts

    sizes = {"n_weak": 4, "n_transfer": 6, "n_test": 4}
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    rows = [{**pair, "prompt": f"say {i}", "answer": str(i)} for i in range(40)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = "pairs" if kind == "preference" else "local_answers"
    data = load_data(config(tmp_path, task={"name": name, "path": str(path), **sizes}).task, 0)
    stored, ids = tmp_path / "stored", data.transfer.ids
    stored.mkdir()
    if kind == "preference":
        probs = np.array([[0.2, 0.8], [0.7, 0.3]] * 3, dtype=np.float32)
        write_probs(stored / "part-00000.parquet", ids, probs)
    else:
        write_texts(stored / "part-00000.parquet", ids, [f"it is {key}" for key in ids])
    write_label_files(stored, data, tmp_path / "labels" / "0")
    table = pq.read_table(tmp_path / "labels" / "0")
    assert table["text"].to_pylist() == list(data.transfer.texts)
    if kind == "preference":
        assert table.column_names == ["id", "text", "text_pair", "label", "probs"]
        assert table["text_pair"].to_pylist() == list(data.transfer.pairs or ())
        assert table["label"].to_pylist() == ["second", "first"] * 3
    else:
        assert table.column_names == ["id", "text", "completion"]
        assert table["completion"].to_pylist() == [f"it is {key}" for key in ids]
