"""Malformed configurations of a run: the file, its YAML, its keys, types and ranges."""

from __future__ import annotations

import typing
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

from campaigns.malformed.attempt import Attempt
from campaigns.malformed.files import FILE_FAULTS, FileFault, cut_short, wrong_encoding
from campaigns.malformed.inputs import run, toy_settings, write_settings

Make = Callable[[Path, Random], Attempt]
NAN, INF = float("nan"), float("inf")
# Numbers of these may be as large as a user has patience.
_PATIENCE = {"epochs", "steps", "retries", "timeout_s", "workers", "threads", "checkpoint_every"}


def leaves() -> dict[str, Any]:
    """Return the type of every setting by its dotted name."""
    from w2s_fast.config import field_types

    return field_types()


def _of_file(fault: FileFault) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = write_settings(folder / "run.yaml", toy_settings())
        fault(path, rng)
        return Attempt(run(path), ("run.yaml",))

    return make


def _text(text: str | bytes, *names: str, may_pass: bool = False) -> Make:
    def make(folder: Path, rng: Random) -> Attempt:
        path = folder / "run.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return Attempt(run(path), names or ("run.yaml",), may_pass)

    return make


def _value(pick: Callable[[Random], tuple[str, Any]], *names: str, may_pass: bool = False) -> Make:
    """One setting has another value."""

    def make(folder: Path, rng: Random) -> Attempt:
        name, value = pick(rng)
        path = write_settings(folder / "run.yaml", _with(toy_settings(), name, value))
        return Attempt(run(path), names or (name.rpartition(".")[2],), may_pass)

    return make


def _with(values: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    *path, last = name.split(".")
    block = values
    for part in path:
        block = block.setdefault(part, {})
    block[last] = value
    return values


def _wrong_type(rng: Random) -> tuple[str, Any]:
    name, hint = rng.choice(list(leaves().items()))
    kinds = typing.get_args(hint) or (hint,)
    wrong: list[Any] = [{"a": 1}, {}]
    if typing.get_origin(hint) is tuple or any(typing.get_origin(k) is tuple for k in kinds):
        wrong += [[["xent"]], [{"a": 1}], [None], 3.5, True]
    else:
        wrong += [[1, 2], [[]]]
    if not {str, bool, tuple} & {typing.get_origin(k) or k for k in kinds}:
        wrong += ["many", "", "1,5", True, "0x"]
    if bool in kinds:
        wrong += ["perhaps", 3, 0.5]
    if type(None) not in kinds:
        wrong.append(None)
    return name, rng.choice(wrong)


def _null(rng: Random) -> tuple[str, None]:
    """A line without a value, where there has to be one."""
    needed = [n for n, hint in leaves().items() if type(None) not in typing.get_args(hint)]
    return rng.choice(needed), None


def _number(rng: Random, values: tuple[float, ...]) -> tuple[str, Any]:
    numeric = [
        name
        for name, hint in leaves().items()
        if {int, float} & set(typing.get_args(hint) or (hint,)) and name != "task.language_seed"
    ]
    return rng.choice([n for n in numeric if typing.get_origin(leaves()[n]) is not tuple]), (
        rng.choice(values)
    )


def _huge(rng: Random) -> tuple[str, Any]:
    name, value = _number(rng, (2**63, 10**30, -(2**63)))
    while name.rpartition(".")[2] in _PATIENCE:
        name, value = _number(rng, (2**63, 10**30, -(2**63)))
    return name, value


def _path_like(rng: Random) -> tuple[str, Any]:
    name = rng.choice(("output_dir", "cache_dir", "student.source", "weak.source", "task.path"))
    return name, rng.choice(
        ("a\0b", "x" * 5000, "x/" * 3000, "\ud800", "/dev/null", "/proc/self/mem")
    )


_SPECS = (
    "", " ", ":", "xent:", "xent:aux_coef", "xent:aux_coef=", "logconf:aux_coef=nan",
    "logconf:aux_coef=inf", "logconf:aux_coef=-1", "logconf:aux_coef=1e999", "logconf:aux_coef=a=b",
    "logconf:aux_coef=0.1,aux_coef=0.2", "xent;logconf", "os:system", "os.path:join",
    "w2s_fast.losses:LOSSES", "a.b.c:D", "..:x", "xent\0", "\u0445ent", "XENT ", "xent:__class__=1",
    "logconf:" + "x=1," * 2000, "../../etc/passwd", "logconf:aux_coef=0x1", "1", "null", "|", "@",
    "naive@", "@xent", "naive|", "|naive", "naive||naive", "ensemble:size=0", "ensemble:size=-1",
    "ensemble:size=1e3", "confident:share=nan", "confident:share=2", "naive@xnet", "naive:x=1",
)  # fmt: skip


def _spec(rng: Random) -> tuple[str, Any]:
    return rng.choice(("losses", "methods", "intermediate_models")), [rng.choice(_SPECS)]


def _unknown_key(folder: Path, rng: Random) -> Attempt:
    name = rng.choice(list(leaves()))
    letter = rng.randrange(len(name.rpartition(".")[2]))
    stem, dot, leaf = name.rpartition(".")
    wrong = rng.choice(
        (leaf[:letter] + leaf[letter + 1 :] + "_", leaf + "\u200b", leaf.upper() + "X",
         leaf.replace("a", "\u0430") + "?", "", "\u4f60\u597d", "a b", leaf + "." + leaf,
         "__class__")
    )  # fmt: skip
    values = _with(toy_settings(), stem + dot + "?", 1) if stem else toy_settings()
    block: Any = values
    for part in stem.split(".") if stem else ():
        block = block[part]
    block.pop("?", None)
    block[wrong] = 1
    path = write_settings(folder / "run.yaml", values)
    return Attempt(run(path), (repr(f"{stem}{dot}{wrong}"), "unknown setting"))


def _key_of_other_type(folder: Path, rng: Random) -> Attempt:
    path = folder / "run.yaml"
    key = rng.choice(
        ("1", "null", "true", "1.5", "2020-01-01", "[a, b]", "? {a: 1}\n", "~", "!!binary aGk=")
    )
    path.write_text(yaml.safe_dump(toy_settings()) + f"{key}: 3\n")
    return Attempt(run(path), ("run.yaml", "unknown setting"))


def _twice(folder: Path, rng: Random) -> Attempt:
    path = folder / "run.yaml"
    name = rng.choice(list(toy_settings()))
    text = yaml.safe_dump(toy_settings())
    path.write_text(text + yaml.safe_dump({name: toy_settings()[name]}))
    return Attempt(run(path), (repr(name),))


def _block_as_value(folder: Path, rng: Random) -> Attempt:
    name = rng.choice(("task", "weak", "student", "weak_train", "student_train", "task.pretrain"))
    value = rng.choice(("bow", 3, None, [], [{"source": "bow"}], True, "", NAN))
    path = write_settings(folder / "run.yaml", _with(toy_settings(), name, value))
    return Attempt(run(path), (name,))


def _command_line(folder: Path, rng: Random) -> Attempt:
    path = write_settings(folder / "run.yaml", toy_settings())
    args, named = rng.choice(
        (
            (["--seeds"], "seeds"), (["--seeds", "a"], "seeds"), (["--seeds", "0", "0"], "seeds"),
            (["--seeds", "[0, "], "seeds"), (["--losses"], "losses"), (["--losses", ""], "losses"),
            (["--student_train.lr"], "student_train.lr"), (["--student_train.lr="],
            "student_train.lr"),
            (["--student_train.lr", "fast"], "student_train.lr"), (["--=3"], "unknown setting"),
            (["--student_train", "3"], "student_train"), (["--config"], "config"), (["--"], "--"),
            (["--config", "nowhere.yaml"], "nowhere.yaml"), (["extra"], "extra"), (["-s", "3"],
            "-s"),
            (["--control=perhaps"], "control"), (["--weak.source", ""], "source"), (["\ud800"],
            "ud800"),
            (["--out", ""], "output_dir"), (["--out"], "output_dir"), (["--task.n_weak=1e1"],
            "n_weak"),
            (["--task.classes=x"], "task.classes"), (["--weak.", "1"], "weak."), (["--.lr", "1"],
            ".lr"),
            (["--seeds", "-1"], "seeds"), (["--seeds", "99999999999"], "seeds"), (["---seeds",
            "1"], "seeds"),
            (["--task.n_weak", "[1"], "n_weak"), (["--task.n_weak", "{"], "n_weak"),
            (["--task.n_weak", "!!python/object:os.system"], "n_weak"),
            (["--weak.source", "*x"], "source"), (["--weak.source", "\n"], "source"),
            (["--weak.source", "no\0where"], "source"), (["--device", "gpu"], "device"),
        )
    )  # fmt: skip
    return Attempt([*run(path), *args], (named,))


_BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n"
    for p, c in zip("abcdefg", "bcdefgh", strict=True)
)
FAULTS: dict[str, Make] = {
    **{f"file: {name}": _of_file(fault) for name, fault in FILE_FAULTS.items()},
    "encoding": _of_file(wrong_encoding),
    "cut short": lambda folder, rng: _may_pass(_of_file(cut_short)(folder, rng)),
    "type": _value(_wrong_type),
    "negative": _value(lambda rng: _number(rng, (-1, -7))),
    "not a number": _value(lambda rng: _number(rng, (NAN,))),
    "infinite": _value(lambda rng: _number(rng, (INF, -INF))),
    "huge": _value(_huge, may_pass=True),
    "spec": _value(_spec, "loss", "method", "model", "student", "aux_coef", may_pass=True),
    "path": _value(
        _path_like, "output_dir", "cache_dir", "source", "task.path", "/dev/null", "/proc/self"
    ),
    "block": _block_as_value,
    "null": _value(_null),
    "surrogate": _value(lambda rng: ("task.path", "a\ud800"), "task.path"),
    "unknown key": _unknown_key,
    "key of another type": _key_of_other_type,
    "key twice": _twice,
    "command line": _command_line,
    "aliases without end": _text(_BOMB),
    "alias of itself": _text("weak: &a {source: *a}\n"),
    "nested deeply": _text("a: " + "[" * 5000),
    "nested mappings": _text("".join(" " * i + "a:\n" for i in range(1500))),
    "python tag": _text("seeds: !!python/object/apply:os.system ['touch harmed']\n"),
    "unknown tag": _text("seeds: !mine [1]\n"),
    "two documents": _text("seeds: [0]\n---\nseeds: [1]\n"),
    "tabs": _text("weak:\n\tsource: bow\n"),
    "control characters": _text(b"seeds: [0]\x07\n"),
    "half a surrogate pair": _text("weak: {source: \ud800}\n"),
    "list at the top": _text("- seeds\n"),
    "text at the top": _text("seeds\n"),
    "number of many digits": _text(f"seeds: [{'9' * 6000}]\n", "seeds", "run.yaml"),
    "long value": _text(f"device: {'x' * 100_000}\n", "device"),
    "long key": _text(f"{'x' * 900}: 1\n", "unknown setting"),
    "merge key": _text("weak: {<<: 3}\n", "run.yaml", "weak"),
}


def _may_pass(attempt: Attempt) -> Attempt:
    """Part of a file may be a valid one; what it then leaves out has defaults of minutes."""
    attempt.args.append("--print-config")
    attempt.may_pass = True
    attempt.names += ("",)
    return attempt
