"""One section of params.yaml becomes one frozen dataclass, strictly: no key too many, none too few, every type checked."""

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML

from filbert import FilbertError

PARAMS = Path("params.yaml")
T = TypeVar("T")


class ConfigError(FilbertError):
    """A section of params.yaml does not say what its reader needs."""


def section(name: str, shape: type[T], params: Path = PARAMS) -> T:
    """The section with the dotted `name` of the file `params` as an instance of `shape`, a dataclass or a dict of them.

    Raises:
        ConfigError: the section, one of its keys or the type of a value is not what `shape` declares.
    """
    found: Any = read_params(params)
    for depth, key in enumerate(name.split(".")):
        if not isinstance(found, dict) or key not in found:
            where = ".".join(name.split(".")[:depth]) or "the top level"
            raise ConfigError(f"{params}: no `{key}` in {where}; expected a section `{name}` with {_wanted(shape)}")
        found = found[key]
    return _build(shape, found, f"{params}: {name}")


def read_params(params: Path = PARAMS) -> dict[str, Any]:
    """The whole of `params`. ruamel reads YAML 1.2 as DVC does: PyYAML would make a string of 2e-5."""
    return YAML(typ="safe").load(params.read_text(encoding="utf-8"))


def _wanted(shape: type) -> str:
    return ", ".join(f.name for f in dataclasses.fields(shape)) if dataclasses.is_dataclass(shape) else "entries"


def _build(shape: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(shape):
        return _build_dataclass(shape, value, where)
    origin, inner = typing.get_origin(shape), typing.get_args(shape)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(next(t for t in inner if t is not type(None)), value, where)
    if origin is typing.Literal and value in inner:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_build(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _build(inner[1], item, f"{where}.{key}") for key, item in value.items()}
    if shape is float and type(value) is int:
        return float(value)
    if isinstance(shape, type) and type(value) is shape:
        return value
    expected = " or ".join(map(repr, inner)) if origin is typing.Literal else getattr(shape, "__name__", str(shape))
    raise ConfigError(f"{where}: expected {expected}, got {value!r} ({type(value).__name__})")


def _build_dataclass(shape: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a section with {_wanted(shape)}, got {value!r}")
    hints = typing.get_type_hints(shape)
    names = [field.name for field in dataclasses.fields(shape)]
    for key in value:
        if key not in names:
            raise ConfigError(f"{where}: unknown key `{key}`; known are {', '.join(names)}")
    for key in names:
        if key not in value:
            raise ConfigError(f"{where}: missing key `{key}`")
    return shape(**{key: _build(hints[key], value[key], f"{where}.{key}") for key in names})
