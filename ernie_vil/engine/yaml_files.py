"""YAML files that build on each other: ``_base_`` inheritance, overrides, and who set which key.

Nothing here knows what keys mean; :mod:`ernie_vil.engine.schema` does.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import yaml

from ernie_vil.engine.durations import UNITS
from ernie_vil.errors import UserError

Key = Tuple[str, ...]


class ConfigError(UserError):
    """All faults of one configuration; ``faults`` holds them one by one, each with its file and dotted key."""

    def __init__(self, path: Union[str, Path], faults: Sequence[str]):
        self.faults = list(faults)
        count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
        super().__init__("\n  ".join([f"the configuration {path} has {count}:", *faults]))


@dataclass(frozen=True)
class Layer:
    """Values, and for the key of each, at every depth, the file or override that set it last."""

    values: Dict[str, Any]
    origins: Dict[Key, str]


def origins_of(value: Any, source: str, key: Key = ()) -> Dict[Key, str]:
    """The origins of a value at ``key``, and of all in it, that was set by one source."""
    found = {key: source} if key else {}
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        found.update(origins_of(child, source, (*key, str(name))))
    return found


def plain_copy(value: Any) -> Any:
    """A deep copy in which nothing is shared: two places of a file that name one YAML anchor become independent."""
    if isinstance(value, dict):
        return {key: plain_copy(child) for key, child in value.items()}
    return [plain_copy(child) for child in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A value as an error message prints it, cut at 60 characters."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_duration(value: Any) -> bool:
    """Whether a value is a mapping with no other keys than units of duration."""
    return isinstance(value, dict) and bool(value) and all(key in UNITS for key in value)


def deep_merge(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> Dict[str, Any]:
    """A new mapping in which ``later`` wins; mappings in both are merged, anything else is replaced as a whole.

    A duration such as ``{epochs: 6}`` is one value: ``{steps: 100}`` replaces it.
    """
    merged = dict(earlier)
    for key, value in later.items():
        old = earlier.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = deep_merge(old, value) if both and not (is_duration(old) or is_duration(value)) else value
    return plain_copy(merged)


def merge(earlier: Layer, later: Layer) -> Layer:
    """:func:`deep_merge` of two layers, with the origins."""
    # Origins of values that were replaced may stay behind: they are never asked for.
    return Layer(deep_merge(earlier.values, later.values), {**earlier.origins, **later.origins})


def parse_yaml(text: Union[bytes, str]) -> Tuple[Any, List[str]]:
    """The value of a YAML text and its faults. PyYAML itself silently takes the last of two equal keys."""
    faults: List[str] = []

    def check(node: yaml.Node, parents: Tuple[yaml.Node, ...]) -> None:
        line = node.start_mark.line + 1
        if node in parents:
            faults.append(f"line {line}: the value contains itself")
        elif isinstance(node, yaml.SequenceNode):
            for child in node.value:
                check(child, (*parents, node))
        elif isinstance(node, yaml.MappingNode):
            first: Dict[str, int] = {}
            for name, child in node.value:
                here = name.start_mark.line + 1
                if isinstance(name, yaml.ScalarNode) and name.value in first:
                    earlier = f"first in line {first[name.value]}"
                    faults.append(f"line {here}: {name.value}: set twice in one mapping, {earlier}")
                elif isinstance(name, yaml.ScalarNode):
                    first[name.value] = here
                check(child, (*parents, node))

    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None, faults
        check(node, ())
        return (None if faults else loader.construct_document(node)), faults
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        return None, [f"line {mark.line + 1}: not YAML: {error.problem or error.context}"]
    except (yaml.YAMLError, ValueError) as error:  # a date of month 13 is a ValueError
        return None, [f"not YAML: {' '.join(str(error).split())}"]


def whats_there(path: Path) -> str:
    """What the nearest existing folder above a path holds, names like the wanted one first."""
    folder = path.parent
    while not folder.is_dir():
        folder = folder.parent
    try:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}"
    near = difflib.get_close_matches(path.name, names, 3)
    listed = near + [name for name in names if name not in near][: 12 - len(near)]
    more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return f"{folder} holds {', '.join(listed) or 'nothing'}{more}"


def read_layer(path: Path, readers: Tuple[Path, ...], faults: List[str]) -> Layer:
    """One file on top of its bases; ``readers`` are the files whose ``_base_`` led here, the nearest first."""
    asked_by = f"{readers[0]}: _base_: " if readers else ""
    if path.resolve() in [reader.resolve() for reader in readers]:
        faults.append(f"{asked_by}{path} is based on itself: {' <- '.join(map(str, (path, *readers)))}")
        return Layer({}, {})
    try:
        text = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        faults.append(f"{asked_by}{path}: {reason}; {whats_there(path)}")
        return Layer({}, {})
    values, wrong = parse_yaml(text)
    faults.extend(f"{path}: {fault}" for fault in wrong)
    if not isinstance(values, dict):
        if values is not None:
            faults.append(f"{path}: the top level must be a mapping of keys to values, got {shown(values)}")
        values = {}
    bases = values.pop("_base_", None) or []
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        faults.append(f"{path}: _base_: expected a path or a list of paths, got {shown(bases)}")
        bases = []
    layer = Layer({}, {})
    for base in bases:
        layer = merge(layer, read_layer(Path(os.path.normpath(path.parent / base)), (path, *readers), faults))
    return merge(layer, Layer(values, origins_of(values, str(path))))


def read_yaml(path: Union[str, Path]) -> Dict[str, Any]:
    """A YAML file merged onto the files its ``_base_`` names (relative to it, nested, later wins), not validated.

    Raises:
        ConfigError: a file is missing, is not YAML, has equal keys in one mapping, no mapping at the top, or is
            based on itself.
    """
    faults: List[str] = []
    layer = read_layer(Path(path), (), faults)
    if faults:
        raise ConfigError(path, faults)
    return layer.values


def override(layer: Layer, text: str) -> Tuple[Layer, List[str]]:
    """Apply ``a.b=value``: the value is YAML and replaces what was there; nothing after ``=`` is null."""
    source = f"-o {text}"
    dotted, equals, value_text = text.partition("=")
    keys = tuple(dotted.strip().split("."))
    if not equals or not all(keys):
        return layer, [f"{source}: malformed; write key=value, such as train.batch_size=64"]
    if keys[0] == "mini":
        return layer, [f"{source}: overrides come after the mini section; leave out 'mini.'"]
    value, wrong = parse_yaml(value_text)
    faults = [f"{source}: {fault}" for fault in wrong]
    values, origins = plain_copy(layer.values), dict(layer.origins)
    node: Any = values
    for depth, name in enumerate(keys):
        here: Any = name
        if isinstance(node, list):
            if not name.isdigit() or int(name) >= len(node):
                faults.append(f"{source}: {'.'.join(keys[:depth])} is a list of {len(node)}, it has no item {name!r}")
                break
            here = int(name)
        elif name in UNITS and is_duration(node):  # one value: a unit from a file gives way to that of the override
            for unit in [unit for unit in node if not origins.get((*keys[:depth], unit), "").startswith("-o")]:
                del node[unit]
        if depth == len(keys) - 1:
            node[here] = value
        elif not isinstance(node[here] if isinstance(node, list) else node.get(here), (dict, list)):
            node[here] = {}
            origins[keys[: depth + 1]] = source
        node = node[here]
    return (layer if faults else Layer(values, {**origins, **origins_of(value, source, keys)})), faults
