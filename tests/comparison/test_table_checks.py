"""Files that contradict each other are errors; files that carry other files' numbers are named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.prediction_files import draw, write_csv, write_folder, write_jsonl, write_seed

from w2s_fast import W2SError
from w2s_fast.comparison.file_results import results_of_files

Change = Callable[[Path], object]
ROW = {"id": "a", "gold": 1}


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert re.search(old, text)
    path.write_text(re.sub(old, new, text, count=1))


def repeat(path: Path, column: str) -> None:
    """Write a column a second time."""
    head, *rows = path.read_text().splitlines()
    i = head.split(",").index(column)
    path.write_text("\n".join(f"{row},{row.split(',')[i]}" for row in (head, *rows)))


def write_probs(stem: Path, cell: str) -> None:
    """Write a file with one cell in probs."""
    stem.with_suffix(".csv").unlink()
    stem.with_suffix(".tsv").write_text(f"id\tgold\tprobs\nitem 0\t0\t{cell}\n")


def write_roles(folder: Path, *models: Any, **more: Any) -> None:
    (folder / "roles.yaml").write_text(json.dumps({"models": list(models), **more}))


WEAK = {"file": "weak.csv", "role": "weak"}
STUDENT = {"file": "student-xent.csv", "role": "student", "name": "xent"}
CEILING = {"file": "ceiling.csv", "role": "ceiling"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda f: (f / "roles.yaml").write_text(
                "models:\n- {file: weak.csv, role: weak,\n   file: ceiling.csv}\n"
            ),
            r"roles.yaml: 'file' is given twice, in lines 2 and 3; keep one of them",
        ),
        (
            lambda f: (f / "roles.yaml").write_text("models: []\ntask: a\nmodels: []\n"),
            r"'models' is given twice, in lines 1 and 3",
        ),
        (lambda f: (f / "weak.csv").unlink(), "no file of a weak model"),
        (lambda f: (f / "ceiling.csv").unlink(), "no file of a ceiling model"),
        (lambda f: [p.unlink() for p in f.glob("student*")], "no file of a student model"),
        (lambda f: (f / "ceiling.csv").rename(f / "top.csv"), "top.csv: its name does not say"),
        (lambda f: (f / "weak.csv").rename(f / "weak-a.csv"), "the weak model takes no name"),
        (lambda f: replace(f / "weak.csv", "id,gold", "key,gold"), "has no column 'id'"),
        (lambda f: replace(f / "weak.csv", "id,gold", "id,label"), "has no column 'gold'"),
        (lambda f: replace(f / "weak.csv", ",prob\n", ",score\n"), "weak.csv has none of them"),
        (lambda f: replace(f / "weak.csv", ",prob\n", ",prob_1\n"), "expected prob_0 to prob_0"),
        (lambda f: replace(f / "weak.csv", "item 1,", "item 0,"), "id 'item 0' is in rows 1 and 2"),
        (lambda f: replace(f / "weak.csv", "item 1,", ","), "row 2 has no id"),
        (lambda f: replace(f / "ceiling.csv", "item 1,.*\n", ""), "ceiling.csv lacks 1 of the 400"),
        (lambda f: replace(f / "weak.csv", "item 1,.*\n", ""), "weak.csv lacks 1 of the 400"),
        (lambda f: replace(f / "ceiling.csv", "item 1,", "item x,"), "such as 'item 1'"),
        (lambda f: replace(f / "weak.csv", "item 1,0", "item 1,1"), "'item 1' has gold"),
        (lambda f: replace(f / "weak.csv", "item 1,0", "item 1,2"), "has gold='2'; expected one"),
        (lambda f: replace(f / "weak.csv", "item 1,0,.*\n", "item 1,0,nan\n"), "row 2 is [nan"),
        (lambda f: replace(f / "weak.csv", "item 1,0,.*\n", "item 1,0,-0.1\n"), "sum to 1"),
        (lambda f: replace(f / "weak.csv", "item 1,0,.*\n", "item 1,0,1.2\n"), "sum to 1"),
        (lambda f: replace(f / "weak.csv", "item 1,0,.*\n", "item 1,0,x\n"), "row 2 has prob='x'"),
        (lambda f: (f / "weak.csv").write_text("id,gold,prob\n"), "no rows"),
        (lambda f: (f / "roles.yaml").write_text("models: {"), "is not YAML"),
        (lambda f: (f / "roles.yaml").write_text("files: []"), "expected `models:`"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING, tsak="x"), "did you mean 'task'?"),
        (lambda f: write_roles(f, WEAK, STUDENT, {"file": "x.csv"}), "expected file, role"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING | {"sede": 0}), "did you mean"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING | {"role": "top"}), "role='top'"),
        (lambda f: write_roles(f, WEAK, STUDENT | {"name": ""}, CEILING), "needs a name"),
        (lambda f: write_roles(f, WEAK, STUDENT | {"name": 3}, CEILING), "name=3; expected text"),
        (lambda f: write_roles(f, WEAK | {"seed": -1}, STUDENT, CEILING), "seed=-1"),
        (lambda f: write_roles(f, WEAK, WEAK, STUDENT, CEILING), "are both weak"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING, baseline="xnt"), "no student 'xnt'"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING | {"name": "b"}), "no student 'b'"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING | {"file": "no.csv"}), "no such file"),
        (
            lambda f: write_roles(f, WEAK, STUDENT, STUDENT | {"name": "b", "base": "x"}, CEILING),
            "seed 0 belongs to the bases '' and 'x'",
        ),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING | {"file": "a\0.csv"}), "null character"),
        (lambda f: write_roles(f, WEAK, STUDENT | {"base": "\udc80"}, CEILING), "half of a surr"),
        (lambda f: write_roles(f, WEAK, STUDENT, CEILING, task="\udc80"), "half of a surrogate"),
        (lambda f: (f / "weak.csv").rename(f / "student-\udcff.csv"), "is no UTF-8; rename it"),
        (lambda f: repeat(f / "weak.csv", "prob"), "2 columns are named 'prob'; remove or rename"),
        (lambda f: repeat(f / "weak.csv", "id"), "2 columns are named 'id'"),
        (lambda f: repeat(f / "weak.csv", "gold"), "2 columns are named 'gold'"),
        (lambda f: write_probs(f / "weak", "[" * 10**5), "row 1 has no list in probs"),
        (lambda f: write_probs(f / "weak", f"[0, 1{'0' * 400}]"), "row 1 has probs=1000"),
    ],
)
def test_contradictions_are_one_line_with_the_fix(
    tmp_path: Path, change: Change, words: str
) -> None:
    write_seed(tmp_path, None, draw(12))
    assert draw(12)["gold"][1] == 0
    change(tmp_path)
    with pytest.raises(W2SError) as caught:
        results_of_files(tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_column_without_a_meaning_may_be_there_twice(tmp_path: Path) -> None:
    write_seed(tmp_path, None, draw(12))
    expected = results_of_files(tmp_path)["runs"]
    for path in tmp_path.glob("*.csv"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join(f"{line},note,note" for line in lines))
    assert results_of_files(tmp_path)["runs"] == expected


class TestFilesOutside:
    """A folder that someone sent must not show other files of whoever reports on it."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "sent"
        folder.mkdir()
        write_seed(folder, None, draw(12))
        (folder / "ceiling.csv").rename(tmp_path / "secret.csv")
        return folder

    @pytest.mark.parametrize("way", ["../secret.csv", "absolute", "link", "link in roles"])
    def test_they_are_refused(self, folder: Path, way: str) -> None:
        secret = folder.parent / "secret.csv"
        file = str(secret) if way == "absolute" else way
        if way.startswith("link"):
            file = "ceiling.csv"
            (folder / file).symlink_to(secret)
        if way != "link":
            write_roles(folder, WEAK, STUDENT, CEILING | {"file": file})
        with pytest.raises(W2SError, match=r"leads out of .*sent; expected a file inside it, so"):
            results_of_files(folder)

    def test_a_manifest_outside_is_refused(self, folder: Path) -> None:
        (folder / "roles.yaml").symlink_to(folder.parent / "secret.csv")
        with pytest.raises(W2SError, match=r"roles\.yaml leads out of"):
            results_of_files(folder)

    def test_a_link_to_itself_is_one_line(self, folder: Path) -> None:
        (folder / "ceiling.csv").symlink_to("ceiling.csv")
        write_roles(folder, WEAK, STUDENT, CEILING)
        with pytest.raises(W2SError, match=r"ceiling\.csv"):
            results_of_files(folder)

    def test_links_and_folders_inside_are_read(self, folder: Path) -> None:
        (folder / "runs").mkdir()
        (folder.parent / "secret.csv").rename(folder / "runs" / "top.csv")
        (folder / "ceiling.csv").symlink_to("runs/top.csv")
        by_name = results_of_files(folder)["runs"]
        write_roles(folder, WEAK, STUDENT, CEILING | {"file": "../sent/runs/top.csv"})
        assert results_of_files(folder)["runs"][0]["ceiling"] == by_name[0]["ceiling"]


def test_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "sent\udcff"
    folder.mkdir()
    write_seed(folder, None, draw(12))
    with pytest.raises(W2SError, match=r"--from is .*no UTF-8; rename it"):
        results_of_files(folder)


class TestGold:
    """A true class is a number from 0, or the name of a class, in the spellings of tables."""

    @pytest.mark.parametrize(
        ("heads", "golds"),
        [
            (("prob_neg", "prob_pos"), ("0", "1")),
            (("prob_neg", "prob_pos"), ("0.0", "1.0")),
            (("prob_neg", "prob_pos"), ("neg", " pos ")),
            (("prob_-1", "prob_+1"), ("-1", "1")),
            (("prob_-1", "prob_1"), ("-1", "+1")),
            (("prob_False", "prob_True"), ("false", "TRUE")),
            (("prob_0", "prob_1"), ("False", "true")),
        ],
    )
    def test_spellings(
        self, tmp_path: Path, heads: tuple[str, str], golds: tuple[str, str]
    ) -> None:
        drawn = draw(12)
        write_seed(tmp_path, None, drawn)
        expected = results_of_files(tmp_path)["runs"]
        for name, probs in drawn["probs"].items():
            rows = zip(drawn["ids"], drawn["gold"].tolist(), probs.tolist(), strict=True)
            lines = [f"{i},{golds[g]},{1 - p!r},{p!r}" for i, g, p in rows]
            text = "\n".join([f"id,gold,{','.join(heads)}", *lines])
            (tmp_path / f"{name}.csv").write_text(text)
        runs = results_of_files(tmp_path)["runs"]
        assert [r["student"] for r in runs] == [r["student"] for r in expected]

    def test_truth_values_of_other_formats(self, tmp_path: Path) -> None:
        drawn = draw(12)
        write_seed(tmp_path, None, drawn)
        expected = results_of_files(tmp_path)["runs"]
        (tmp_path / "weak.csv").unlink()
        table = {"id": drawn["ids"], "gold": drawn["gold"] == 1, "prob": drawn["probs"]["weak"]}
        pq.write_table(pa.table(table), tmp_path / "weak.parquet")
        (tmp_path / "ceiling.csv").unlink()
        table = {"id": drawn["ids"], "prob": drawn["probs"]["ceiling"]}
        table["gold"] = [str(g).encode() for g in drawn["gold"]]
        pq.write_table(pa.table(table), tmp_path / "ceiling.parquet")
        assert results_of_files(tmp_path)["runs"] == expected

    @pytest.mark.parametrize(
        ("head", "gold"),
        [("prob_a,prob_b", "2"), ("prob_1,prob_2", "0"), ("prob_a,prob_b", "true"), ("prob", "")],
    )
    def test_others_are_refused(self, tmp_path: Path, head: str, gold: str) -> None:
        write_seed(tmp_path, None, draw(12))
        probs = "0.5,0.5" if "," in head else "0.5"
        (tmp_path / "weak.csv").write_text(f"id,gold,{head}\nitem 0,{gold},{probs}\n")
        with pytest.raises(W2SError, match=r"item 'item 0' has gold=|expected prob_0 to prob_1"):
            results_of_files(tmp_path)


def test_columns_of_classes_are_sorted_by_number(tmp_path: Path) -> None:
    drawn = draw(0)
    write_seed(tmp_path, None, drawn)
    expected = results_of_files(tmp_path)["runs"]
    (tmp_path / "weak.csv").unlink()
    weak = drawn["probs"]["weak"].tolist()
    columns = zip(drawn["ids"], drawn["gold"].tolist(), weak, strict=True)
    write_jsonl(
        tmp_path / "weak.jsonl",
        [{"id": i, "gold": float(g), "prob_1": p, "prob_0": 1 - p} for i, g, p in columns],
    )
    assert results_of_files(tmp_path)["runs"] == expected


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ROW, "probs": [0.5, 0.2]}, "row 2 is [0.5, 0.2]; expected probabilities that sum to 1"),
        ({**ROW, "probs": [0.5, 0.5, 0.0]}, "row 2 has 3 probabilities, row 1 has 2"),
        ({**ROW, "probs": []}, "row 2 has no list in probs"),
        ({**ROW, "prob_0": 0.5, "prob_1": 0.5}, "has probs, prob_0, prob_1"),
    ],
)
def test_lists_are_checked(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    write_seed(tmp_path, None, draw(0))
    (tmp_path / "weak.csv").unlink()
    write_jsonl(tmp_path / "weak.jsonl", [{"id": "b", "gold": 1, "probs": [0.2, 0.8]}, row])
    with pytest.raises(W2SError, match=re.escape(words)):
        results_of_files(tmp_path)


def test_a_student_that_lacks_a_seed_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "student-xent.seed1.csv").unlink()
    with pytest.raises(W2SError, match="no student xent for seed 1"):
        results_of_files(tmp_path)


def test_no_folder_and_bases_of_different_sizes(tmp_path: Path) -> None:
    with pytest.raises(W2SError, match="is no folder"):
        results_of_files(tmp_path / "nowhere")
    write_folder(tmp_path)
    entries = [
        {"file": f"{name}.seed{seed}.csv", "role": role, "seed": seed}
        | ({"name": "xent", "base": f"b{seed // 2}"} if role == "student" else {})
        for seed in (0, 1, 2)
        for role, name in (("weak", "weak"), ("student", "student-xent"), ("ceiling", "ceiling"))
    ]
    write_roles(tmp_path, *entries)
    with pytest.raises(W2SError, match=r"different numbers of seeds \(b0: 2, b1: 1\)"):
        results_of_files(tmp_path)


def warnings(folder: Path) -> list[str]:
    return results_of_files(folder)["warnings"]


def test_independent_models_give_no_warning(tmp_path: Path) -> None:
    write_folder(tmp_path)
    assert warnings(tmp_path) == []


def test_a_student_with_the_numbers_of_the_ceiling(tmp_path: Path) -> None:
    drawn = draw(0)
    drawn["probs"]["student-xent"] = drawn["probs"]["ceiling"]
    write_seed(tmp_path, None, drawn)
    text = (tmp_path / "ceiling.csv").read_text()
    (tmp_path / "ceiling.csv").write_text(text + "\n")  # another file with the same numbers
    (line,) = warnings(tmp_path)
    assert line == (
        "ceiling (ceiling.csv) and student xent (student-xent.csv) have the same probabilities on "
        "all items: one may carry the numbers of another"
    )


def test_numbers_of_another_seed_under_new_ids(tmp_path: Path) -> None:
    write_folder(tmp_path)
    other = draw(0)["probs"]["student-xent"]
    drawn = draw(1)
    write_csv(
        tmp_path / "student-xent.seed1.csv",
        [f"1/{i}" for i in drawn["ids"]], drawn["gold"], other,
    )  # fmt: skip
    (line,) = warnings(tmp_path)
    assert "student xent, seed 0" in line and "student xent, seed 1" in line
    assert "the same probabilities" in line


def test_the_same_order_does_not_matter_and_rounding_is_told_apart(tmp_path: Path) -> None:
    drawn = draw(0)
    rounded = np.round(drawn["probs"]["student-xent"], 3)
    write_seed(tmp_path, None, drawn)
    order = np.random.default_rng(0).permutation(len(rounded))
    write_csv(
        tmp_path / "student-logconf.csv",
        [drawn["ids"][i] for i in order], drawn["gold"][order], rounded[order],
    )  # fmt: skip
    (line,) = warnings(tmp_path)
    assert "differ by at most 0.0005" in line
    write_csv(tmp_path / "student-logconf.csv", drawn["ids"], drawn["gold"], rounded + 0.002)
    assert warnings(tmp_path) == []


def test_one_item_under_two_ids(tmp_path: Path) -> None:
    drawn = draw(0)
    for probs in drawn["probs"].values():
        probs[5] = probs[3]
    drawn["gold"][5] = drawn["gold"][3]
    write_seed(tmp_path, None, drawn)
    (line,) = warnings(tmp_path)
    assert "'item 3 = item 5'" in line and "every model" in line
    coarse = {name: np.round(probs, 2) for name, probs in drawn["probs"].items()}
    write_seed(tmp_path, None, {**drawn, "probs": coarse})
    assert warnings(tmp_path) == [], "rounded probabilities agree by chance"
    half = {name: p.astype(np.float16).astype(float) for name, p in drawn["probs"].items()}
    write_seed(tmp_path, None, {**drawn, "probs": half})
    assert warnings(tmp_path) == []


def test_one_text_under_two_ids(tmp_path: Path) -> None:
    drawn = draw(0)
    write_seed(tmp_path, None, drawn)
    (tmp_path / "weak.csv").unlink()
    rows = zip(drawn["ids"], drawn["gold"].tolist(), drawn["probs"]["weak"].tolist(), strict=True)
    texts = [f"text {i % 399}" for i in range(400)]
    write_jsonl(
        tmp_path / "weak.jsonl",
        [
            {"id": i, "gold": g, "prob": p, "text": t}
            for (i, g, p), t in zip(rows, texts, strict=True)
        ],
    )
    (line,) = warnings(tmp_path)
    assert "'item 0 = item 399'" in line and "the same text" in line


def test_two_texts_under_one_id(tmp_path: Path) -> None:
    """White space at the ends is no difference."""
    drawn = draw(0)
    write_seed(tmp_path, None, drawn)
    rows = list(zip(drawn["ids"], drawn["gold"].tolist(), strict=True))
    for name, change in (("ceiling", ""), ("student-xent", " \n"), ("weak", "x")):
        (tmp_path / f"{name}.csv").unlink()
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [
                {"id": i, "gold": g, "prob": p, "text": f"text {n}" + change * (n < 5)}
                for n, ((i, g), p) in enumerate(
                    zip(rows, drawn["probs"][name].tolist(), strict=True)
                )
            ],
        )
    (line,) = warnings(tmp_path)
    assert "5 items have another text in weak.jsonl than in ceiling.jsonl" in line
    assert "'item 0', 'item 1', 'item 2' and 2 more" in line
