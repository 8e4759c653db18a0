"""Parse command lines: a command's own options, and a configuration from YAML files and options.

jsonargparse reads the dataclasses and checks types; this module adds what it lacks: the nearest
valid name for an unknown one, lists and booleans in the usual notation, and one-line errors.
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


def asks_for_help(args: Sequence[str]) -> bool:
    """Return whether the arguments ask for help."""
    return not {"-h", "--help"}.isdisjoint(args)


def take_options(
    args: Sequence[str],
    values: Sequence[str] = (),
    flags: Sequence[str] = (),
    *,
    only_leading: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Separate a command's own options from its other arguments.

    Args:
        args: The arguments: ``--name VALUE``, ``--name=VALUE`` or, for a flag, ``--name``; a dash
            in a name may be written as an underscore.
        values: Names of the options that take a value, with dashes.
        flags: Names of the options that take none.
        only_leading: Stop at the first argument that is not such an option.

    Returns:
        The given options by name ("" for a flag), and the other arguments.

    Raises:
        W2SError: The value of an option is missing.
    """
    own: dict[str, str] = {}
    others, rest = [], list(args)
    while rest:
        option, equals, value = rest[0].partition("=")
        name = option.removeprefix("--").replace("_", "-") if option.startswith("--") else ""
        if name in flags and not equals:
            own[name] = ""
        elif name in values:
            if not equals:
                rest.pop(0)
                if not rest:
                    raise W2SError(f"{option} needs a value")
                value = rest[0]
            own[name] = value
        elif only_leading:
            break
        else:
            others.append(rest[0])
        rest.pop(0)
    return own, others + rest


def load_config(args: Sequence[str] = (), paths: Sequence[str | Path] = ()) -> RunConfig:
    """Return the defaults, overridden by YAML files in order, then by command-line options.

    Args:
        args: Options like ``["--student_train.lr", "1e-3", "--seeds", "0", "1"]``; ``--config
            FILE`` may be among them.
        paths: YAML files, read before ``args``.

    Raises:
        W2SError: A file or option is unknown or has a value of the wrong type.
    """
    return load(RunConfig, args, paths)


def load(kind: type[T], args: Sequence[str] = (), paths: Sequence[str | Path] = ()) -> T:
    """Load a configuration dataclass whose fields all have defaults, as ``load_config`` does."""
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
    """Return a parser with one option per field of a configuration dataclass."""
    from jsonargparse import ArgumentParser

    usage = f"{prog} [--config FILE] [--print-config] [--quiet] {flags}[--NAME VALUE ...]"
    parser = ArgumentParser(prog=prog, exit_on_error=False, usage=usage)
    parser.add_argument("--config", action="config", help="YAML file; may be given again")
    _add_fields(parser, parser, kind(), "")
    return parser


def _add_fields(parser: Any, group: Any, default: Any, prefix: str) -> None:
    """Add one option per field.

    Given the classes themselves, jsonargparse would execute their imports for type checkers, torch
    among them.
    """
    hints, texts = typing.get_type_hints(type(default)), _attribute_texts(type(default))
    for f in dataclasses.fields(default):
        name, value = prefix + f.name, getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, parser.add_argument_group(name), value, f"{name}.")
        else:
            text = texts.get(f.name, "").replace("%", "%%")
            group.add_argument(f"--{name}", type=hints[f.name], default=value, help=text)


def _attribute_texts(cls: type) -> dict[str, str]:
    """Return the description of each field from the ``Attributes:`` section of the docstring."""
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
    """Return options as ``--name=value``, and check that each exists.

    ``--student-train.lr`` means ``--student_train.lr``; a boolean without a value is true; lists
    may be written as ``--seeds 0 1 2``, ``--seeds 0,1,2`` or ``--seeds "[0, 1, 2]"``.
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
            value = (
                rest.pop(0) if rest and not rest[0].startswith("--") else _bare_value(name, known)
            )
        out.append(f"--{name}={value}")
    return out


def _bare_value(name: str, known: Mapping[str, Any]) -> str:
    if known[name] is bool:
        return "true"
    raise W2SError(f"--{name} needs a value ({_type_name(known[name])})")


def _yaml_list(values: Sequence[str], kind: type) -> str:
    if len(values) == 1 and values[0].lstrip().startswith("["):
        return values[0]
    items: list[str] = []
    for piece in (p.strip() for value in values for p in value.split(",")):
        if "=" in piece and ":" not in piece and items:
            items[-1] += f",{piece}"  # one more hyper-parameter of the preceding loss
        elif piece:
            items.append(piece)
    quoted = (repr(item) if kind is str else item for item in items)
    return f"[{', '.join(quoted)}]"


def _check_yaml(path: str, kind: type) -> None:
    """Raise if a file is missing, is not YAML, or has an unknown key."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as err:
        raise W2SError(f"cannot read config file {path!r}: {err.strerror}") from err
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as err:
        raise W2SError(f"config file {path!r} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(values, Mapping):
        raise W2SError(f"config file {path!r}: expected lines as --print-config shows")
    known = field_types(kind)
    for name, value in _flatten(values, ""):
        if name not in known:
            if any(k.startswith(f"{name}.") for k in known):
                raise W2SError(f"{path}: {name}={value!r}: expected a block of settings")
            raise W2SError(f"{path}: {unknown_setting(name, kind)}")


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if t is type(None) else t.__name__ for t in hint.__args__)
    return getattr(hint, "__name__", str(hint))


def _one_line(err: Exception) -> str:
    """Return jsonargparse's error as one line: 'student_train.lr: Expected a float. ...'."""
    text = " ".join(str(err).split())
    for noise in ("Parser key ", "<class '", "'>", '"'):
        text = text.replace(noise, "")
    return text.replace("a tuple", "a list")
