"""Whether a checkpoint is of the run that wants to go on from it."""

import pathlib
from typing import Any

from hubert_jax import config as config_lib
from hubert_jax.config import MISSING
from hubert_jax.errors import InputError


def require_same_run(
    found: dict[str, Any], expected: dict[str, Any], warm_start: bool, directory: pathlib.Path
) -> dict[str, Any]:
    """Refuses a checkpoint of another run; returns what the checkpoint alone knows.

    That is its `config`, `inputs`, with the network that the run started from, the place of it,
    `init_from`, `metrics` and, if the run was validated, `validation`. A configuration field that
    `found`, its metadata, lacks was added since and must have its default. `expected` is the task's
    kind and facts. InputError names what differs.
    """
    differing = []
    if found.get("kind") != expected["kind"]:
        differing.append(f"kind was {found.get('kind')}, is {expected['kind']}")
    inputs = dict(found.get("inputs", {}))
    if warm_start != (inputs.pop("init_from", None) is not None):
        then, now = ("empty", "set") if warm_start else ("set", "empty")
        differing.append(f"config.init_from was {then}, is {now}")
    for name, before, now, decisive in (
        ("config", found.get("config", {}), expected["config"], expected["decisive"]),
        ("inputs", inputs, expected["inputs"], None),
        ("rows of a batch", found.get("rows", {}), expected["rows"], None),
        ("version of the code", found.get("version"), expected["version"], None),
    ):
        given = None if decisive is None else {name: decisive}
        for path, a, b in config_lib.differences({name: before}, {name: now}, given):
            new = f"is new and {b!r:.40}" if a is MISSING else f"was {a!r:.40}, is {b!r:.40}"
            differing.append(f"{path} was {a!r:.40}, is gone" if b is MISSING else f"{path} {new}")
    if differing:
        raise InputError(
            f"{directory}: its checkpoint is of another run, these differ: {'; '.join(differing)}; "
            "use another config.workdir, or remove this directory to begin again"
        )
    validation = {name: found[name] for name in ("validation",) if name in found}
    known = {"inputs": found["inputs"], "init_from": found.get("init_from", "")}
    # As the run began, so that a key which is new gives its weights no other fingerprint.
    known["config"] = found["config"]
    return {**known, "metrics": found.get("metrics", {}), **validation}
