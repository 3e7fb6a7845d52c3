"""Typed configuration: frozen dataclasses built from a ConfigDict, strict about every key."""

import dataclasses
import difflib
import functools
import hashlib
import json
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TypeVar

from hubert_jax import storage
from hubert_jax.errors import InputError

Schema = TypeVar("Schema")
T = TypeVar("T")
MISSING: Any = object()

# Says where things lie, how fast or how often, but does not decide what comes out: a run goes on,
# and a finished job stays valid, when it changes.
MayChange = Annotated[T, "may change"]
# Names files; what is in them decides, not what they are called.
Reads = Annotated[T, "reads"]

_SCHEME = re.compile(r"\w+:(?=[A-Za-z][\w+.-]*://)")  # hf:, orbax: before a URL


def build(schema: Callable[..., Schema], values: Mapping[str, Any], path: str = "config") -> Schema:
    """Builds the frozen dataclass `schema` from a ConfigDict or mapping, `path` in messages.

    Fields may be bool, int, float, str, `tuple[X, ...]`, optional types and dataclasses. Raises
    InputError for an unknown or missing key, a wrong type, a float that is not finite, and what
    `__post_init__` refuses.
    """
    if not hasattr(values, "items"):
        raise InputError(f"{path}: expected a group of values, found {values!r:.80}")
    fields, hints, paths = _described(schema)
    for key in values:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields, n=1)
            remedy = f"did you mean {path}.{close[0]}?" if close else f"known: {', '.join(fields)}"
            raise InputError(f"{path}.{key}: no such key; {remedy}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = checked(hints[name], values[name], f"{path}.{name}", field.default)
            if name in paths:
                _require_known(arguments[name], f"{path}.{name}")
            if name == "workdir" and not values[name].strip():
                raise InputError(f"{path}.workdir: empty, expected a folder")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(
                f"{path}.{name}: missing; pass --{path}.{name}=... or set it in the config"
            )
    return schema(**arguments)


@functools.cache
def _described(schema: Any) -> tuple[dict[str, dataclasses.Field], dict[str, Any], set[str]]:
    """The fields, their types, and the names of those that are paths.

    Kept, as a manifest builds the same schema a hundred thousand times.
    """
    fields = {field.name: field for field in dataclasses.fields(schema)}
    paths = {name for name in fields if "reads" in field_marks(schema, name)}
    return fields, typing.get_type_hints(schema), paths | ({"workdir"} & fields.keys())


def _require_known(value: str | tuple[str, ...], path: str) -> None:
    """Raises InputError for a URL that is of no bucket, or without its name."""
    for each in (value,) if isinstance(value, str) else value:
        scheme = _SCHEME.match(each)
        try:
            storage.path(each[scheme.end() :] if scheme else each)
        except InputError as error:
            reason = str(error).partition(": ")[2]
            raise InputError(f"{path}={each}: {reason}") from None


def as_float(number: int) -> float:
    """Infinity where the number is too large for one."""
    return float(number) if number.bit_length() < 1024 else math.inf


def over(default: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and what a default that is a dataclass has besides."""
    if not dataclasses.is_dataclass(default):
        return dict(values.items())
    fields = (field.name for field in dataclasses.fields(default))
    return {name: getattr(default, name) for name in fields} | dict(values.items())


def checked(expected: Any, value: Any, path: str, default: Any = None) -> Any:
    """`value` as the type `expected`, of a field of `build`, or an InputError that names `path`.

    A group takes the keys that it lacks from the field's `default`.
    """
    if expected is Any:  # validated by the job that receives it
        return value
    origin = typing.get_origin(expected)
    if origin in (typing.Union, types.UnionType):
        options = typing.get_args(expected)
        if value is None and type(None) in options:
            return None
        remaining = [option for option in options if option is not type(None)]
        return checked(remaining[0], value, path)
    if isinstance(expected, type) and dataclasses.is_dataclass(expected):
        if isinstance(value, expected):
            return value
        if not hasattr(value, "items"):  # ConfigDict is no Mapping
            raise InputError(f"{path}: expected a group of keys, found {value!r}")
        return build(expected, over(default, value), path)
    if origin is tuple:
        item_type = typing.get_args(expected)[0]
        if isinstance(value, str) or not isinstance(value, (list, tuple)):
            raise InputError(f"{path}: expected a sequence, found {value!r}")
        return tuple(checked(item_type, item, f"{path}[{i}]") for i, item in enumerate(value))
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = as_float(value)
    if not isinstance(value, expected) or (expected is int and isinstance(value, bool)):
        remedy = ""
        if expected is str and path.startswith("config."):
            remedy = f"; a name that is a number is written in two kinds of quotes, \"'{value}'\""
        raise InputError(
            f"{path}: expected {expected.__name__}, found {type(value).__name__} {value!r}{remedy}"
        )
    if expected is float and not math.isfinite(value):
        raise InputError(f"{path}: expected a finite number, found {value}")
    return value


def decisive(config: Any, complete: bool = False) -> dict[str, Any]:
    """The values that decide what comes out, JSON-able: no field that is `MayChange` or `Reads`.

    Values that are their fields' defaults are left out unless `complete`, so that a new field with
    a default changes nothing.
    """
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field_marks(type(config), field.name):
            continue
        if dataclasses.is_dataclass(value):
            values = decisive(value, complete)
            if values:
                found[field.name] = values
        elif complete or value != field.default:
            found[field.name] = json.loads(json.dumps(value, default=dataclasses.asdict))
    return found


def differences(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
    path: str = "",
) -> Iterator[tuple[str, Any, Any]]:
    """Every leaf of two nested mappings that differs: its keys, joined by dots, then and now.

    What is not there is MISSING. A leaf that is new differs only where it is in `given`, the values
    that are not defaults, or where `given` is None.
    """
    for name in {**before, **now}:
        then, value = before.get(name, MISSING), now.get(name, MISSING)
        if isinstance(value, Mapping) and (then is MISSING or isinstance(then, Mapping)):
            below = None if given is None else given.get(name, {})
            then = {} if then is MISSING else then
            yield from differences(then, value, below, f"{path}{name}.")
        elif then != value and not (then is MISSING and given is not None and name not in given):
            yield f"{path}{name}", then, value


def values_by_key(config: Any, path: str = "config") -> dict[str, Any]:
    """Every value by its dotted key; of those that name files, whether it is given."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        key, value = f"{path}.{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= values_by_key(value, key)
        elif "reads" in field_marks(type(config), field.name):
            found[key] = bool(value)
        else:
            found[key] = value
    return found


def field_marks(schema: type, name: str) -> tuple[str, ...]:
    """Whether a field is `MayChange` or `Reads`: the marks of its annotation."""
    return getattr(_annotations(schema)[name], "__metadata__", ())


@functools.cache
def _annotations(schema: type) -> dict[str, Any]:
    return typing.get_type_hints(schema, include_extras=True)


def to_dict(config: Any) -> dict[str, Any]:
    """The configuration as plain JSON-able values (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def digest(value: Any) -> str:
    """SHA-256 (hex) of a dataclass or JSON-able value, independent of key order."""
    if dataclasses.is_dataclass(value):
        value = to_dict(value)
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
