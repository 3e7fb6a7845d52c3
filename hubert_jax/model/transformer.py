"""Transformer layers, pre- or post-LN, scanned over their stacked parameters."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model import attention as attention_lib
from hubert_jax.model.architecture import HubertConfig
from hubert_jax.model.dense import dot_general
from hubert_jax.model.dropout import Dropout
from hubert_jax.model.frontend import gelu
from hubert_jax.model.norm import LayerNorm
from hubert_jax.model.platform import target_platform

linear_init = nn.initializers.normal(0.02)


def attention_backend(config: HubertConfig, deterministic: bool) -> attention_lib.Choice:
    """The attention back-end that the network will be compiled with, and why."""
    if config.attention != "auto":
        return attention_lib.Choice(config.attention, "config.model.attention")
    rate = 0.0 if deterministic else config.attention_dropout
    head_dim = config.dim // config.num_heads
    return attention_lib.choose(target_platform(), config.dtype, rate, head_dim)


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each with its residual and LayerNorm."""

    config: HubertConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        """x: (B, T, dim) in the compute dtype; lengths: (B,) frames or None; returns as x."""
        config, dtype = self.config, self.config.compute_dtype
        attention_norm, ffn_norm = LayerNorm(name="attention_norm"), LayerNorm(name="ffn_norm")
        if config.pre_norm:
            x = x + self._attend(attention_norm(x).astype(dtype), lengths)
            return x + self._feed_forward(ffn_norm(x).astype(dtype))
        x = attention_norm(x + self._attend(x, lengths)).astype(dtype)
        return ffn_norm(x + self._feed_forward(x)).astype(dtype)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return nn.Dense(
            features,
            kernel_init=linear_init,
            dtype=self.config.compute_dtype,
            dot_general=dot_general,
            name=name,
        )

    def _drop(self, x: jax.Array, rate: float) -> jax.Array:
        return Dropout(rate)(x, self.deterministic)

    def _attend(self, x: jax.Array, lengths: jax.Array | None) -> jax.Array:
        config = self.config
        heads = (*x.shape[:2], config.num_heads, config.dim // config.num_heads)
        query, key, value = (
            self._dense(config.dim, name)(x).reshape(heads) for name in ("query", "key", "value")
        )
        rate = 0.0 if self.deterministic else config.attention_dropout
        dropout_key = self.make_rng("dropout") if rate else None
        backend = attention_backend(config, self.deterministic).backend
        y = attention_lib.attention(query, key, value, lengths, rate, dropout_key, backend)
        return self._drop(self._dense(config.dim, "output")(y.reshape(x.shape)), config.dropout)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        config = self.config
        y = gelu(self._dense(config.ffn_dim, "ffn_in")(x))
        y = self._drop(y, config.activation_dropout)
        return self._drop(self._dense(config.dim, "ffn_out")(y), config.dropout)


class _ScannedLayer(nn.Module):
    """One step of the scan: the layer, or with LayerDrop nothing at all, and its hidden state."""

    config: HubertConfig
    deterministic: bool
    collect: bool

    @nn.compact
    def __call__(self, x, kept, lengths):
        layer = TransformerLayer(self.config, self.deterministic, name="layer")
        if self.deterministic or self.config.layer_drop == 0 or self.is_initializing():
            x = layer(x, lengths)
        else:
            # A conditional, not a multiplication by zero: a dropped layer costs nothing.
            x = nn.cond(kept, lambda layer, x: layer(x, lengths), lambda layer, x: x, layer, x)
        return x, (x if self.collect else None)


class Transformer(nn.Module):
    """The stack of layers; parameters are stacked along a leading axis of `num_layers`."""

    config: HubertConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        lengths: jax.Array | None = None,
        deterministic: bool = True,
        collect: bool = False,
    ) -> tuple[jax.Array, jax.Array | None]:
        """Runs all layers.

        Args:
          x: (B, T, dim), input of block 1, in the compute dtype.
          lengths: (B,) int32, frames of each row that are not padding; None: all.
          deterministic: no dropout and no LayerDrop.
          collect: return every layer's output too.

        Returns:
          The last layer's output (B, T, dim), and with `collect` the outputs of layers
          1 ... num_layers (num_layers, B, T, dim), else None. No final LayerNorm is applied.
        """
        config = self.config
        if deterministic or config.layer_drop == 0:
            kept = jnp.ones((config.num_layers,), bool)
        else:
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1.0 - config.layer_drop, (config.num_layers,)
            )
        layer = _ScannedLayer
        if config.rematerialize:
            layer = nn.remat(layer, prevent_cse=False)
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast),
            length=config.num_layers,
            unroll=min(config.scan_unroll, config.num_layers),
        )
        return scanned(config, deterministic, collect, name="layers")(x, kept, lengths)


def first_layers(params: dict, num_layers: int) -> dict:
    """The parameters of the first `num_layers` layers (leading axis cut), everything else kept.

    With `dataclasses.replace(config, num_layers=l)` this stops the network at layer l, without
    any work above it.
    """
    cut = functools.partial(jax.tree.map, lambda leaf: leaf[:num_layers])
    hubert = params["hubert"]
    transformer = {**hubert["transformer"], "layers": cut(hubert["transformer"]["layers"])}
    return {**params, "hubert": {**hubert, "transformer": transformer}}
