"""A frozen dataclass's values from YAML or the command line: the right type, or an error.

Nothing is guessed: `1.0e-4` is a number, `1e-4` in YAML is text (PyYAML's rule), `true` is not 1,
and a flag or a key that is given twice is refused.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints, overload

import yaml

from hf_tfopt.registry import nearest


class Check(NamedTuple):
    """What a value must satisfy: the words an error uses, the test itself, and names if any."""

    words: str
    holds: Callable[[Any], bool]
    names: tuple[str, ...] = ()


POSITIVE = Check("above 0", lambda value: value > 0)
NOT_NEGATIVE = Check("0 or above", lambda value: value >= 0)
INSIDE_UNIT = Check("above 0 and below 1", lambda value: 0 < value < 1)
UP_TO_ONE = Check("above 0 and at most 1", lambda value: 0 < value <= 1)
SHARE = Check("from 0 to below 1", lambda value: 0 <= value < 1)


def at_least(low: int) -> Check:
    """The check that a value is `low` or more."""
    return Check(f"{low} or above", lambda value: value >= low)


def one_of(*names: str) -> Check:
    """The check that a value is one of these names."""
    return Check(f"one of {', '.join(names)}", lambda value: value in names, names)


def key(default: Any, summary: str, check: Check | None = None) -> Any:
    """A dataclass field that knows its one-line summary and what values it allows."""
    return dataclasses.field(default=default, metadata={"summary": summary, "check": check})


_CONTAINERS: dict[Any, type] = {Mapping: dict, Sequence: list}


def kinds(cls: type) -> dict[str, tuple[type, bool]]:
    """Each field's plain type (str, int, float, bool, dict, list) and whether it may be none."""
    found: dict[str, tuple[type, bool]] = {}
    for name, hint in get_type_hints(cls).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        plain = [part for part in parts if part is not NoneType]
        assert len(plain) == 1, f"{name}: {hint} is not a type that a recipe can hold"
        kind: Any = _CONTAINERS.get(get_origin(plain[0]), plain[0])
        found[name] = (kind, NoneType in parts)
    return found


_ARTICLES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping such as {name: value, name: value}",
    list: "a list such as [1, 2, 3]",
}


def _wrong(name: str, value: Any, kind: type, optional: bool, hint: str = "") -> ValueError:
    allowed = _ARTICLES[kind] + (" or none" if optional else "")
    return ValueError(f"{name}: got {value!r}, expected {allowed}{hint}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _spelling_hint(value: Any, kind: type) -> str:
    """How the value could have been written, where that can be told."""
    if kind is bool and isinstance(value, str) and value.lower() in ("true", "false"):
        return f"; write {value.lower()} without quotes"
    if kind is str and not isinstance(value, (list, dict)):
        words = {"True": "yes', 'on' or 'true", "False": "no', 'off' or 'false"}
        word = words.get(str(value), value)
        return f"; YAML reads it as a value, put the text in quotes: '{word}'"
    if kind in (int, float) and isinstance(value, str) and (number := _number(value)) is not None:
        if kind is int and number.is_integer():
            return f"; YAML reads it as text, write {int(number)}"
        if kind is float and "e" in value.lower() and "." not in value:
            spelling = value.lower().replace("e", ".0e", 1)
            return f"; YAML reads a number without a point as text, write {spelling}"
        return "; it is in quotes or not a YAML number"
    if kind is int and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    return ""


def checked_value(name: str, value: Any, kind: type, optional: bool = False) -> Any:
    """`value` if it has the field's type (a whole number may stand for a float).

    Raises:
        ValueError: with what was given, what is expected, and how to write it.
    """
    if value is None and optional:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise _wrong(name, value, kind, optional, _spelling_hint(value, kind))
    if isinstance(value, float) and not math.isfinite(value):
        raise _wrong(name, value, kind, optional, ", and a finite one")
    return value


def value_from_text(name: str, text: str, kind: type, optional: bool = False) -> Any:
    """The value that a command-line flag's text stands for; here `1e-4` is a number.

    Raises:
        ValueError: with what was given and what is expected.
    """
    if optional and text.lower() in ("none", "null"):
        return None
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise _wrong(name, text, kind, optional)
        return text.lower() == "true"
    if kind is list:
        text = f"[{text.strip('[]')}]"
    if kind in (dict, list):
        return checked_value(name, _from_yaml(text, f"--{name}"), kind)
    try:
        return checked_value(name, kind(text), kind)
    except ValueError:
        raise _wrong(name, text, kind, optional) from None


def check_fields(instance: Any) -> None:
    """Type and allowed values of every field of a dataclass made with `key`.

    Raises:
        ValueError: for the first field that does not hold, with what is allowed.
    """
    types = kinds(type(instance))
    for field in dataclasses.fields(instance):
        value = checked_value(field.name, getattr(instance, field.name), *types[field.name])
        object.__setattr__(instance, field.name, value)  # 3 -> 3.0 in a frozen dataclass
        check: Check | None = field.metadata["check"]
        if check and value is not None and not check.holds(value):
            hint = nearest(str(value), check.names)
            raise ValueError(f"{field.name}: got {value!r}, must be {check.words}{hint}")


@overload
def listed(text: str) -> list[str]: ...
@overload
def listed(text: str | None) -> list[str] | None: ...
def listed(text: str | None) -> list[str] | None:
    """The parts of `one, two`, which stand between commas; None of None."""
    return None if text is None else [part.strip() for part in text.split(",")]


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, where a key given twice is an error and not the last one's victory."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            name = self.construct_object(key_node, deep=True)
            if name in seen:
                line = key_node.start_mark.line + 1
                raise ValueError(f"{name} is given twice (again on line {line})")
            seen.add(name)
        return super().construct_mapping(node, deep)


def read_yaml_mapping(path: str | Path) -> dict[str, Any]:
    """The keys and values of a YAML file; an empty file has none.

    Raises:
        ValueError: if it is not YAML, not UTF-8, not a mapping, or gives a key twice.
    """
    try:
        content = _from_yaml(Path(path).read_text(encoding="utf-8"), path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected lines of `key: value`")
    return {str(name): value for name, value in content.items()}


def _from_yaml(text: str, source: str | Path) -> Any:
    try:
        return yaml.load(text, _StrictLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not YAML: {error}") from error


_NUMBERS = re.compile(r"[-+\d.,\]]+")


def parse_flags(
    arguments: Sequence[str], switches: Sequence[str] = (), lists: Sequence[str] = ()
) -> tuple[list[str], dict[str, str], set[str]]:
    """Split `name --key value --key=value --switch` into positionals, flags and switches.

    Args:
        arguments: the command line, without the program's name.
        switches: flags that take no value.
        lists: flags that take several numbers: `--seeds 1 2 3` is `--seeds 1,2,3`.

    Raises:
        ValueError: for a flag given twice, a flag without its value, or a switch with one.
    """
    positionals: list[str] = []
    flags: dict[str, str] = {}
    on: set[str] = set()
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            positionals.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if name in flags or name in on:
            raise ValueError(f"--{name} is given twice")
        if name in switches:
            if equals:
                raise ValueError(f"--{name} takes no value, got {value!r}")
            on.add(name)
        elif equals:
            flags[name] = value
        elif rest and not rest[0].startswith("--"):
            flags[name] = rest.pop(0)
            while name in lists and rest and _NUMBERS.fullmatch(rest[0]):
                flags[name] += f",{rest.pop(0)}"
        else:
            raise ValueError(f"--{name} needs a value: --{name} VALUE")
    return positionals, flags, on


def described(cls: type) -> Mapping[str, str]:
    """Each field of a dataclass made with `key`: its type, default and allowed values, summary."""
    types = kinds(cls)
    lines: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        kind, _ = types[field.name]
        default = "none" if field.default in (None, "") else field.default
        check: Check | None = field.metadata["check"]
        allowed = f", {check.words}" if check else ""
        lines[field.name] = f"{field.metadata['summary']} ({kind.__name__}{allowed}; {default})"
    return lines
