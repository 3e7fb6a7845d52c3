"""Transformer layers, pre- or post-LN, scanned over their stacked parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import Architecture, LmArchitecture, Regularization
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.layers import Dropout, LayerNorm, gelu, linear_init


class _TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each with its residual and LayerNorm."""

    architecture: Architecture | LmArchitecture
    regularization: Regularization
    kernels: Kernels
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        dtype = self.kernels.dtype
        attention_norm = LayerNorm(self.kernels, name="attention_norm")
        ffn_norm = LayerNorm(self.kernels, name="ffn_norm")
        if self.architecture.pre_norm:
            x = x + self._attend(attention_norm(x).astype(dtype), lengths)
            return x + self._feed_forward(ffn_norm(x).astype(dtype))
        x = attention_norm(x + self._attend(x, lengths)).astype(dtype)
        return ffn_norm(x + self._feed_forward(x)).astype(dtype)

    def _dense(self, x: jax.Array, features: int, name: str) -> jax.Array:
        """A dense layer of x, and its adapter where there is one (see `adapters`)."""
        dtype = self.kernels.dtype
        y = nn.Dense(
            features,
            kernel_init=linear_init,
            dtype=dtype,
            dot_general=self.kernels.dot_general,
            name=name,
        )(x)
        if not self.has_variable("adapters", f"{name}_down"):
            return y
        down: jax.Array = self.get_variable("adapters", f"{name}_down")
        up: jax.Array = self.get_variable("adapters", f"{name}_up")
        return y + (x @ down.astype(dtype)) @ up.astype(dtype)

    def _drop(self, x: jax.Array, rate: float) -> jax.Array:
        return Dropout(rate, self.kernels)(x, self.deterministic)

    def _attend(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        dim, regularization = self.architecture.dim, self.regularization
        heads = (*x.shape[:2], self.architecture.num_heads, self.architecture.head_dim)
        query, key, value = (
            self._dense(x, dim, name).reshape(heads) for name in ("query", "key", "value")
        )
        if self.has_variable("past", "keys"):
            # Padded, so the new frame comes before: to attention keys are a set.
            past: list[jax.Array] = [self.get_variable("past", name) for name in ("keys", "values")]
            self.sow("present", "keys", key)
            self.sow("present", "values", value)
            key, value = (
                jnp.concatenate(pair, axis=1) for pair in zip((key, value), past, strict=True)
            )
        rate = 0.0 if self.deterministic else regularization.attention_dropout
        if rate:
            y = self.kernels.attention(query, key, value, lengths, rate, self.make_rng("dropout"))
        else:
            y = self.kernels.attention(query, key, value, lengths)
        y = self._dense(y.reshape(x.shape), dim, "output")
        return self._drop(y, regularization.dropout)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        y = gelu(self._dense(x, self.architecture.ffn_dim, "ffn_in"))
        y = self._drop(y, self.regularization.activation_dropout)
        y = self._dense(y, self.architecture.dim, "ffn_out")
        return self._drop(y, self.regularization.dropout)


class _ScannedLayer(nn.Module):
    """One step of the scan: the layer, or with LayerDrop nothing at all."""

    architecture: Architecture | LmArchitecture
    regularization: Regularization
    kernels: Kernels
    deterministic: bool
    collect: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, kept: jax.Array, lengths: jax.Array | None
    ) -> tuple[jax.Array, jax.Array | None]:
        layer = _TransformerLayer(
            self.architecture, self.regularization, self.kernels, self.deterministic, name="layer"
        )
        certain = self.deterministic or self.regularization.layer_drop == 0
        if certain or self.is_initializing():
            x = layer(x, lengths)
        else:
            # A conditional, not a multiplication by zero: a dropped layer costs nothing.
            x = nn.cond(kept, lambda layer, x: layer(x, lengths), lambda layer, x: x, layer, x)
        return x, (x if self.collect else None)


class Transformer(nn.Module):
    """The stack of layers; their parameters have a leading axis of `num_layers`."""

    architecture: Architecture | LmArchitecture
    regularization: Regularization
    kernels: Kernels

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        deterministic: bool = True,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Output of the last layer, as x, and with `collect` of all, (num_layers, B, T, dim).

        x is (B, T, dim) in the compute dtype, `lengths` (B,) int32 the valid frames of each row,
        None: all. No final LayerNorm is applied. With the variables `past`, each layer's `keys` and
        `values` (B, S, heads, head_dim) of earlier frames, x is the one that follows (T = 1), which
        counts in `lengths`; its own are sown as `present`.
        """
        num_layers, layer_drop = self.architecture.num_layers, self.regularization.layer_drop
        if deterministic or layer_drop == 0:
            kept = jnp.ones((num_layers,), bool)
        else:
            kept = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - layer_drop, (num_layers,))
        layer = _ScannedLayer
        if self.kernels.rematerialize in ("all_but_dots", "everything"):
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            policy = dots if self.kernels.rematerialize == "all_but_dots" else None
            layer = nn.remat(_ScannedLayer, prevent_cse=False, policy=policy)
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0, "adapters": 0, "past": 0, "present": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=num_layers,
            unroll=min(self.kernels.scan_unroll, num_layers),
        )
        layers = scanned(
            self.architecture,
            self.regularization,
            self.kernels,
            deterministic,
            collect,
            name="layers",
        )
        return layers(x, kept, lengths)


def first_layers(params: dict, num_layers: int) -> dict:
    """`params` with the first `num_layers` layers only, for an architecture that has as many."""
    hubert = params["hubert"]
    layers = jax.tree.map(lambda leaf: leaf[:num_layers], hubert["transformer"]["layers"])
    transformer = {**hubert["transformer"], "layers": layers}
    return {**params, "hubert": {**hubert, "transformer": transformer}}
