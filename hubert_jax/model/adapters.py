"""Adapters of low rank beside a network's matrices: x W + s (x A) B (Hu et al. 2021, LoRA)."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MATRICES = ("query", "key", "value", "output", "ffn_in", "ffn_out")
_PATH = ("hubert", "transformer", "layers", "layer")


def init(key: jax.Array, params: Mapping[str, Any], matrices: Sequence[str], rank: int) -> dict:
    """Fresh adapters of `matrices`: A, "NAME_down", in U(-b, b), b = inputs^-0.5; B, "NAME_up", 0.

    `params` are the network's; like theirs, leaves have a leading axis of layers.
    """
    layer = _at(params)
    adapters = {}
    for name, drawn in zip(matrices, jax.random.split(key, len(matrices)), strict=True):
        layers, inputs, outputs = layer[name]["kernel"].shape
        bound = inputs**-0.5
        shape = (layers, inputs, rank)
        adapters[f"{name}_down"] = jax.random.uniform(drawn, shape, jnp.float32, -bound, bound)
        adapters[f"{name}_up"] = jnp.zeros((layers, rank, outputs))
    return _with({}, adapters)


def variables(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """Flax's variables: `params`, and their entry `adapters`, if any, with B times `scale`."""
    if "adapters" not in params:
        return {"params": params}
    adapters = _at(params["adapters"])
    scaled = {n: leaf * scale if n.endswith("_up") else leaf for n, leaf in adapters.items()}
    return {"params": params, "adapters": _with({}, scaled)}


def merged(params: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The parameters of the same network without adapters: W + `scale` A B; of NumPy or JAX."""
    rest = {name: leaf for name, leaf in params.items() if name != "adapters"}
    if "adapters" not in params:
        return rest
    layer, adapters = dict(_at(rest)), _at(params["adapters"])
    for name in {entry.rpartition("_")[0] for entry in adapters}:
        down, up = adapters[f"{name}_down"], adapters[f"{name}_up"]
        if isinstance(down, np.ndarray):
            product = down @ up
        else:
            product = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
        layer[name] = {**layer[name], "kernel": layer[name]["kernel"] + scale * product}
    return _with(rest, layer)


def _at(tree: Any) -> Mapping[str, Any]:
    """The entries of the transformer's layers."""
    for name in _PATH:
        tree = tree[name]
    return tree


def _with(tree: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with these entries of the transformer's layers."""
    for depth in reversed(range(len(_PATH))):
        above: Any = tree
        for name in _PATH[:depth]:
            above = above.get(name, {})
        entries = {**above, _PATH[depth]: entries}
    return dict(entries)
