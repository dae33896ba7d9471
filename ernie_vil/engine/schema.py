"""Schemas: dataclasses whose documented fields say what a configuration may hold, and their validation.

Field types: int, float, bool, str, Any, Literal, Duration, a schema, and Optional, Union, List, Tuple, Dict of these.
A schema may have a static method ``contradictions(valid)`` that gets the valid values by key (keys with faults are
absent) and yields ``(key, what is wrong)`` for values that do not go together.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import math
import operator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator, List, Literal, Mapping, Optional, Sequence, Tuple, Union, get_args, get_origin
from typing import get_type_hints as type_hints

from ernie_vil.engine.durations import Duration
from ernie_vil.engine.yaml_files import Key, plain_copy, shown, whats_there

REQUIRED = dataclasses.MISSING
Contradictions = Iterator[Tuple[str, str]]
_SCALARS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Duration: "a duration"}
_BOUNDS = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "above": ("above", operator.gt),
    "below": ("below", operator.lt),
}


def option(
    default: Any,
    doc: str,
    *,
    choices: Optional[Sequence[Any]] = None,
    minimum: Optional[float] = None,
    maximum: Optional[float] = None,
    above: Optional[float] = None,
    below: Optional[float] = None,
    exists: bool = False,
    hint: str = "",
    bare_unit: Optional[str] = None,
) -> Any:
    """A documented field of a schema.

    Args:
        default: the value of a key that is not set, ``REQUIRED``, or the schema of a section.
        doc: what the key means, with its unit.
        choices, minimum, maximum, above, below: the values allowed (``above`` and ``below`` exclude the bound). They
            hold for each element of a list or mapping and for the number in a duration.
        exists: the text is a path, from the working directory, that must exist.
        hint: what to do about a path that does not exist.
        bare_unit: the unit of a duration that is given as a plain number.
    """
    limits = {"choices": choices, "minimum": minimum, "maximum": maximum, "above": above, "below": below}
    metadata = {"doc": doc, "exists": exists, "hint": hint, "bare_unit": bare_unit, **limits}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def is_schema(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint) and hint is not Duration


def _type_name(hint: Any) -> str:
    """A field type in words."""
    kind, args = get_origin(hint), get_args(hint)
    if kind is Union:
        return " or ".join("null" if arg is type(None) else _type_name(arg) for arg in args)
    if kind is Literal:
        return "one of " + ", ".join(map(str, args))
    if kind is list or (kind is tuple and args[-1] is Ellipsis):
        return f"a list, each item {_type_name(args[0])}"
    if kind is tuple:
        return f"a list of {len(args)} values"
    if kind is dict:
        return f"a mapping of names, each value {_type_name(args[1])}"
    if hint is not Any and not is_schema(hint) and hint not in _SCALARS:
        raise TypeError(f"{hint} is no field type of a schema")
    return "any value" if hint is Any else "a mapping" if is_schema(hint) else _SCALARS[hint]


def _scalar(hint: Any, raw: Any, bare_unit: Optional[str]) -> Any:
    """The value as a scalar type; ValueError says what is wrong. A bool is no number."""
    number = isinstance(raw, (int, float)) and not isinstance(raw, bool)
    if hint is Duration and raw is not None:
        return Duration(raw, bare_unit) if bare_unit and number else Duration.parse(raw)
    if hint is float and (number or isinstance(raw, str)):  # YAML 1.1 takes 1e-4, without a point, for a text
        try:
            value = float(raw)
        except (ValueError, OverflowError):
            value = math.nan
        if math.isfinite(value):
            return value
    elif get_origin(hint) is Literal:
        return raw  # the choices are checked with the limits
    elif hint in (int, str, bool) and type(raw) is hint:
        return raw
    finite = "a finite number" if hint is float and number else _type_name(hint)
    quotes = "; put it in quotes" if hint is str and raw is not None and not isinstance(raw, (dict, list)) else ""
    raise ValueError(f"expected {finite}, got {shown(raw)}{quotes}")


def _limits(value: Any, metadata: Mapping[str, Any], choices: Optional[Sequence[Any]]) -> str:
    """What is wrong with a value of the right type, or an empty text."""
    if choices and not any(value == choice and type(value) is type(choice) for choice in choices):
        near = difflib.get_close_matches(str(value).lower(), [str(choice) for choice in choices], 1, 0.5)
        advice = f"; did you mean {near[0]}?" if near else ""
        return f"{shown(value)} is not one of {', '.join(map(str, choices))}{advice}"
    number = value.value if isinstance(value, Duration) else value
    for name, (words, holds) in _BOUNDS.items():
        bound = metadata.get(name)
        if bound is not None and not holds(number, bound):
            return f"must be {words} {bound}, got {value}"
    return ""


def keys_of(schema: type, prefix: str = "") -> Iterator[Tuple[str, Any, dataclasses.Field]]:
    """Every key of a schema: dotted name, type, field; a section is followed by its keys.

    Raises:
        TypeError: a field that was not made by :func:`option`, or is of a type that schemas do not have.
    """
    hints = type_hints(schema)
    for entry in dataclasses.fields(schema):
        if not entry.metadata.get("doc"):
            raise TypeError(f"{schema.__name__}.{entry.name} is not documented: make it with option()")
        hint = hints[entry.name]
        _type_name(hint)
        yield prefix + entry.name, hint, entry
        for part in (hint, *get_args(hint)):
            if is_schema(part):
                inside = ".N." if get_origin(hint) in (list, tuple) else ".NAME." if get_origin(hint) is dict else "."
                yield from keys_of(part, prefix + entry.name + inside)


@dataclass
class Validation:
    """One pass over the values of a configuration.

    Attributes:
        origins: who set which key.
        source: the file to name where no key was set.
        names: all dotted keys of the configuration, for advice on unknown ones.
        check_files: whether paths must exist.
        complete: whether all files were read; if not, a required key is not reported as missing.
        faults: what was found.
        count: the number of faults, with those that were not reported.
    """

    origins: Mapping[Key, str]
    source: str
    names: Sequence[str]
    check_files: bool = True
    complete: bool = True
    faults: List[str] = field(default_factory=list)
    count: int = 0

    def fault(self, key: Key, text: str) -> None:
        setters = (self.origins[key[:depth]] for depth in range(len(key), 0, -1) if key[:depth] in self.origins)
        self.count += 1
        self.faults.append(f"{next(setters, self.source)}: {'.'.join(key)}: {text}")

    def build(self, schema: type, raw: Any, key: Key = ()) -> Any:
        """An instance of the schema, or None if there are faults."""
        if not isinstance(raw, dict):
            return self.fault(key, f"expected a mapping of keys to values, got {shown(raw)}")
        before, hints, valid = self.count, type_hints(schema), {}
        entries = {entry.name: entry for entry in dataclasses.fields(schema)}
        for name in raw:
            if name not in entries:
                self.fault((*key, str(name)), f"unknown key; {self.advice(str(name), list(entries), key)}")
        for name, entry in entries.items():
            here, start, value = (*key, name), self.count, None
            if name in raw:
                value = self.convert(hints[name], raw[name], entry.metadata, here)
            elif is_schema(hints[name]):
                value = self.build(hints[name], {}, here)
            elif entry.default_factory is not REQUIRED:
                value = entry.default_factory()
            elif entry.default is not REQUIRED:
                value = entry.default
            else:
                self.count += 1
                if self.complete:
                    self.faults.append(
                        f"{self.source}: {'.'.join(here)}: required, but not set: {entry.metadata['doc']}"
                    )
            if name not in raw and value is not None and entry.metadata.get("exists"):
                value = self.convert(hints[name], plain(value), entry.metadata, here)
            if self.count == start:
                valid[name] = value
        if hasattr(schema, "contradictions"):
            for name, text in schema.contradictions(valid):
                self.fault((*key, *name.split(".")), text)
        return schema(**valid) if self.count == before else None

    def advice(self, name: str, siblings: Sequence[str], key: Key) -> str:
        """The valid keys nearest to an unknown one: on its level by likeness, on others by the same name."""
        near = [".".join((*key, found)) for found in difflib.get_close_matches(name.lower(), siblings, 1)]
        near += [full for full in self.names if full.split(".")[-1] == name and full not in near]
        last_parts = {full.split(".")[-1]: full for full in self.names}
        near = near or [last_parts[found] for found in difflib.get_close_matches(name.lower(), last_parts, 1, 0.75)]
        return f"did you mean {' or '.join(near)}?" if near else f"valid here: {', '.join(siblings)}"

    def convert(self, hint: Any, raw: Any, metadata: Mapping[str, Any], key: Key) -> Any:
        """The value as the type of a field; with a fault the result means nothing."""
        kind, args = get_origin(hint), get_args(hint)
        if hint is Any:
            return plain_copy(raw)
        if kind is Union:
            return self._convert_union(hint, raw, metadata, key)
        if is_schema(hint):
            return self.build(hint, raw, key)
        if kind in (list, tuple):
            if not isinstance(raw, list):
                return self.fault(key, f"expected {_type_name(hint)}, got {shown(raw)}")
            kinds = [args[0]] * len(raw) if kind is list or args[-1] is Ellipsis else args
            if len(kinds) != len(raw):
                return self.fault(key, f"expected {_type_name(hint)}, got {len(raw)}")
            return kind(self.convert(kinds[i], item, metadata, (*key, str(i))) for i, item in enumerate(raw))
        if kind is dict:
            if not isinstance(raw, dict):
                return self.fault(key, f"expected {_type_name(hint)}, got {shown(raw)}")
            for name in raw:
                if not isinstance(name, str):
                    self.fault((*key, str(name)), "names must be text; put it in quotes")
            return {name: self.convert(args[1], item, metadata, (*key, str(name))) for name, item in raw.items()}
        try:
            value = _scalar(hint, raw, metadata.get("bare_unit"))
        except ValueError as error:
            return self.fault(key, str(error))
        wrong = _limits(value, metadata, args if kind is Literal else metadata.get("choices"))
        if wrong:
            self.fault(key, wrong)
        elif metadata.get("exists") and self.check_files and not (value and _exists(Path(value))):
            hint_text = f"; {metadata['hint']}" if metadata.get("hint") else ""
            self.fault(key, f"no such file or folder: {shown(value)}; {whats_there(Path(value))}{hint_text}")
        return value

    def _convert_union(self, hint: Any, raw: Any, metadata: Mapping[str, Any], key: Key) -> Any:
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        if raw is None and len(kinds) < len(get_args(hint)):
            return None
        if len(kinds) == 1:
            return self.convert(kinds[0], raw, metadata, key)
        for kind in kinds:
            trial = dataclasses.replace(self, faults=[], count=0)
            value = trial.convert(kind, raw, metadata, key)
            if not trial.count:
                return value
        return self.fault(key, f"expected {_type_name(hint)}, got {shown(raw)}")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name longer than the file system allows
        return False


def plain(value: Any) -> Any:
    """A value of a schema as plain YAML types, which validate to an equal value."""
    if isinstance(value, Duration):
        return value.as_mapping()
    if dataclasses.is_dataclass(value):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    return [plain(child) for child in value] if isinstance(value, (list, tuple)) else value


def describe(schema: type, prefix: str = "") -> str:
    """A Markdown table of every key of a schema: dotted key (after ``prefix``), type, default, meaning."""
    lines = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, hint, entry in keys_of(schema, prefix):
        choices = entry.metadata["choices"]
        kind = f"one of {', '.join(map(str, choices))}" if choices else _type_name(hint)
        for bound, (words, _) in _BOUNDS.items():
            kind += "" if entry.metadata[bound] is None else f", {words} {entry.metadata[bound]}"
        if is_schema(hint):
            default = ""
        elif entry.default_factory is not REQUIRED:
            default = shown(plain(entry.default_factory()))
        elif entry.default is not REQUIRED:
            default = str(entry.default) if isinstance(entry.default, (Duration, str)) else shown(entry.default)
        else:
            default = "required"
        cells = (f"`{name}`", kind, default, entry.metadata["doc"])
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
