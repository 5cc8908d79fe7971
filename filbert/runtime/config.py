"""Sections of params.yaml become frozen dataclasses, strictly: no unknown key, no missing key, every value of its type.

A phase of training is written by what differs: a field whose dataclass names a `DEFAULTS` section is completed first from that
section of params.yaml, then from the key of the same name in the section it stands in, then from its own keys. A number may have a
range beside its type (`Annotated[int, Range(1)]`, or one of the names below); NaN and infinity are always refused.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from copy import deepcopy
from enum import EnumType, StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from filbert import FilbertError

PARAMS = Path("params.yaml")
TEACHER = "teacher"  # its name among the students
T = TypeVar("T")
Mapping = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`; `above` leaves `low` itself out."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        lowest = f"more than {self.low:g}" if self.above else f"at least {self.low:g}"
        return lowest if math.isinf(self.high) else f"{lowest} and at most {self.high:g}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]


class ConfigError(FilbertError):
    """A section of params.yaml is not what its reader declares."""


def section(names: str | Sequence[str], shape: type[T], params: Path = PARAMS) -> T:
    """The section of `params` with a dotted name as an instance of `shape`, a dataclass or a dict or tuple of such.

    Several names are sections that are merged, the later over the earlier: a method's settings and those of its variant. Only
    the first must exist.

    Raises:
        ConfigError: a section is missing, or a key or the type of a value is not what `shape` declares.
    """
    names = [names] if isinstance(names, str) else list(names)
    document = read_params(params)
    found = _find(document, names[0], shape, params)
    for name in names[1:]:
        found = merge(found, _find(document, name, shape, params, optional=True))
    return _build(shape, found, f"{params}: {names[-1]}", document)


def build(shape: type[T], value: Any, where: str) -> T:
    """`value`, read from `where`, as an instance of a dataclass.

    Raises:
        ConfigError: a key or the type of a value is not what `shape` declares.
    """
    built: T = _build(shape, value, where, {})
    return built


def read_params(params: Path = PARAMS) -> Mapping:
    """The whole of `params`. ruamel reads YAML 1.2 as DVC does: PyYAML would make a string of 2e-5.

    Raises:
        ConfigError: it is no UTF-8, no YAML (the line is named; a key that occurs twice is an error), or no mapping.
    """
    try:
        document = _parsed(params.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{params}: expected UTF-8, got byte {error.object[error.start]:#x} at {error.start}"
        ) from error
    except YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        raise ConfigError(
            f"{params}{f', line {mark.line + 1}' if mark else ''}: {str(problem).splitlines()[0]}"
        ) from error
    if not isinstance(document, dict):
        raise ConfigError(f"{params}: expected a mapping of sections, got {type(document).__name__}")
    return deepcopy(document)


@lru_cache(maxsize=2)
def _parsed(text: str) -> Any:
    return YAML(typ="safe").load(text)


def student_names(params: Mapping) -> list[str]:
    """The students that a run with these params makes: methods, variants, chains."""
    named = [*(params.get("variants") or []), *(params.get("chains") or [])]
    return [*(params.get("methods") or []), *(entry["name"] for entry in named)]


def merge(below: Any, above: Any) -> Any:
    """`above` laid over `below`: mappings key by key, anything else replaced."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return below | {key: merge(below[key], value) if key in below else value for key, value in above.items()}


def _find(document: Mapping, name: str, shape: type, params: Path, optional: bool = False) -> Any:
    found: Any = document
    for depth, key in enumerate(name.split(".")):
        if not isinstance(found, dict) or key not in found:
            if optional:
                return {}
            where = ".".join(name.split(".")[:depth]) or "the top level"
            raise ConfigError(f"{params}: no `{key}` in {where}; expected a section `{name}` with {_keys(shape)}")
        found = found[key]
    return found


def _keys(shape: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(shape)) if dataclasses.is_dataclass(shape) else "entries"


def _build(shape: Any, value: Any, where: str, defaults: Mapping) -> Any:
    """`value` as a `shape`; `defaults` are by name the sections that complete a part of it."""
    if dataclasses.is_dataclass(shape):
        return _build_dataclass(shape, value, where, defaults)
    origin, inner = typing.get_origin(shape), typing.get_args(shape)
    if origin is Annotated:
        return _in_range(_build(inner[0], value, where, defaults), inner[1], where)
    if origin in (typing.Union, types.UnionType):
        kinds = [kind for kind in inner if kind is not type(None)]
        if value is None and len(kinds) < len(inner):
            return None
        return _build(next((k for k in kinds if _fits(k, value)), kinds[-1]), value, where, defaults)
    choices = inner if origin is typing.Literal else _values_of(shape)
    if any(type(value) is type(choice) and value == choice for choice in choices):  # True is no 1
        return value if origin is typing.Literal else shape(value)
    if origin is tuple and isinstance(value, list):
        return tuple(_build(inner[0], item, f"{where}[{i}]", defaults) for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _build(inner[1], item, f"{where}.{key}", defaults) for key, item in value.items()}
    if shape is float and type(value) is int:
        return float(value)
    if isinstance(shape, type) and type(value) is shape and not (type(value) is float and not math.isfinite(value)):
        return value
    expected = " or ".join(map(repr, choices)) if choices else getattr(shape, "__name__", str(shape))
    raise ConfigError(f"{where}: expected {expected}, got {value!r} ({type(value).__name__})")


def _in_range(value: Any, allowed: Range, where: str) -> Any:
    if value not in allowed:
        raise ConfigError(f"{where}: expected a number of {allowed}, got {value!r}")
    return value


def _values_of(shape: Any) -> list[str]:
    """The values of an enumeration of strings; of any other type none."""
    return [member.value for member in typing.cast(type[StrEnum], shape)] if isinstance(shape, EnumType) else []


def _fits(kind: Any, value: Any) -> bool:
    """Whether a value of a union may be of this kind: mappings are dataclasses or dicts, all else is compared by type."""
    kind = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    is_section = dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict
    return is_section if isinstance(value, dict) else type(value) is kind


def _build_dataclass(shape: Any, value: Any, where: str, defaults: Mapping) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a section with {_keys(shape)}, got {value!r}")
    hints, fields = (
        typing.get_type_hints(shape, include_extras=True),
        {field.name: field for field in dataclasses.fields(shape)},
    )
    completed = {name: section for name, kind in hints.items() if (section := _defaults_of(kind))}
    for section in set(completed.values()):
        if section in value:
            defaults = defaults | {section: merge(defaults.get(section, {}), value[section])}
    values = {key: item for key, item in value.items() if key in fields or key not in completed.values()}
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key `{key}`; known are {', '.join(fields)}")
    for name, section in completed.items():
        if values.get(name, {}) is not None and (name in values or not _is_optional(hints[name])):
            values[name] = merge(defaults.get(section, {}), values.get(name, {}))
    for key, field in fields.items():
        if key not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}: missing key `{key}`")
    built = {key: _build(hints[key], values[key], f"{where}.{key}", defaults) for key in fields if key in values}
    try:
        return shape(**built)
    except FilbertError as error:
        raise ConfigError(f"{where}: {error}") from error


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _defaults_of(kind: Any) -> str:
    """The section that completes a field of this type; empty where none does."""
    kinds = [k for k in typing.get_args(kind) if k is not type(None)] if _is_optional(kind) else [kind]
    return getattr(kinds[0], "DEFAULTS", "") if len(kinds) == 1 and dataclasses.is_dataclass(kinds[0]) else ""
