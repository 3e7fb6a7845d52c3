"""Whether a checkpoint is of the run that wants to go on from it."""

import pathlib
from typing import Any

from hubert_jax.errors import InputError

_MISSING = object()


def require_same_run(
    found: dict[str, Any], expected: dict[str, Any], warm_start: bool, directory: pathlib.Path
) -> dict[str, Any]:
    """Refuses a checkpoint of another run.

    A field of the configuration that the checkpoint does not know was added since: it has to have
    its default.

    Args:
      found: metadata of the run's newest checkpoint.
      expected: kind and facts of the task.
      warm_start: whether the run starts from another network.
      directory: of the run, for messages.

    Returns:
      What the checkpoint alone knows: `inputs`, with the network that the run started from, and
      `metrics`.

    Raises:
      InputError: names what differs.
    """
    differing = []
    if found.get("kind") != expected["kind"]:
        differing.append(f"kind was {found.get('kind')}, is {expected['kind']}")
    inputs = {name: value for name, value in found.get("inputs", {}).items() if name != "init_from"}
    if warm_start != ("init_from" in found.get("inputs", {})):
        then, now = (("empty", "set"), ("set", "empty"))[not warm_start]
        differing.append(f"config.init_from was {then}, is {now}")
    for name, before, now in (
        ("config", found.get("config", {}), expected["config"]),
        ("inputs", inputs, expected["inputs"]),
        ("rows of a batch", found.get("rows", {}), expected["rows"]),
        ("version of the code", found.get("version"), expected["version"]),
    ):
        decisive = expected["decisive"] if name == "config" else None
        differing += _differing(before, now, name, decisive)
    if differing:
        raise InputError(
            f"{directory}: its checkpoint is of another run, these differ: {'; '.join(differing)}; "
            "use another config.workdir, or remove this directory to begin again"
        )
    return {"inputs": found["inputs"], "metrics": found.get("metrics", {})}


def _differing(before: Any, now: Any, path: str, decisive: Any) -> list[str]:
    """`path was ..., is ...` of every leaf that differs.

    `decisive` holds the values that are not their defaults: a leaf that is new must not be there.
    None: nothing may be new.
    """
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for name in now
            for line in _differing(
                before.get(name, _MISSING),
                now[name],
                f"{path}.{name}",
                decisive.get(name, {}) if isinstance(decisive, dict) else decisive,
            )
        ] + [
            f"{path}.{name} was {before[name]!r:.40}, is gone" for name in before if name not in now
        ]
    if before is _MISSING:
        if isinstance(now, dict):
            return _differing({}, now, path, decisive)
        return [f"{path} is new and {now!r:.40}"] if decisive in (None, now) else []
    return [] if before == now else [f"{path} was {before!r:.40}, is {now!r:.40}"]
