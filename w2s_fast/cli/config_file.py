"""Read a YAML configuration file into settings by dotted name.

A setting that holds text takes the letters of the file: YAML would read the class ``no`` as false,
and the column ``010`` as 8.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from w2s_fast.config import field_types, unknown_setting
from w2s_fast.errors import W2SError
from w2s_fast.files import read_text
from w2s_fast.paths import user_path
from w2s_fast.specs import without_none
from w2s_fast.yaml_keys import repeated_key

_NULL = "tag:yaml.org,2002:null"


def read_config_file(path: str | Path, kind: type) -> dict[str, Any]:
    """Return the settings of a file by dotted name, such as ``{"student_train.lr": "2.0e-5"}``.

    Args:
        path: The file.
        kind: Configuration dataclass whose fields it may set.

    Raises:
        W2SError: The file is missing, is not YAML, or has an unknown or a repeated setting.
    """
    try:
        text = read_text(user_path(path, "--config"))
        values = yaml.safe_load(text)  # refuses tags
        root = yaml.compose(text, yaml.SafeLoader)
    except OSError as err:
        raise W2SError(f"cannot read config file {str(path)!r}: {err.strerror}") from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # not UTF-8; too many digits
        reason = " ".join(str(err).split())
        raise W2SError(f"config file {str(path)!r} is not YAML: {reason}") from err
    if not isinstance(values, dict) or not isinstance(root, yaml.MappingNode):
        raise W2SError(f"config file {str(path)!r}: expected lines as --print-config shows")
    if repeated := repeated_key(root):
        raise W2SError(f"{path}: {repeated}; keep one of them")
    try:
        return _once(_settings(root, "", field_types(kind), kind))
    except W2SError as err:
        raise W2SError(f"{path}: {err}") from err


def _once(settings: Iterable[tuple[str, int, Any]]) -> dict[str, Any]:
    """Return values by name; a block and a dotted name may both set one."""
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for name, line, value in settings:
        if name in values:
            raise W2SError(
                f"{name!r} is given twice, in lines {lines[name]} and {line}; keep one of them"
            )
        values[name], lines[name] = value, line
    return values


def leaf(node: yaml.Node, name: str, hint: Any) -> Any:
    """Return the value of a YAML node for a setting: a scalar, or a list of scalars.

    Args:
        node: The node.
        name: Dotted name of the setting, for messages.
        hint: Its type; values of other types than text stay for the type's parser.

    Raises:
        W2SError: The node is of another shape, or a number in base 8 or 60.
    """
    is_list = isinstance(node, yaml.SequenceNode)
    expected = without_none(hint)
    if is_list and typing.get_origin(expected) is tuple:
        return [leaf(item, name, typing.get_args(expected)[0]) for item in node.value]
    if not isinstance(node, yaml.ScalarNode):
        got = "a list" if is_list else "a block of settings"
        raise W2SError(f"{name} is {got}; expected one value")
    if node.tag == _NULL:
        return None
    if expected is str or typing.get_origin(expected) is tuple:
        return _join_pairs(node.value)
    value = yaml.SafeLoader("").construct_object(node)
    if _is_in_another_base(node.value, value):
        raise W2SError(
            f"{name} is {node.value!r}, which YAML reads in base {60 if ':' in node.value else 8}; "
            "write a number without colons and leading zeros"
        )
    return value


def _is_in_another_base(text: str, value: Any) -> bool:
    """Return whether YAML takes a scalar for another number than its digits say: 010, 1:30."""
    digits = text.strip().lstrip("+-").replace("_", "")
    if ":" in digits:
        return re.fullmatch(r"[\d:.]+", digits) is not None
    return type(value) is int and digits.isdecimal() and int(digits) != abs(value)


def _join_pairs(text: str) -> str:
    """Return a text with each surrogate pair as one character, as JSON's escapes mean it."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def parse_value(text: str, name: str, hint: Any) -> Any:
    """Return the value of an option that is written in YAML, such as ``[0, 1]``.

    Raises:
        W2SError: The text is not YAML, or of another shape, or a number in base 8 or 60.
    """
    try:
        return leaf(typing.cast(yaml.Node, yaml.compose(text, yaml.SafeLoader)), name, hint)
    except (yaml.YAMLError, RecursionError) as err:
        reason = " ".join(str(err).split())
        raise W2SError(f"--{name} {text!r} is not YAML: {reason}") from err


def _settings(
    node: yaml.MappingNode, prefix: str, known: dict[str, Any], kind: type
) -> Iterator[tuple[str, int, Any]]:
    blocks = {k.rsplit(".", i)[0] for k in known for i in range(1, k.count(".") + 1)}
    yaml.SafeLoader("").flatten_mapping(node)  # merge keys, <<
    # Of a merged key and one of the block itself, the latter comes last and counts.
    for key, value in {str(key.value): (key, value) for key, value in node.value}.values():
        name = f"{prefix}{key.value}"
        if name in known:
            yield name, key.start_mark.line + 1, leaf(value, name, known[name])
        elif name not in blocks:
            raise unknown_setting(_first_name(value, name), kind)
        elif isinstance(value, yaml.MappingNode):
            yield from _settings(value, f"{name}.", known, kind)
        else:
            got = value.value if isinstance(value, yaml.ScalarNode) else "[...]"
            raise W2SError(f"{name}={got}: expected a block of settings")


def _first_name(node: yaml.Node, name: str, depth: int = 3) -> str:
    """Return the dotted name of the first setting in a block; an alias may lead back to it."""
    if depth and isinstance(node, yaml.MappingNode) and node.value:
        key, value = node.value[0]
        return _first_name(value, f"{name}.{key.value}", depth - 1)
    return name
