"""Keys that a YAML file gives twice. Of equal keys YAML takes the last, without a word."""

from __future__ import annotations

import yaml


def repeated_key(root: yaml.Node | None) -> str:
    """Return which key is given twice in one block, and in which lines; "" if none is."""
    nodes, seen = [] if root is None else [root], set()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))  # an alias leads to the same node
        if isinstance(node, yaml.SequenceNode):
            nodes += node.value
        elif isinstance(node, yaml.MappingNode):
            lines: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                if isinstance(key.value, str) and key.value in lines:
                    return f"{key.value!r} is given twice, in lines {lines[key.value]} and {line}"
                lines[str(key.value)] = line
                nodes.append(value)
    return ""
