"""A job's command line: `--config=FILE.py[:PART]` and `--config.KEY=VALUE`, as absl flags.

A configuration file has `get_config(part)`, which returns a ConfigDict, and usually `PARTS`.
Further parameters of `get_config` are keys of the file's own, given before it returns its values.
"""

import ast
import dataclasses
import difflib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, get_args, get_type_hints

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_dict import placeholder

from hubert_jax import config as config_lib
from hubert_jax.errors import InputError

_HELP = ("--help", "-h", "-help", "--helpfull")
_COMMENTED = re.compile(r"^    (\w+):[^#\n]*(  # .*)$", re.MULTILINE)  # a field and its comment


def wants_help(arguments: list[str]) -> bool:
    """Whether they ask what the job does."""
    return any(argument in _HELP for argument in arguments)


def usage(
    job: str, schemas: Sequence[Any], description: str, part: str = "", listed: str = ""
) -> str:
    """The text of `--help`; `part` of a configuration file is the job's, its name's if empty.

    Words that are no flags are the values of the key `listed`, if a job has one.
    """
    words = f"{listed[:-1].upper()} ... " if listed else ""
    optional = "[--config=FILE.py[:PART]]" if listed else "--config=FILE.py[:PART]"
    keys = "\n\n".join(
        "keys, with their type and what they are where the file says nothing:\n"
        + "\n".join(
            f"  --config.{key:<34} {kind}, "
            f"{'required' if default is dataclasses.MISSING else repr(default)}{comment}"
            for key, kind, default, comment in _described(schema)
        )
        + f"\n\n{inspect.getdoc(schema)}"
        for schema in schemas
    )
    return (
        f"{textwrap.dedent(description).strip()}\n\n"
        f"usage: python -m hubert_jax.{job} {words}{optional} [--config.KEY=VALUE ...]\n\n"
        f"  --config=FILE.py[:PART]  the configuration, for example configs/small.py; PART is\n"
        f"                           {part or job!r} unless it is given\n"
        f"  --config.KEY=VALUE       replaces one value of it; a sequence is written a,b,c\n\n"
        f"{keys}\n"
    )


def read(arguments: list[str], job: str, *schemas: Any, listed: str = "") -> Any:
    """The configuration that a command line asks for: the file's part `job` unless it names one.

    With `listed`, words that are no flags are the values of that key, and no file is needed.
    Of several schemas it is the one with the fewest keys that the file has alone, or lacks.
    Raises InputError for all that is wrong with the file or with an argument.
    """
    path, overrides, words = _split(arguments, listed)
    values: Mapping[str, Any] = {}
    if path:
        values, overrides = _load(path, job, overrides)
    if words:
        values = {**values, listed: tuple(words)}
    schema = min(schemas, key=lambda each: _misfits(each, values))
    if hasattr(schema, "with_defaults"):  # of groups that the dataclass does not know
        values = schema.with_defaults(values)
    config = with_defaults(schema, values)
    for override in overrides:
        _apply(config, override)
    return config_lib.build(schema, _without_placeholders(config))


def _misfits(schema: Any, values: Mapping[str, Any]) -> int:
    """How many keys a file has that a schema lacks, and how many it lacks that it requires."""
    fields = {field.name: field.default for field in dataclasses.fields(schema)}
    required = {name for name, default in fields.items() if default is dataclasses.MISSING}
    return len({*values} - {*fields}) + len(required - {*values})


def _split(arguments: list[str], listed: str) -> tuple[str, list[str], list[str]]:
    """The value of `--config`, the overrides, and words that are no flags, which are `listed`."""
    path, overrides = "", []
    words: list[str] = []
    remaining = list(arguments)
    while remaining:
        argument = remaining.pop(0)
        if listed and not argument.startswith("-"):
            words.append(argument)
            continue
        name = argument.partition("=")[0].removeprefix("-").removeprefix("-")
        if not argument.startswith("-") or not (
            name == "config" or name.removeprefix("no").startswith("config.")
        ):
            raise InputError(
                f"unexpected argument {argument!r}; expected --config=FILE.py and "
                "--config.KEY=VALUE (--help lists the keys)"
            )
        if "=" not in argument and not listed and remaining and not remaining[0].startswith("-"):
            argument += "=" + remaining.pop(0)
        if name == "config":
            path = argument.partition("=")[2]
        else:
            overrides.append(argument)
    if not path and not listed:
        raise InputError("--config: missing; pass a configuration file, --config=configs/NAME.py")
    return path, overrides, words


def _load(path: str, job: str, overrides: list[str]) -> tuple[Mapping[str, Any], list[str]]:
    """What `get_config` of the file returns, and the overrides that are not its parameters."""
    file, _, part = path.partition(":")
    if not os.path.isfile(file):  # pathlib's raises where a name is too long
        known = ", ".join(str(found) for found in sorted(pathlib.Path("configs").rglob("[!_]*.py")))
        found = f"; there are {known}" if known else "; jobs run from the repository's root"
        raise InputError(f"--config={file}: no such file{found}")
    loader = _SourceLoader("config_file", file)
    spec = importlib.util.spec_from_loader("config_file", loader)
    if spec is None or not file.endswith(".py"):
        raise InputError(f"--config={file}: expected a Python file, FILE.py")
    module = importlib.util.module_from_spec(spec)
    part = part or job
    try:
        loader.exec_module(module)
        parts = getattr(module, "PARTS", (part,))
        # A string would be taken for its letters.
        if isinstance(parts, str) or not all(isinstance(name, str) for name in parts):
            raise TypeError(f"PARTS holds {parts!r:.80}, not names alone")
        if part in parts:
            parameters, overrides = _parameters(module.get_config, overrides)
            values = module.get_config(part, **parameters)
            if isinstance(values, type) or not hasattr(values, "items"):
                raise TypeError(f"get_config returned {values!r:.80}, no ConfigDict")
            return values, overrides
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"--config={file}: cannot be loaded ({type(error).__name__}: {error}); expected a "
            "Python file with get_config(part)"
        ) from None
    raise InputError(
        f"--config={file}: has no part {part!r}, only {', '.join(parts)}; "
        f"pass --config={file}:PART or another file"
    )


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Loads what the file holds now.

    Bytecode that Python keeps of it would be of another file that was as long, and there within the
    same second.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _parameters(get_config: Callable, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Values of the parameters of `get_config` after the part, and the overrides of other keys."""
    hints = get_type_hints(get_config)
    _, *parameters = inspect.signature(get_config).parameters.values()
    values = ConfigDict(
        {
            parameter.name: _unset(hints[parameter.name])
            if parameter.default is parameter.empty
            else parameter.default
            for parameter in parameters
        }
    )
    others = []
    for override in overrides:
        if _key(override).partition(".")[0] in values:
            _apply(values, override)
        else:
            others.append(override)
    for name, value in values.items():
        if value is None:
            raise InputError(f"config.{name}: missing; pass --config.{name}=...")
    found = {
        name: config_lib.checked(hints.get(name, Any), value, f"config.{name}")
        for name, value in values.items()
    }
    return found, others


def with_defaults(schema: Any, values: Mapping[str, Any], default: Any = None) -> ConfigDict:
    """The file's values and, for keys that it lacks, those of `default` or of the schema."""
    complete = config_lib.over(default, values)
    hints = get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if field.name in complete:
            group = complete[field.name]
            if dataclasses.is_dataclass(kind) and hasattr(group, "items"):
                complete[field.name] = with_defaults(kind, group, field.default)
            elif kind is float and type(group) is int:
                complete[field.name] = config_lib.as_float(group)
        elif field.default is dataclasses.MISSING:
            # A required key: it has a type, so that it can be overridden, but no value yet.
            complete[field.name] = (
                with_defaults(kind, {}) if dataclasses.is_dataclass(kind) else _unset(kind)
            )
        elif dataclasses.is_dataclass(kind):
            complete[field.name] = with_defaults(kind, dataclasses.asdict(field.default))
        else:
            complete[field.name] = field.default
        if complete[field.name] is None and (options := get_args(kind)):  # X | None
            complete[field.name] = _unset(options[0])
    return ConfigDict(complete)


def _unset(kind: Any) -> Any:
    return placeholder(kind if isinstance(kind, type) else tuple)


def _without_placeholders(config: ConfigDict) -> dict[str, Any]:
    """Without the keys that still have no value, which `config.build` then reports."""
    return {
        name: _without_placeholders(value) if isinstance(value, ConfigDict) else value
        for name, value in config.items()
        if value is not None
    }


def _apply(config: ConfigDict, override: str) -> None:
    """Changes one key; raises InputError for an unknown one and for a value of another type."""
    flag, given, text = override.partition("=")
    key = _key(override)
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group.get(part) if isinstance(group, ConfigDict) else None
    if not isinstance(group, ConfigDict) or name not in group:
        raise InputError(f"config.{key}: no such key; {_suggestion(key, list(_paths(config)))}")
    kind = group.get_type(name)
    values = "=" + (repr(_sequence(text)) if kind in (tuple, list) else text) if given else ""
    negated = "no" if flag.lstrip("-").startswith("no") else ""
    # A flag of this key alone: an error is known to be its own, and absl prints all that it has.
    alone = ConfigDict({name: group.get_ref(name)})
    arguments = ["job", f"--{negated}config.{name}{values}"]
    parsed = flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", alone, flag_values=parsed, sys_argv=arguments)
        parsed(arguments)
    except (flags.Error, ValueError, TypeError):
        expected = kind.__name__
        if kind is ConfigDict:
            expected = f"one of its keys ({', '.join(group[name])})"
        found = repr(text) if given else "no value"
        raise InputError(f"config.{key}: expected {expected}, found {found}") from None


def _key(override: str) -> str:
    """The dotted key, `loop.steps`, of `--config.loop.steps=3`."""
    return override.partition("=")[0].lstrip("-").removeprefix("no").removeprefix("config.")


def _sequence(text: str) -> tuple:
    """A Python literal, or else strings between commas: paths and split names need no quotes."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _paths(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """The dotted names of all keys, groups left out."""
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _paths(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _suggestion(key: str, known: list[str]) -> str:
    last = key.rpartition(".")[2]
    same = [path for path in known if path.rpartition(".")[2] == last]
    close = same or difflib.get_close_matches(key, known, n=1)
    if not close:
        by_last = {path.rpartition(".")[2]: path for path in known}
        close = [by_last[name] for name in difflib.get_close_matches(last, by_last, n=1)]
    return f"did you mean config.{close[0]}?" if close else "--help lists the keys"


def _described(schema: Any, prefix: str = "") -> Iterator[tuple[str, str, Any, str]]:
    """(key, type, default or MISSING, "  # ..." or "") of every key, groups opened."""
    hints = get_type_hints(schema)
    comments = dict(_COMMENTED.findall(inspect.getsource(schema)))
    for field in dataclasses.fields(schema):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            for key, name, value, comment in _described(kind, f"{prefix}{field.name}."):
                default = getattr(field.default, key.rpartition(".")[2], value)
                yield key, name, default, comment
        else:
            name = kind.__name__ if isinstance(kind, type) else str(kind).removeprefix("typing.")
            yield prefix + field.name, name, field.default, comments.get(field.name, "")
