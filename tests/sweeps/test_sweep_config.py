"""The cells, devices and keys of a sweep, and errors before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.toy_sweep import SCRATCH, toy_sweep

import w2s_fast
from w2s_fast.cli.parse import load
from w2s_fast.config import RunConfig
from w2s_fast.errors import W2SError
from w2s_fast.sweeps import SweepConfig
from w2s_fast.sweeps.devices import worker_environments
from w2s_fast.sweeps.graph import make_graph
from w2s_fast.sweeps.grid import make_cells


def test_smaller_pairs_names_and_the_settings_of_each_cell(tmp_path: Path) -> None:
    models = ("bow", "scratch:hidden=8", "scratch:hidden=16,epochs=7")
    cfg = toy_sweep(
        tmp_path,
        tasks=("agreement", "agreement:n_test=30"),
        weak_models=models[:2],
        student_models=models,
        pairs="smaller",
    )
    cells = make_cells(cfg)
    assert [(c.weak, c.student) for c in cells[:5]] == [
        ("bow", "bow"), ("bow", models[1]), ("bow", models[2]),
        (models[1], models[1]), (models[1], models[2]),
    ]  # fmt: skip
    assert [c.cfg.task.n_test for c in cells] == [60] * 5 + [30] * 5
    assert (cells[2].cfg.student.hidden, cells[2].cfg.student_train.epochs) == (16, 7)
    assert cells[2].name == "agreement--bow--scratch-hidden=16-epochs=7"
    assert cells[7].name == "agreement-n_test=30--bow--scratch-hidden=16-epochs=7"
    assert len({c.name for c in cells}) == len({c.cfg.output_dir for c in cells}) == 10
    assert {c.cfg.cache_dir for c in cells} == {str(tmp_path / "cache")}
    both = ("/a/gpt2", "/b/gpt2")
    two = make_cells(toy_sweep(tmp_path, weak_models=("bow",), student_models=both))
    assert [c.student for c in two] == list(both)
    long = tuple(f"/{i}{'x' * 200}/{'y' * 130}" for i in range(2))
    names = [c.name for c in make_cells(toy_sweep(tmp_path, student_models=long))]
    assert len(set(names)) == 4 and max(map(len, names)) < 140


def test_a_change_of_data_changes_the_keys(tmp_path: Path) -> None:
    """Keys depend on the current content of files, not on that of the first read."""
    rows = [f"t{i} {'good' if i % 2 else 'bad'},{i % 2}" for i in range(60)]
    path, keys = tmp_path / "rows.csv", []
    for extra in ("", " indeed"):
        path.write_text("\n".join(["text,label", *(r.replace(",", f"{extra},") for r in rows)]))
        task = f"local:path={path},n_weak=10,n_transfer=10,n_test=10"
        cells = make_cells(toy_sweep(tmp_path, tasks=(task,)))
        keys.append(set(make_graph(cells).nodes))
    assert len(keys[0]) == 26 and not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ()}, "tasks is empty"),
        ({"student_models": ()}, "student_models is empty"),
        ({"weak_models": ("bow", "bow")}, "weak_models: 'bow' is given twice"),
        ({"weak_models": ("scratch", "scratch:hidden=32")}, "are the same run; drop one"),
        ({"weak_models": ("bwo",)}, "did you mean 'bow'?"),
        ({"weak_models": ("scratch:hiddenn=3",)}, "did you mean 'hidden'?"),
        ({"weak_models": ("scratch:lr=fast",)}, "lr is 'fast'; expected float"),
        ({"tasks": ("agrement",)}, "did you mean 'agreement'?"),
        ({"tasks": ("agreement:n_tset=3",)}, "did you mean 'n_test'?"),
        ({"tasks": ("local:path=nowhere.csv",)}, "nowhere.csv: no such file"),
        ({"devices": ("gpu:0",)}, "expected cpu or cuda:NUMBER"),
        ({"devices": ("cuda:99",)}, "devices: 'cuda:99', but torch finds"),
        ({"devices": ("cpu", "cuda:0")}, "name devices of one kind"),
        ({"pairs": "smallest"}, "did you mean 'smaller'?"),
        ({"pairs": "smaller", "student_models": (SCRATCH,)}, "'bow' of weak_models is not in"),
        (
            {"run": RunConfig(output_dir="x")},
            "run.output_dir is decided by the sweep; set output_dir instead",
        ),
        ({"run": RunConfig(device="cpu")}, "set devices instead"),
        ({"run": RunConfig(losses=("xnet",))}, "did you mean 'xent'?"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input_is_one_line_before_anything_runs(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(W2SError) as err:
        w2s_fast.sweep(toy_sweep(tmp_path / "out", **changes))
    assert words in str(err.value) and "\n" not in str(err.value)
    assert not (tmp_path / "out").exists()


def test_files_and_options_are_as_strict_as_those_of_a_run(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("tasks: [agreement]\nrun: {student_train: {lr: 0.1}}\n")
    args = ["--weak_models", "bow", "scratch:hidden=8,layers=2", "--run.seeds", "3", "4"]
    cfg = load(SweepConfig, args, [path])
    assert cfg.weak_models == ("bow", "scratch:hidden=8,layers=2") and cfg.run.seeds == (3, 4)
    assert cfg.run.student_train.lr == 0.1
    for text, words in (
        ("task: [x]", "did you mean 'tasks'?"),
        ("losses: [xent]", "did you mean 'run.losses'?"),
        ("run: 3", "run=3: expected a block"),
    ):
        path.write_text(text)
        with pytest.raises(W2SError) as err:
            load(SweepConfig, [], [path])
        assert words in str(err.value) and "\n" not in str(err.value)


def test_each_process_sees_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = make_cells(SweepConfig())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    expected = [{"CUDA_VISIBLE_DEVICES": n} for n in ("1", "0")]
    assert worker_environments(("cuda:1", "cuda:0"), cells) == expected
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert worker_environments(("cuda:1",), cells) == [{"CUDA_VISIBLE_DEVICES": "7"}]
    assert worker_environments(("cpu", "cpu"), cells) == [{}, {}]
