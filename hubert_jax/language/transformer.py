"""A trained Transformer language model in use; log probabilities are to base 10, as an n-gram's."""

import bisect
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hubert_jax import config as config_lib
from hubert_jax import distributed
from hubert_jax.errors import InputError
from hubert_jax.language.tokens import END, UNKNOWN, Tokens
from hubert_jax.model.architecture import Execution, LmArchitecture
from hubert_jax.model.kernels import choice
from hubert_jax.model.language_model import LanguageModel
from hubert_jax.networks.sharding_rules import SHARDING_RULES
from hubert_jax.training import sharding
from hubert_jax.training.checkpoint import fingerprint, restore_parameters

_ROWS = (4, 16, 64)  # of a batch, so that few programs are compiled
_LEAST_LENGTH = 16  # padded tokens; further ones are twice as many
_POOL_BYTES = 2**28  # of keys and values at first
_ROOT = 1  # its slot; what is written for rows that are none goes to slot 0


class State:
    """Words of a sentence; what tells the next one is known once it is asked for."""

    __slots__ = ("children", "path", "queries", "slot", "sums", "token")

    def __init__(self, token: int, path: tuple[int, ...]) -> None:
        self.token, self.path = token, path  # slots of the tokens before
        self.slot = 0
        self.queries: Any = None
        self.sums: Any = None
        self.children: dict[int, State] = {}


class Scorer:
    """A trained language model, of words in their place and of whole sentences; on one device.

    Keys and values of a state's tokens stay there; states that wait for theirs are computed
    together.
    """

    def __init__(self, where: str, key: str = "config.lm", execution: Execution | None = None):
        """`where` is orbax:DIR, DIR@STEP, DIR@best or DIR@meanN, from the configuration's `key`.

        Raises InputError for a checkpoint that is missing, damaged or of another kind.
        """
        self.where, execution = where, execution or Execution()
        mesh = sharding.make_mesh(sharding.MeshConfig(), jax.local_devices()[:1])
        shardings = functools.partial(sharding.parameter_shardings, mesh, rules=SHARDING_RULES)
        try:
            params, metadata = restore_parameters(where.removeprefix("orbax:"), shardings)
        except InputError as error:
            raise InputError(f"{key}={where}: {error}") from None
        if metadata["kind"] != "language_model":
            raise InputError(
                f"{key}={where}: a checkpoint of kind {metadata['kind']!r}; expected one of "
                "train_lm, for example orbax:WORKDIR/train_lm/checkpoints"
            )
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if broken := [path for path, leaf in leaves if not jnp.isfinite(leaf).all()]:
            raise InputError(
                f"{key}={where}: NaN or infinite in {sharding.path_name(broken[0])}; training "
                "diverged: take an earlier step (orbax:DIR@STEP), or train with a lower "
                "learning rate"
            )
        architecture = config_lib.build(LmArchitecture, metadata["architecture"], where)
        self.tokens = Tokens.from_dict(metadata["tokens"])
        self.fingerprint = fingerprint(metadata)
        self._params = params
        kernels = choice.choose(
            execution, architecture, activations=sharding.attention_sharding(mesh), causal=True
        )
        model = LanguageModel(architecture, self.tokens.size, kernels)
        here = distributed.compiled_here()
        self._whole = jax.jit(lambda p, tokens, to: model.apply({"params": p}, tokens, to), **here)
        plain = choice.choose(dataclasses.replace(execution, attention="xla"), architecture)
        step = LanguageModel(architecture, self.tokens.size, plain)
        self._step = jax.jit(functools.partial(_step, step), donate_argnums=1, **here)
        self._first, _, widths = zip(*architecture.bands(self.tokens.size), strict=True)
        self._starts = (0, *itertools.accumulate(widths))  # of the bands' queries
        tables = [np.asarray(params[f"embedding_{i}"]) for i in range(len(widths))]
        if len(tables) > 1:
            tables[0] = np.concatenate([tables[0], np.asarray(params["band_embeddings"])])
        self._tables = tables
        one = (architecture.num_layers, 1, architecture.num_heads, architecture.head_dim)
        slots = max(2 * _ROWS[-1], _POOL_BYTES // (2 * math.prod(one) * kernels.dtype.itemsize))
        self._new_pool = functools.partial(jnp.zeros, (one[0], slots, *one[2:]), kernels.dtype)
        self._pool: dict[str, jax.Array] = {}  # none where whole sentences are scored alone
        self.computed = 0  # states
        self._free, self._waiting = _ROOT, dict[State, None]()
        self._root = State(END, ())

    def __contains__(self, word: str) -> bool:
        return UNKNOWN not in self.tokens.of_word(word)

    def start(self) -> State:
        """The state in which a sentence begins; those of before are no longer kept."""
        if self._root.queries is None:
            self._pool = {name: self._new_pool() for name in ("keys", "values")}
            self._compute(self._root)
        self._root.children.clear()
        self._waiting.clear()
        self._free = _ROOT + 1
        return self._root

    def score(self, state: State, word: str) -> tuple[State, float]:
        """The state after a word, and its log10 probability."""
        total = 0.0
        for token in self.tokens.of_word(word):
            total += self._log10(state, token)
            if token not in state.children:
                child = State(token, (*state.path, state.slot))
                state.children[token] = child
                self._waiting[child] = None
            state = state.children[token]
        return state, total

    def finish(self, state: State) -> float:
        """log10 probability that the sentence ends."""
        return self._log10(state, END)

    def sentence(self, words: Iterable[str]) -> float:
        """log10 probability of a sentence, its end included."""
        state, total = self._root if self._free > _ROOT else self.start(), 0.0
        for word in words:
            state, log10 = self.score(state, word)
            total += log10
        return total + self.finish(state)

    def first_tokens(self, words: Iterable[str]) -> list[float]:
        """log10 probability that a sentence begins with the first token of each word."""
        root = self.start()
        return [self._log10(root, self.tokens.of_word(word)[0]) for word in words]

    def sentences(self, many: Sequence[Iterable[str]]) -> np.ndarray:
        """log10 probabilities (n,) of sentences, their ends included, without any state."""
        targets = list(map(self.tokens.of_sentence, many))
        found = np.empty(len(targets))
        for first in range(0, len(targets), _ROWS[-1]):
            part = targets[first : first + _ROWS[-1]]
            shape = (_padded(len(part), _ROWS), _length(max(map(len, part))))
            tokens = np.full((shape[0], shape[1] + 1), END, np.int32)
            for row, numbers in enumerate(part):
                tokens[row, 1 : 1 + len(numbers)] = numbers
            log_p = np.asarray(self._whole(self._params, tokens[:, :-1], tokens[:, 1:]), float)
            for row, numbers in enumerate(part):
                found[first + row] = log_p[row, : len(numbers)].sum() / math.log(10)
        return found

    def _log10(self, state: State, token: int) -> float:
        if state.queries is None:
            self._compute(state)
        band = bisect.bisect_right(self._first, token) - 1
        log_p = self._of_band(state, band, token - self._first[band])
        if band:
            log_p += self._of_band(state, 0, self._first[1] + band - 1)
        return log_p / math.log(10)

    def _of_band(self, state: State, band: int, row: int) -> float:
        """Log probability of one of a band's own, in nats."""
        query = state.queries[self._starts[band] : self._starts[band + 1]]
        return float(self._tables[band][row] @ query - state.sums[band])

    def _compute(self, state: State) -> None:
        """Of a state that waits, and of those that began to wait at about the same time."""
        waiting = list(self._waiting) or [state]
        at = waiting.index(state)
        states = waiting[max(0, min(at, len(waiting) - _ROWS[-1])) :][: _ROWS[-1]]
        slots = self._pool["keys"].shape[1]
        if self._free + len(states) > slots:
            wider = [(0, 0), (0, slots), (0, 0), (0, 0)]
            self._pool = {name: jnp.pad(array, wider) for name, array in self._pool.items()}
        rows = _padded(len(states), _ROWS)
        tokens, places, own = np.zeros((3, rows), np.int32)
        paths = np.zeros((rows, _length(max(len(each.path) for each in states))), np.int32)
        for row, each in enumerate(states):
            each.slot = own[row] = self._free + row
            tokens[row], places[row] = each.token, len(each.path)
            paths[row, : len(each.path)] = each.path
            self._waiting.pop(each, None)
        self._free += len(states)
        self.computed += len(states)
        inputs = (tokens, places, paths, own)
        self._pool, queries, sums = self._step(self._params, self._pool, *inputs)
        queries, sums = np.asarray(queries), np.asarray(sums)
        for row, each in enumerate(states):
            each.queries, each.sums = queries[row], sums[row]


def _step(
    model: LanguageModel,
    params: dict,
    pool: dict[str, jax.Array],
    tokens: jax.Array,
    places: jax.Array,
    paths: jax.Array,
    slots: jax.Array,
) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """The pool with the keys and values of tokens (B,) in their slots (B,), and what tells more.

    `paths` (B, S) are the slots of the tokens before, of which each row has as many as its place.
    """
    past = {name: array[:, paths] for name, array in pool.items()}
    variables = {"params": params, "past": {"transformer": {"layers": {"layer": past}}}}
    (queries, sums), present = model.apply(
        variables, tokens, places, method="step", mutable=["present"]
    )
    new = present["present"]["transformer"]["layers"]["layer"]
    pool = {name: pool[name].at[:, slots].set(new[name][0][:, :, 0]) for name in pool}
    return pool, queries, sums


def _padded(count: int, sizes: Sequence[int]) -> int:
    return next(size for size in sizes if size >= count)


def _length(count: int) -> int:
    length = _LEAST_LENGTH
    while length < count:
        length *= 2
    return length
