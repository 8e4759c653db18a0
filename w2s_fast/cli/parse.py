"""Fills a configuration from YAML files and the command line; strict about names and types.

jsonargparse reads the dataclasses and checks types; this module adds what it lacks: the nearest
valid name for an unknown one, lists and truth values written the usual way, and errors of one line.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from w2s_fast.config import RunConfig, field_types, fill, unknown_setting
from w2s_fast.errors import W2SError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

T = TypeVar("T")


def load_config(args: Sequence[str] = (), paths: Sequence[str | Path] = ()) -> RunConfig:
    """Return the defaults, changed by YAML files in order, then by command-line options.

    Args:
        args: Options like ``["--student_train.lr", "1e-3", "--seeds", "0", "1"]``; ``--config
            FILE`` may stand among them.
        paths: YAML files, read before ``args``.

    Raises:
        W2SError: A file or option is unknown or has a value of the wrong type.
    """
    return load(RunConfig, args, paths)


def load(kind: type[T], args: Sequence[str] = (), paths: Sequence[str | Path] = ()) -> T:
    """Return another configuration dataclass, with defaults for all fields, in the same way."""
    from jsonargparse import ArgumentError

    options = _normalise([*(f"--config={path}" for path in paths), *args], kind)
    try:
        parsed = make_parser(kind=kind).parse_args(options)
    except (ArgumentError, TypeError) as err:
        raise W2SError(_one_line(err)) from err
    values = parsed.as_dict()
    values.pop("config", None)
    return fill(kind, values, root=kind)


def make_parser(
    prog: str = "w2s-fast run", kind: type = RunConfig, flags: str = ""
) -> ArgumentParser:
    """Return the parser with one option a field of a configuration dataclass."""
    from jsonargparse import ArgumentParser

    usage = f"{prog} [--config FILE] [--print-config] [--quiet] {flags}[--NAME VALUE ...]"
    parser = ArgumentParser(prog=prog, exit_on_error=False, usage=usage)
    parser.add_argument("--config", action="config", help="YAML file; may be given again")
    _add_fields(parser, parser, kind(), "")
    return parser


def _add_fields(parser: Any, group: Any, default: Any, prefix: str) -> None:
    """Add one option a field, field by field: reading the classes themselves, jsonargparse would
    execute their imports for type checkers, torch among them."""
    hints, texts = typing.get_type_hints(type(default)), _attribute_texts(type(default))
    for f in dataclasses.fields(default):
        name, value = prefix + f.name, getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, parser.add_argument_group(name), value, f"{name}.")
        else:
            text = texts.get(f.name, "").replace("%", "%%")
            group.add_argument(f"--{name}", type=hints[f.name], default=value, help=text)


def _attribute_texts(cls: type) -> dict[str, str]:
    """Return the text of each field from the ``Attributes:`` part of the docstring."""
    part = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in part.splitlines():
        head, colon, text = line.strip().partition(": ")
        if line.startswith("    ") and not line.startswith("     ") and colon:
            names = head.split(", ")
            texts |= dict.fromkeys(names, text)
        else:
            texts |= {name: f"{texts[name]} {line.strip()}" for name in names}
    return texts


def _normalise(args: Sequence[str], kind: type) -> list[str]:
    """Return options as ``--name=value``, each checked to exist.

    ``--student-train.lr`` means ``--student_train.lr``; a truth value alone means true; lists may
    be given as ``--seeds 0 1 2``, ``--seeds 0,1,2`` or ``--seeds "[0, 1, 2]"``.
    """
    known = field_types(kind)
    out, rest = [], list(args)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise W2SError(f"unexpected argument {option!r}; options look like --name value")
        name, eq, value = option[2:].partition("=")
        name = name.replace("-", "_")
        name = "output_dir" if name == "out" else name  # the short form
        if name == "config":
            value = value if eq else (rest.pop(0) if rest else "")
            _check_yaml(value, kind)
        elif name not in known:
            raise unknown_setting(name, kind)
        elif typing.get_origin(known[name]) is tuple:
            values = [value] if eq else []
            while not eq and rest and not rest[0].startswith("--"):
                values.append(rest.pop(0))
            value = _yaml_list(values, typing.get_args(known[name])[0])
        elif not eq:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else _bare(name, known)
        out.append(f"--{name}={value}")
    return out


def _bare(name: str, known: Mapping[str, Any]) -> str:
    if known[name] is bool:
        return "true"
    raise W2SError(f"--{name} needs a value ({_type_name(known[name])})")


def _yaml_list(values: Sequence[str], kind: type) -> str:
    if len(values) == 1 and values[0].lstrip().startswith("["):
        return values[0]
    items: list[str] = []
    for piece in (p.strip() for value in values for p in value.split(",")):
        if "=" in piece and ":" not in piece and items:
            items[-1] += f",{piece}"  # a further hyper-parameter of the loss before it
        elif piece:
            items.append(piece)
    quoted = (repr(item) if kind is str else item for item in items)
    return f"[{', '.join(quoted)}]"


def _check_yaml(path: str, kind: type) -> None:
    """Refuse a file that is missing, not YAML, or has a key that does not exist."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as err:
        raise W2SError(f"cannot read config file {path!r}: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise W2SError(f"config file {path!r} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(values, Mapping):
        raise W2SError(f"config file {path!r}: expected lines as --print-config shows")
    known = field_types(kind)
    for name, value in _flat(values, ""):
        if name not in known:
            if any(k.startswith(f"{name}.") for k in known):
                raise W2SError(f"{path}: {name}={value!r}: expected a block of settings")
            raise W2SError(f"{path}: {unknown_setting(name, kind)}")


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if t is type(None) else t.__name__ for t in hint.__args__)
    return getattr(hint, "__name__", str(hint))


def _one_line(err: Exception) -> str:
    """Return jsonargparse's complaint as one line: 'student_train.lr: Expected a float. ...'."""
    text = " ".join(str(err).split())
    for noise in ("Parser key ", "<class '", "'>", '"'):
        text = text.replace(noise, "")
    return text.replace("a tuple", "a list")
