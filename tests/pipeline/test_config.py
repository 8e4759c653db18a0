"""The configuration: strict names and types, several ways to write it, nothing heavy imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from w2s_fast.cli.parse import load_config, make_parser
from w2s_fast.config import RunConfig, field_types, from_dict, to_dict, to_yaml, validate
from w2s_fast.errors import W2SError
from w2s_fast.specs import settings, split
from w2s_fast.tasks import TaskConfig
from w2s_fast.training import TrainConfig


def test_defaults_are_the_embedded_task_and_survive_both_ways() -> None:
    cfg = RunConfig()
    assert cfg.task.name == "agreement" and cfg.student.source == "agreement-lm"
    assert (cfg.losses, cfg.seeds) == (("xent", "logconf"), (0, 1, 2))
    assert from_dict(to_dict(cfg)) == cfg == load_config()
    validate(cfg)


def test_yaml_of_any_configuration_reads_back(tmp_path: Path) -> None:
    cfg = load_config(
        ["--student_train.clip_norm", "1", "--task.classes", "[bad, good]", "--seeds", "7"]
    )
    assert cfg.student_train.clip_norm == 1.0 and cfg.task.classes == ("bad", "good")
    path = tmp_path / "run.yaml"
    path.write_text(to_yaml(cfg))
    assert load_config(paths=[path]) == cfg == load_config(["--config", str(path)])


def test_every_field_is_an_option_with_a_text() -> None:
    text = make_parser().format_help()
    for name in field_types():
        assert f"--{name}" in text
    actions = [a for a in make_parser()._actions if a.dest not in ("help", "print_config")]
    assert [a.dest for a in actions if not (a.help or "").strip()] == []


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--seeds", "3", "1"], (3, 1)),
        (["--seeds", "3,1"], (3, 1)),
        (["--seeds=[3, 1]"], (3, 1)),
        (["--losses", "xent", "logconf:aux_coef=0.3,warmup_frac=0.1"],
         ("xent", "logconf:aux_coef=0.3,warmup_frac=0.1")),
        (["--losses=xent,logconf:aux_coef=0.3,warmup_frac=0.1,focal"],
         ("xent", "logconf:aux_coef=0.3,warmup_frac=0.1", "focal")),
    ],
)  # fmt: skip
def test_lists_are_written_the_usual_ways(args: list[str], expected: tuple[object, ...]) -> None:
    cfg = load_config(args)
    assert expected in (cfg.seeds, cfg.losses)


def test_later_files_and_options_win_and_blocks_merge(tmp_path: Path) -> None:
    one, two = tmp_path / "1.yaml", tmp_path / "2.yaml"
    one.write_text("student_train:\n  lr: 0.1\n  epochs: 9\noutput_dir: a\n")
    two.write_text("student_train:\n  lr: 0.2\n")
    cfg = load_config(["--student-train.lr=0.3", "--control"], [one, two])
    assert (cfg.student_train.lr, cfg.student_train.epochs, cfg.output_dir) == (0.3, 9, "a")
    assert cfg.control and cfg.student_train.batch_size == RunConfig().student_train.batch_size
    assert load_config([], [one, two]).student_train.lr == 0.2


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--student_train.learning_rate", "1"], "did you mean 'student_train.lr'?"),
        (["--learning_rate", "1"], "'weak_train.lr' and 'student_train.lr'"),
        (["--weak.max_length", "9"], "'weak_train.max_length' and 'student_train.max_length'"),
        (["--student_train.zzz", "1"], "see --print-config for all of them"),
        (["--student_train.max_lenght", "1"], "did you mean 'student_train.max_length'?"),
        (["--stuent_train.lr", "1"], "'student_train.lr'"),
        (["--student_train", "3"], "it is a block of settings"),
        (["--dataset", "x"], "did you mean 'task.name'?"),
        (["--weak_train.lr", "-1"], "weak_train.lr is -1.0; expected"),
        (["--student.dtype", "fp8"], "student.dtype is 'fp8'; expected"),
        (["--student.source=bow", "--student.lora_rank=2"], "student: a bag of words has no"),
        (["--weak_train.offload_params=nvme", "--weak_train.zero_stage=3"], "weak_train: offload"),
        (["--task.pretrain.steps", "0"], "task.pretrain.steps=0"),
        (["--sedes", "1"], "unknown setting 'sedes'; did you mean 'seeds'?"),
        (["--student_train.epochz", "1"], "did you mean 'student_train.epochs'?"),
        (["--student.lr", "1"], "'weak_train.lr' and 'student_train.lr'"),
        (["--n_test", "1"], "did you mean 'task.n_test'?"),
        (["--student_train.lr", "fast"], "student_train.lr: Expected a float. Got value: fast"),
        (["--student_train.lr"], "--student_train.lr needs a value (float)"),
        (["--seeds"], "seeds is empty"),
        (["--losses=[]"], "losses is empty"),
        (["--seeds", "1", "1"], "seeds: 1 is given twice"),
        (["--seeds", "-1"], "seeds: -1 is outside"),
        (["--device", "gpu"], "expected auto, cpu or cuda"),
        (["--workers", "-2"], "workers=-2"),
        (["--out", ""], "output_dir is empty"),
        (["--task.n_test", "0"], "task.n_test=0"),
        (["--weak_train.batch_size", "0"], "batch_size is 0"),
        (["extra"], "unexpected argument 'extra'"),
        (["--config", "nowhere.yaml"], "cannot read config file 'nowhere.yaml'"),
    ],
)
def test_a_bad_option_is_one_line(args: list[str], words: str) -> None:
    with pytest.raises(W2SError) as err:
        load_config(args)
    assert words in str(err.value) and "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sedes: [1]", "did you mean 'seeds'?"),
        ("student_train: {lrr: 1}", "did you mean 'student_train.lr'?"),
        ("task: {pretrain: {step: 1}}", "did you mean 'task.pretrain.steps'?"),
        ("student_train: 3", "student_train=3: expected a block"),
        ("seeds: [a]", "seeds"),
        ("a: [", "is not YAML"),
        ("seeds: [0]\ntask:\n  n_weak: 9\nseeds: [1]", "'seeds' is given twice, in lines 1 and 4"),
        ("task: {n_weak: 9, n_weak: 8}", "'n_weak' is given twice, in lines 1 and 1"),
        ("- 1", "expected lines as --print-config shows"),
        ("", "expected lines as --print-config shows"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(W2SError) as err:
        load_config(paths=[path])
    assert words in str(err.value) and "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--losses", "logcnof"], "did you mean 'logconf'?"),
        (["--losses", "logconf:aux=1"], "it is now called 'aux_coef'"),
        (["--losses", "logconf:auxcoef=1"], "did you mean 'aux_coef'?"),
        (["--losses", "logconf", "logconf:aux_coef=0.5"], "are the same loss"),
        (["--task.name", "agrement"], "did you mean 'agreement'?"),
        (["--student.source", "bert-base"], "student.source='bert-base' is not a folder"),
        (["--task.name", "local"], "knows only the language of task 'agreement'"),
    ],
)
def test_values_are_checked_before_anything_runs(args: list[str], words: str) -> None:
    with pytest.raises(W2SError, match=words.replace("?", r"\?")) as err:
        validate(load_config(args))
    assert "\n" not in str(err.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("student_train.zero", "student_train.zero_stage"),
        ("weak_train.threshold", "weak_train.threshold_scope"),
        ("student_train.deepspeed", "student_train.deepspeed_config"),
        ("cache", "cache_dir"),
        ("chain", "intermediate_models"),
        ("writer.url", "transcript_writer"),
    ],
)
def test_a_renamed_setting_names_its_successor(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "old.yaml"
    block, _, leaf = old.rpartition(".")
    path.write_text(f"{block}: {{{leaf}: 1}}" if block else f"{leaf}: 1")
    for read in (
        lambda: load_config([f"--{old}", "1"]),
        lambda: load_config(paths=[path]),
        lambda: from_dict({block: {leaf: 1}} if block else {leaf: 1}),
    ):
        with pytest.raises(W2SError, match=f"it is now called '{new}"):
            read()


def test_out_is_short_for_output_dir_on_the_command_line_only() -> None:
    assert load_config(["--out", "x"]) == load_config(["--output_dir=x"])
    with pytest.raises(W2SError, match="'out'; it is now called 'output_dir'"):
        from_dict({"out": "x"})


def test_python_dicts_are_as_strict() -> None:
    with pytest.raises(W2SError, match="did you mean 'seeds'"):
        from_dict({"sedes": [1]})
    with pytest.raises(W2SError, match="expected a block"):
        from_dict({"task": 3})


def test_reading_a_configuration_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from w2s_fast.cli.parse import load_config, make_parser\n"
        "load_config(['--seeds', '1']); make_parser().format_help()\n"
        "print([m for m in ('torch', 'transformers', 'deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_settings_behind_a_name_take_the_type_of_their_field() -> None:
    """Colons of paths and imports belong to the name; a field that may be null has a type too."""
    assert split("lab.tasks:Mine") == ("lab.tasks:Mine", "")
    assert split("a:b/c:path=/x:y=z,n_test=3") == ("a:b/c", "path=/x:y=z,n_test=3")
    given = "path=rows.csv,n_test=3,header=false,group=7"
    assert settings(TaskConfig, given, given, "task") == {
        "path": "rows.csv", "n_test": 3, "header": False, "group": "7"
    }  # fmt: skip
    assert settings(TrainConfig, "micro_batch_size=4", "", "train") == {"micro_batch_size": 4}
    for field in ("classes", "pretrain"):
        with pytest.raises(W2SError, match=f"{field} cannot be set in a spec"):
            settings(TaskConfig, f"{field}=1", f"local:{field}=1", "task")
