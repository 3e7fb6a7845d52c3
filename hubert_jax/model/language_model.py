"""The Transformer language model: decoder only, with adaptive embeddings and softmax.

Words beyond the most frequent have narrower embeddings, and their probability is that of their band
times theirs within it (Baevski & Auli 2019). Embeddings are shared by input and output, the
projections that widen and narrow them are not, as in wav2letter's recipe.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from hubert_jax.model.architecture import NO_REGULARIZATION, LmArchitecture, Regularization
from hubert_jax.model.kernels.choice import Kernels
from hubert_jax.model.layers import Dropout, LayerNorm
from hubert_jax.model.transformer import Transformer

_MOST_LOGITS = 2**28  # at a time: a gigabyte


class LanguageModel(nn.Module):
    """Tokens to what tells the next one; the kernels' attention is to be causal."""

    architecture: LmArchitecture
    tokens: int  # how many there are, the most frequent first
    kernels: Kernels
    regularization: Regularization = NO_REGULARIZATION

    def setup(self) -> None:  # noqa: D102
        dim, bands = self.architecture.dim, self.architecture.bands(self.tokens)
        self.bands = bands
        normal = nn.initializers.normal
        self.embeddings = [
            self.param(f"embedding_{i}", normal(width**-0.5), (count, width))
            for i, (_, count, width) in enumerate(bands)
        ]
        widths, init = [width for _, _, width in bands], normal(dim**-0.5)
        # The first one, too, or a token would at first foretell itself.
        self.widen = [self.param(f"widen_{i}", init, (w, dim)) for i, w in enumerate(widths)]
        tails = list(enumerate(widths))[1:]
        self.narrow = [self.param(f"narrow_{i}", init, (dim, width)) for i, width in tails]
        self.of_bands = [self.param("band_embeddings", init, (len(tails), dim))] if tails else []
        self.transformer = Transformer(self.architecture, self.regularization, self.kernels)
        self.final_norm = LayerNorm(self.kernels)
        self.input_dropout = Dropout(self.regularization.input_dropout, self.kernels)

    def __call__(
        self, tokens: jax.Array, targets: jax.Array, deterministic: bool = True
    ) -> jax.Array:
        """Log probability of each target after the tokens up to its place: (B, T) float32, nats.

        Both are (B, T) int32.
        """
        x = self._embedded(tokens, jnp.arange(tokens.shape[1]))
        x = self.input_dropout(x, deterministic=deterministic)
        x, _ = self.transformer(x, None, deterministic)
        return self._log_probabilities(self.final_norm(x), targets)

    def step(self, tokens: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What `log_probability` takes, of one token a row (B,) at its place (B,) in the sentence.

        The variables `past` are as of `Transformer`, of the tokens before. Returns the bands'
        queries side by side (B, sum of widths) and the logarithms of their sums (B, bands).
        """
        x = self._embedded(tokens[:, None], places[:, None])
        x, _ = self.transformer(x, places + 1)
        queries = self._queries(self.final_norm(x)[:, 0])
        sums = [jax.nn.logsumexp(logits, axis=-1) for logits in self._logits(queries)]
        return jnp.concatenate(queries, axis=-1), jnp.stack(sums, axis=-1)

    def _embedded(self, tokens: jax.Array, places: jax.Array) -> jax.Array:
        """Tokens (B, T) with their places, in the compute dtype."""
        dim = self.architecture.dim
        x = jnp.zeros((*tokens.shape, dim), jnp.float32)
        for (first, count, _), table, widen in zip(
            self.bands, self.embeddings, self.widen, strict=True
        ):
            rows = jnp.take(table, jnp.clip(tokens - first, 0, count - 1), axis=0)
            inside = (first <= tokens) & (tokens < first + count)
            x = jnp.where(inside[..., None], rows @ widen, x)
        rates = jnp.exp(-jnp.log(10_000.0) * jnp.arange(dim // 2) / (dim // 2))
        angles = places[..., None] * rates
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        return (dim**0.5 * x + waves).astype(self.kernels.dtype)

    def _queries(self, hidden: jax.Array) -> list[jax.Array]:
        """What each band's embeddings are compared with, float32."""
        return [hidden, *(hidden @ narrow for narrow in self.narrow)]

    def _logits(self, queries: list[jax.Array]) -> list[jax.Array]:
        """Of the first band, whose last ones are the others', then within each of them; float32."""
        tables = [jnp.concatenate([self.embeddings[0], *self.of_bands]), *self.embeddings[1:]]
        dtype = self.kernels.dtype
        return [
            jnp.matmul(
                query.astype(dtype), table.astype(dtype).T, preferred_element_type=jnp.float32
            )
            for query, table in zip(queries, tables, strict=True)
        ]

    def _log_probabilities(self, hidden: jax.Array, targets: jax.Array) -> jax.Array:
        """(B, T) of (B, T, dim) and (B, T), some places after the other: all logits are many."""

        def of_places(part: tuple[jax.Array, jax.Array]) -> jax.Array:
            hidden, targets = part
            band = sum((targets >= first).astype(jnp.int32) for first, _, _ in self.bands[1:])
            found = jnp.zeros(targets.shape, jnp.float32)
            for i, logits in enumerate(self._logits(self._queries(hidden))):
                first, count, _ = self.bands[i]
                if i == 0:
                    place = jnp.where(targets < count, targets, count + band - 1)
                else:
                    place = jnp.clip(targets - first, 0, count - 1)
                log_p = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
                log_p = log_p - jax.nn.logsumexp(logits, axis=-1)
                found += log_p if i == 0 else jnp.where(band == i, log_p, 0)
            return found

        rows, places = targets.shape
        parts = next(
            n
            for n in range(1, places + 1)
            if places % n == 0 and (n == places or rows * places // n * self.tokens <= _MOST_LOGITS)
        )
        if parts == 1:
            return of_places((hidden, targets))
        cut = (array.reshape(rows, parts, -1, *array.shape[2:]) for array in (hidden, targets))
        each = jax.lax.map(jax.checkpoint(of_places), tuple(a.swapaxes(0, 1) for a in cut))
        return each.swapaxes(0, 1).reshape(rows, places)
