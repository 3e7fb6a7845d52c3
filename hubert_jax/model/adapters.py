"""Adapters of low rank beside a network's matrices: x W + s (x A) B (Hu et al. 2021, LoRA)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax.errors import InputError

_MATRICES = ("query", "key", "value", "output", "ffn_in", "ffn_out")
_PATH = ("hubert", "transformer", "layers", "layer")


@dataclasses.dataclass(frozen=True)
class Adapters:
    """Which matrices have adapters, which learn beside a frozen network; or none.

    Parameters keep them as `adapters`: A, "NAME_down", and B, "NAME_up", of all layers.
    """

    rank: int = 0  # 0: no adapters, the network learns
    alpha: float = 16.0  # an adapter's output is multiplied by alpha / rank
    matrices: tuple[str, ...] = ("query", "value")  # that have one; or key, output, ffn_in, ffn_out

    def __post_init__(self) -> None:
        once = 0 < len({*self.matrices}) == len(self.matrices)
        for name, fits, expected in (
            ("rank", self.rank >= 0, "0 or more"),
            ("alpha", self.alpha > 0, "more than 0"),
            (
                "matrices",
                once and {*self.matrices} <= {*_MATRICES},
                f"some of {', '.join(_MATRICES)}, each once",
            ),
        ):
            if not fits:
                raise InputError(f"config.lora.{name}={getattr(self, name)}: expected {expected}")
        for field in dataclasses.fields(self):
            if not self.rank and getattr(self, field.name) != field.default:
                raise InputError(
                    f"config.lora.{field.name}={getattr(self, field.name)}: found without "
                    "config.lora.rank, without which there are no adapters"
                )

    def added(self, params: dict, key: jax.Array) -> dict:
        """`params` with fresh adapters, if there are any: A in U(-b, b), b = inputs^-0.5; B 0."""
        if not self.rank:
            return params
        layer, fresh = _at(params), {}
        for name, drawn in zip(
            self.matrices, jax.random.split(key, len(self.matrices)), strict=True
        ):
            layers, inputs, outputs = layer[name]["kernel"].shape
            bound, shape = inputs**-0.5, (layers, inputs, self.rank)
            fresh[f"{name}_down"] = jax.random.uniform(drawn, shape, jnp.float32, -bound, bound)
            fresh[f"{name}_up"] = jnp.zeros((layers, self.rank, outputs))
        return {**params, "adapters": _with({}, fresh)}

    def variables(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What Flax's `apply` takes; every B is multiplied by the scale."""
        if not self.rank:
            return {"params": params}
        leaves = _at(params["adapters"]).items()
        scaled = {n: leaf * self._scale if n.endswith("_up") else leaf for n, leaf in leaves}
        return {"params": params, "adapters": _with({}, scaled)}

    def merged(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters of the same network without adapters, W + s A B; of NumPy or JAX."""
        rest = {name: leaf for name, leaf in params.items() if name != "adapters"}
        if not self.rank:
            return rest
        layer, adapters = dict(_at(rest)), _at(params["adapters"])
        for name in self.matrices:
            down, up = adapters[f"{name}_down"], adapters[f"{name}_up"]
            if isinstance(down, np.ndarray):
                product = down @ up
            else:
                product = jnp.matmul(down, up, precision=jax.lax.Precision.HIGHEST)
            kernel = layer[name]["kernel"] + self._scale * product
            layer[name] = {**layer[name], "kernel": kernel}
        return _with(rest, layer)

    @property
    def _scale(self) -> float:
        return self.alpha / self.rank


NO_ADAPTERS = Adapters()


def _at(tree: Any) -> Mapping[str, Any]:
    """The entries of the transformer's layers."""
    for name in _PATH:
        tree = tree[name]
    return tree


def _with(tree: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with these entries of the transformer's layers in place of its own."""
    for depth in reversed(range(len(_PATH))):
        above: Any = tree
        for name in _PATH[:depth]:
            above = above.get(name, {})
        entries = {**above, _PATH[depth]: entries}
    return dict(entries)
