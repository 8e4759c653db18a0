"""The usual ways to write a setting: options, YAML, dictionaries; text stays as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from w2s_fast.cli.parse import load_config, make_parser, print_config
from w2s_fast.config import RunConfig, field_types, from_dict, to_yaml
from w2s_fast.errors import W2SError
from w2s_fast.specs import without_none

# Texts that YAML reads as something else, and texts that a list in an option could break.
_ODD = st.sampled_from(
    ["0", "01", "1.0", "1e3", "0x10", "no", "True", "null", "~x", "#", "'", '"', "a b", "[",
     "{text}", " is", "x: y", "a=b", "2020-01-01", "\\", "é", "|", "- x", "&a", "*", "!", "%", "@"]
)  # fmt: skip
TEXTS = [n for n, hint in field_types().items() if hint == str | None]
LISTS = [n for n, hint in field_types().items() if hint == tuple[str, ...] | None]


def value_of(cfg: Any, name: str) -> Any:
    """Return the value of a field by its dotted name."""
    for part in name.split("."):
        cfg = getattr(cfg, part)
    return cfg


@pytest.mark.parametrize(
    ("args", "classes"),
    [
        (["--task.classes", "0", "1"], ("0", "1")),
        (["--task.classes", "0,1"], ("0", "1")),
        (["--task.classes=0,1"], ("0", "1")),
        (["--task.classes", "0, 1"], ("0", "1")),
        (["--task.classes", "[0, 1]"], ("0", "1")),
        (["--task.classes", "[no, yes]"], ("no", "yes")),
        (["--task.classes", "a=1", "b=2"], ("a=1", "b=2")),
        (["--task.classes", "a=1,b=2"], ("a=1", "b=2")),
        (["--task.classes", "null"], None),
    ],
)
def test_classes_as_options(args: list[str], classes: tuple[str, ...] | None) -> None:
    assert load_config(args).task.classes == classes


CHAINS = (
    "agreement_sft:iterations=2,rule=number|contrast:rule=number,n=6", "naive", "mixup@smoothing",
    "soup:members=3", "fixmatch:threshold=0.9,share=0.5|probe@logconf:aux_coef=0.3,warmup_frac=0.1",
)  # fmt: skip


@settings(deadline=None, max_examples=20)
@given(specs=st.lists(st.sampled_from(CHAINS), min_size=1, unique=True), name=st.just("methods"))
@example(specs=["logconf:aux_coef=0.3,warmup_frac=0.1", "gce:q=0.5", "xent"], name="losses")
def test_specs_as_options(specs: list[str], name: str) -> None:
    """Commas separate specs, and the fields of one; both at once, too."""
    for args in ([f"--{name}", *specs], [f"--{name}={','.join(specs)}"]):
        assert value_of(load_config(args), name) == tuple(specs)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("task: {classes: [0, 1]}", "task.classes", ("0", "1")),
        ("task: {classes: [no, 010, 1.0]}", "task.classes", ("no", "010", "1.0")),
        ("task: {label: 0}", "task.label", "0"),
        ("task: {group: 3}", "task.group", "3"),
        ("task: {path: null}", "task.path", None),
        ("task: {path: 'null'}", "task.path", "null"),
        ("task: {delimiter: '#'}", "task.delimiter", "#"),
        ("student_train: {lr: 1e-3}", "student_train.lr", 1e-3),
        ("student_train: {lr: '2'}", "student_train.lr", 2.0),
        ("student_train: {clip_norm: ~}", "student_train.clip_norm", None),
        ("control: yes", "control", True),
        ("a: &a {lr: 3}\nstudent_train: *a", None, "unknown setting 'a.lr'"),
        ("weak_train: &a {lr: 3}\nstudent_train: {<<: *a, epochs: 7}", "student_train.lr", 3.0),
        ("weak_train: &a {lr: 3}\nstudent_train: {<<: *a, lr: 7}", "student_train.lr", 7.0),
        ("student_train: {lr: 5}\nstudent_train.epochs: 7", "student_train.lr", 5.0),
        ("student_train: {epochs: 08}", "student_train.epochs", 8),
        ("student_train: {epochs: 007}", "student_train.epochs", 7),
        ("student_train: {epochs: 0x10}", "student_train.epochs", 16),
        ("student_train: {lr: 1_000}", "student_train.lr", 1000.0),
    ],
)
def test_values_in_a_file(tmp_path: Path, text: str, name: str | None, value: Any) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    if name is None:
        with pytest.raises(W2SError, match=value):
            load_config(paths=[path])
        return
    assert value_of(load_config(paths=[path]), name) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("task: {label: ~}", "task.label is null; expected str"),
        ("task: {n_weak: }", "task.n_weak is null; expected int"),
        ("losses: ~", "losses is null; expected list"),
        ("task: {label: [0]}", "task.label is a list; expected one value"),
        ("task: {label: {a: 1}}", "task.label is a block of settings; expected one value"),
        ("seeds: [[0]]", "seeds is a list; expected one value"),
        ("seeds: [0, x]", "seeds: Expected an int. Got value: x"),
        ("task: {n_weak: 30}\ntask.n_weak: 31", "'task.n_weak' is given twice, in lines 1 and 2"),
        (
            "task.pretrain.steps: 3\ntask:\n  n_weak: 2\n  pretrain: {steps: 3}",
            "'task.pretrain.steps' is given twice, in lines 1 and 4; keep one of them",
        ),
        (
            "task: {pretrain.steps: 3, pretrain: {steps: 4}}",
            "'task.pretrain.steps' is given twice, in lines 1 and 1",
        ),
        (
            "weak_train: &a {lr: 3}\nstudent_train: {<<: *a}\nstudent_train.lr: 7",
            "'student_train.lr' is given twice, in lines 1 and 3",
        ),
        (
            "student_train: {epochs: 010}",
            "student_train.epochs is '010', which YAML reads in base 8",
        ),
        ("student_train: {lr: -010}", "student_train.lr is '-010', which YAML reads in base 8"),
        (
            "student_train: {epochs: 1:30}",
            "student_train.epochs is '1:30', which YAML reads in base 60",
        ),
        ("student_train: {lr: '1:30.5'}", "student_train.lr is '1:30.5', which YAML reads in base"),
        ("seeds: [0, 010]", "seeds is '010', which YAML reads in base 8"),
        ("x: {y: {z: 1}}", "unknown setting 'x.y.z'"),
        ("x: &x {y: *x}", "unknown setting 'x.y.y.y'"),
        ("x: {}", "unknown setting 'x'"),
        ("task: !!python/object:os.system {}", "is not YAML"),
    ],
)
def test_values_that_fit_no_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(W2SError) as err:
        load_config(paths=[path])
    assert words in str(err.value) and "\n" not in str(err.value)


@settings(deadline=None, max_examples=25)
@given(value=st.text(min_size=1).filter(str.isprintable) | _ODD, name=st.sampled_from(TEXTS))
@example(value="\U0001d4e3", name="")  # JSON writes it as two escapes
def test_text_is_taken_as_it_is_written(
    tmp_path_factory: pytest.TempPathFactory, value: str, name: str
) -> None:
    """An option, a plain and a quoted scalar, and the printed configuration give one text."""
    name, path = "task.text", tmp_path_factory.mktemp("yaml") / "run.yaml"
    if not value.startswith("--"):
        assert load_config([f"--{name}", value]).task.text == value
    cfg = load_config([f"--{name}={value}"])
    assert cfg.task.text == value
    path.write_text(to_yaml(cfg), encoding="utf-8")
    assert load_config(paths=[path]) == cfg
    path.write_text(f"task: {{text: {json.dumps(value)}}}", encoding="utf-8")
    assert load_config(paths=[path]).task.text == value


@settings(deadline=None, max_examples=30)
@given(values=st.lists(_ODD, min_size=2, max_size=4, unique=True))
def test_lists_of_text_are_taken_as_they_are_written(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "run.yaml"
    path.write_text(yaml.safe_dump({"task": {"classes": values, "words": values}}))
    for cfg in (
        load_config(["--task.classes", *values, "--task.words", *values]),
        load_config([f"--task.classes={json.dumps(values)}", f"--task.words={json.dumps(values)}"]),
        load_config(paths=[path]),
    ):
        assert cfg.task.classes == cfg.task.words == tuple(values)


def test_every_field_that_may_be_null_says_so() -> None:
    """Each is set to null by an option, after an earlier option gave it a value."""
    example = {str: "x", bool: "true", int: "1", float: "0.5", tuple[str, ...]: "[a, b]"}
    for name, hint in field_types().items():
        if without_none(hint) is hint:
            continue
        given_value = "{text}" if name == "task.prompt" else example[without_none(hint)]
        zero = ["--weak_train.zero_stage=3", "--student_train.zero_stage=3"]
        args = [*zero, f"--{name}={given_value}"]
        assert value_of(load_config(args), name) is not None, name
        assert value_of(load_config([*args, f"--{name}=null"]), name) is None, name


def test_a_boolean_needs_no_value() -> None:
    for args in (["--control"], ["--control", "true"], ["--control=True"], ["--control", "yes"]):
        assert load_config(args).control
    assert load_config(["--task.header"]).task.header is True


def test_what_differs_from_the_defaults(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cfg = load_config(["--seeds", "4", "--task.pretrain.steps", "5", "--task.classes", "0", "1"])
    print_config(cfg, "skip_default")
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == {
        "task": {"classes": ["0", "1"], "pretrain": {"steps": 5}}, "seeds": [4]
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(text)
    assert load_config(paths=[tmp_path / "run.yaml"]) == cfg
    print_config(RunConfig(), "skip_default")
    (tmp_path / "run.yaml").write_text(capsys.readouterr().out)
    assert load_config(paths=[tmp_path / "run.yaml"]) == RunConfig()


def test_help_has_no_option_that_does_not_exist() -> None:
    text = make_parser().format_help()
    assert "skip_default" in text and "skip_unset" not in text and "comments" not in text


def test_dictionaries_of_python_take_numbers_as_names_of_columns_and_classes() -> None:
    cfg = from_dict({"task": {"label": 0, "group": 3, "classes": [0, 1], "words": [1, 2]}})
    assert (cfg.task.label, cfg.task.group) == ("0", "3")
    assert (cfg.task.classes, cfg.task.words) == (("0", "1"), ("1", "2"))
