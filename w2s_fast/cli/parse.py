"""Parse command lines: a command's own options, and a configuration from YAML files and options.

jsonargparse reads the dataclasses and checks types; this module adds what it lacks: the nearest
valid name for an unknown one, lists and booleans in the usual notation, and one-line errors.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from w2s_fast.cli.config_file import parse_value, read_config_file
from w2s_fast.config import RunConfig, field_types, fill, to_dict, unknown_setting
from w2s_fast.errors import W2SError
from w2s_fast.specs import without_none

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

T = TypeVar("T")
PRINT, SKIP_DEFAULT = "print-config", "skip_default"
_OWN_OPTIONS: dict[str, dict[str, Any]] = {  # for the help; others read them
    "config": {"metavar": "FILE", "help": "YAML file; may be given again, later files win"},
    PRINT: {
        "metavar": f"={SKIP_DEFAULT}",
        "nargs": "?",
        "help": "print the whole configuration, or what differs from the defaults, and stop",
    },
    "quiet": {"action": "store_true", "help": "show no progress"},
}


def asks_for_help(args: Sequence[str]) -> bool:
    """Return whether the arguments ask for help."""
    return not {"-h", "--help"}.isdisjoint(args)


def take_options(
    args: Sequence[str],
    values: Sequence[str] = (),
    flags: Sequence[str] = (),
    *,
    optional: Sequence[str] = (),
    only_leading: bool = False,
) -> tuple[dict[str, str], list[str]]:
    """Separate a command's own options from its other arguments.

    Args:
        args: The arguments: ``--name VALUE``, ``--name=VALUE`` or, for a flag, ``--name``; a dash
            in a name may be written as an underscore.
        values: Names of the options that take a value, with dashes.
        flags: Names of the options that take none.
        optional: Names of the options with or without ``=VALUE``.
        only_leading: Stop at the first argument that is not such an option.

    Returns:
        The given options by name ("" where there is no value), and the other arguments.

    Raises:
        W2SError: The value of an option is missing.
    """
    own: dict[str, str] = {}
    others, rest = [], list(args)
    while rest:
        option, equals, value = rest[0].partition("=")
        name = option.removeprefix("--").replace("_", "-") if option.startswith("--") else ""
        if name in optional or (name in flags and not equals):
            own[name] = value
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


def take_run_options(
    args: Sequence[str], flags: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Separate ``--quiet``, ``--print-config`` and further ``flags`` from the settings of a run."""
    own, rest = take_options(args, flags=("quiet", *flags), optional=(PRINT,))
    if own.get(PRINT, "") not in ("", SKIP_DEFAULT):
        raise W2SError(f"--{PRINT}={own[PRINT]}: expected --{PRINT} or --{PRINT}={SKIP_DEFAULT}")
    return own, rest


def print_config(cfg: Any, how: str) -> None:
    """Print a configuration as YAML; ``skip_default`` leaves out what has its default."""
    from w2s_fast.config import to_yaml

    print(to_yaml(cfg, skip_default=how == SKIP_DEFAULT), end="")


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

    settings = _settings([*(f"--config={path}" for path in paths), *args], kind)
    known, nulls = field_types(kind), {k: v for k, v in settings.items() if v is None}
    for name in nulls:
        if without_none(known[name]) is known[name]:
            raise W2SError(f"{name} is null; expected {_type_name(known[name])}")
    given = {k: v for k, v in settings.items() if v is not None}
    try:
        parsed = _parser(kind).parse_object(_nested(given), defaults=False).as_dict()  # type: ignore[arg-type]
    except (ArgumentError, TypeError) as err:
        raise W2SError(_one_line(err)) from err
    defaults = to_dict(kind())
    return fill(kind, _merged(_merged(defaults, parsed), _nested(nulls)), root=kind)


@functools.cache
def _parser(kind: type) -> ArgumentParser:
    return make_parser(kind=kind)


def make_parser(
    prog: str = "w2s-fast run", kind: type = RunConfig, flags: str = ""
) -> ArgumentParser:
    """Return a parser with one option per field of a configuration dataclass."""
    from jsonargparse import ArgumentParser

    usage = f"{prog} [--config FILE] [--print-config] [--quiet] {flags}[--NAME VALUE ...]"
    parser = ArgumentParser(prog=prog, exit_on_error=False, usage=usage)
    for name, options in _OWN_OPTIONS.items():
        parser.add_argument(f"--{name}", **options)
    _add_fields(parser, parser, kind(), "")
    return parser


def _add_fields(parser: Any, group: Any, default: Any, prefix: str) -> None:
    """Add one option per field.

    Given the classes themselves, jsonargparse would execute their imports for type checkers, torch
    among them.
    """
    hints = typing.get_type_hints(type(default))
    texts: dict[str, str] = {}
    for cls in reversed(type(default).__mro__):
        texts |= _attribute_texts(cls)
    for f in dataclasses.fields(default):
        name, value = prefix + f.name, getattr(default, f.name)
        if dataclasses.is_dataclass(value):
            _add_fields(parser, parser.add_argument_group(name), value, f"{name}.")
        else:
            text = texts.get(f.name, "").replace("%", "%%")
            # Without None, jsonargparse takes text as it is, and names one type in its messages.
            hint = without_none(hints[f.name])
            group.add_argument(f"--{name}", type=hint, default=value, help=text)


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


def _settings(args: Sequence[str], kind: type) -> dict[str, Any]:
    """Return the settings of files and options by dotted name; later ones win.

    ``--student-train.lr`` means ``--student_train.lr``; a boolean without a value is true; lists
    may be written as ``--seeds 0 1 2``, ``--seeds 0,1,2`` or ``--seeds "[0, 1, 2]"``.
    """
    known = field_types(kind)
    settings: dict[str, Any] = {}
    rest = list(args)
    while rest:
        option = rest.pop(0)
        if not option.startswith("--"):
            raise W2SError(f"unexpected argument {option!r}; options look like --name value")
        name, equals, value = option[2:].partition("=")
        name = name.replace("-", "_")
        name = "output_dir" if name == "out" else name  # the short form
        if name != "config" and name not in known:
            raise unknown_setting(name, kind)
        values = [value] if equals else _following(rest)
        if name == "config":
            if not values:
                raise W2SError("--config needs a value (a YAML file)")
            settings |= read_config_file(values.pop(0), kind)
        elif typing.get_origin(without_none(known[name])) is tuple:
            settings[name] = _list(name, values, known[name])
            values = []
        else:
            settings[name] = _scalar(name, values, known[name])
        rest = [*values, *rest]
    return settings


def _following(rest: list[str]) -> list[str]:
    """Remove and return the arguments before the next option."""
    end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    values = rest[:end]
    del rest[:end]
    return values


def _scalar(name: str, values: list[str], hint: Any) -> str | None:
    """Remove the value of an option from ``values``, and return it."""
    expected = without_none(hint)
    if not values:
        if expected is bool:
            return "true"
        raise W2SError(f"--{name} needs a value ({_type_name(hint)})")
    value = values.pop(0)
    return None if value == "null" and expected is not hint else value


def _list(name: str, values: Sequence[str], hint: Any) -> list[str] | None:
    if list(values) == ["null"] and without_none(hint) is not hint:
        return None
    if len(values) == 1 and values[0].lstrip().startswith("["):
        return parse_value(values[0], name, hint)
    return [item for value in values for item in _split(value)]


_FIELD = re.compile(r"\w+=")  # a field, in a chain perhaps with the next method behind it


def _split(value: str) -> list[str]:
    """Split a value at its commas, but for those between the fields of one loss or method."""
    if "," not in value:
        return [value]  # with the spaces that the words of classes begin with
    items: list[str] = []
    for piece in filter(None, (p.strip() for p in value.split(","))):
        if _FIELD.match(piece) and items and ":" in items[-1]:
            items[-1] += f",{piece}"
        else:
            items.append(piece)
    return items


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by dotted name as nested dictionaries."""
    tree: dict[str, Any] = {}
    for name, value in settings.items():
        *blocks, leaf = name.split(".")
        node = tree
        for block in blocks:
            node = node.setdefault(block, {})
        node[leaf] = value
    return tree


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values with the changes in their place."""
    inner = {k: _merged(values[k], v) if isinstance(v, Mapping) else v for k, v in changes.items()}
    return {**values, **inner}


def _type_name(hint: Any) -> str:
    plain = without_none(hint)
    name = "list" if typing.get_origin(plain) is tuple else plain.__name__
    return name if plain is hint else f"{name} or null"


def _one_line(err: Exception) -> str:
    """Return jsonargparse's error as one line: 'student_train.lr: Expected a float. ...'."""
    text = " ".join(str(err).split())
    for noise in ("Parser key ", "<class '", "'>", '"'):
        text = text.replace(noise, "")
    return text.replace("a tuple", "a list").replace("a int", "an int")
