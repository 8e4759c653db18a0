"""The three tasks beyond accuracy: safety, toxicity, legal reasoning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from helpers.task_data import check_schema, fails, local_config, write_rows

from w2s_fast.tasks import TaskConfig, get_task

SCORER = f"{__name__}:shouting"


def shouting(texts: list[str]) -> list[float]:
    """A scorer: the share of capital letters."""
    return [sum(map(str.isupper, text)) / max(1, len(text)) for text in texts]


def test_toxicity_needs_a_scorer_that_can_be_imported(tmp_path: Path) -> None:
    rows = [{"prompt": f"The road {i}", "continuation": "went on."} for i in range(60)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    cfg = replace(local_config(path), name="wts_toxicity")
    load = get_task("wts_toxicity").load
    fails(lambda: load(cfg, 0), "task.scorer is not set")
    fails(lambda: load(replace(cfg, scorer="nowhere:f"), 0), "'nowhere:f' could not be imported")
    fails(lambda: load(replace(cfg, scorer="math:pi"), 0), "is a float; expected a function")
    assert load(replace(cfg, scorer=SCORER), 0).harm_score is shouting


def test_safety_reads_its_own_columns(tmp_path: Path) -> None:
    path = tmp_path / "safety.csv"
    body = "".join(f'"Ask, {i}\n",{("False", "True")[i % 2]}\n' for i in range(60))
    path.write_text("prompt,is_safe\n" + body + '"",True\n')  # their file has such a row
    cfg = replace(local_config(path), name="wts_safety")
    data = get_task("wts_safety").load(cfg, 0)
    check_schema(data, cfg)
    assert data.class_names == ("unsafe", "safe") and data.words == (" no", " yes")
    for text, label in zip(data.test.texts, data.test.labels, strict=True):
        assert int(text.split()[1]) % 2 == label
    load = get_task("wts_safety").load
    fails(lambda: load(replace(cfg, text="question"), 0), "no column 'question' (task.text)")
    path.write_text("prompt,is_safe\n" + body + "b,maybe\n")
    fails(lambda: load(cfg, 0), "safety.csv: is_safe is 'maybe'", "false, true")
    topics = [{"prompt": f"p {i}", "is_safe": i % 2 > 0, "topic": i // 6} for i in range(60)]
    grouped = write_rows(tmp_path / "b.jsonl", topics)
    data = load(replace(cfg, path=str(grouped), group="topic"), 0)
    parts = [{int(t.split()[1]) // 6 for t in p.texts} for p in (data.weak, data.transfer)]
    assert not parts[0] & parts[1]


def test_toxicity_reads_nested_and_plain_cells(tmp_path: Path) -> None:
    plain = [{"prompt": f"The road {i}", "continuation": f" went on {i}. "} for i in range(60)]
    nested = [
        {k: {"text": v, "toxicity": 0.1} for k, v in row.items()} | {"filename": f"f{i // 4}"}
        for i, row in enumerate(plain)
    ]
    loaded = []
    for name, rows in (("a", plain), ("b", nested)):
        path = write_rows(tmp_path / f"{name}.jsonl", rows)
        cfg = TaskConfig(**{**vars(local_config(path)), "name": "wts_toxicity", "scorer": SCORER})
        loaded.append(get_task("wts_toxicity").load(cfg, 0))
        check_schema(loaded[-1], cfg)
    one, two = loaded
    assert one.test.texts == two.test.texts and one.test.answers == two.test.answers
    assert one.test.answers is not None and one.read is not None
    assert all(a.startswith(" went on ") and a.endswith(".") for a in one.test.answers)
    assert one.read("  and then  ") == "and then" and one.read(" \n") == ""
    grouped = replace(cfg, group="filename", n_weak=8, n_transfer=8, n_test=8)
    data = get_task("wts_toxicity").load(grouped, 0)
    files = [{int(t.split()[2]) // 4 for t in p.texts} for p in (data.weak, data.transfer)]
    assert not files[0] & files[1]
