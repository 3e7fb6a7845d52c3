"""A Transformer language model by its formulas, in float64, and one that nobody trained."""

import math

import jax
import numpy as np

from hubert_jax import config
from hubert_jax.language.tokens import END
from hubert_jax.model.architecture import Execution, LmArchitecture
from hubert_jax.model.kernels import choice
from hubert_jax.model.language_model import LanguageModel
from hubert_jax.training.checkpoint import Checkpoints

SMALL = LmArchitecture(dim=16, num_layers=2, ffn_dim=24, num_heads=4, cutoffs=(5, 9))


def model_of(architecture, tokens):
    kernels = choice.choose(Execution(), architecture, causal=True)
    return LanguageModel(architecture, tokens, kernels)


def random_parameters(model, seed=0):
    """Parameters of which all, norms and biases included, matter."""
    few = np.zeros((1, 2), np.int32)
    shapes = jax.eval_shape(lambda key: model.init(key, few, few)["params"], jax.random.key(0))
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda s: random.normal(0, 0.4, s.shape).astype(np.float32), shapes)


def _norm(x, p):
    deviation = x - x.mean(-1, keepdims=True)
    scaled = deviation / np.sqrt((deviation**2).mean(-1, keepdims=True) + 1e-5)
    return scaled * p["scale"] + p["bias"]


def _softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def distributions(params, sentence, architecture=SMALL, tokens=12):
    """(T, tokens), probabilities of what follows each token of one sentence."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    dim, heads = architecture.dim, architecture.num_heads
    edges = [0, *(c for c in architecture.cutoffs if c < tokens), tokens]
    rows = []
    for place, token in enumerate(sentence):
        band = max(b for b in range(len(edges) - 1) if edges[b] <= token)
        row = p[f"embedding_{band}"][token - edges[band]]
        row = row @ p[f"widen_{band}"]
        rates = 10_000.0 ** (-np.arange(dim // 2) / (dim // 2))
        waves = np.concatenate([np.sin(place * rates), np.cos(place * rates)])
        rows.append(math.sqrt(dim) * row + waves)
    x = np.array(rows)
    stacked = p["transformer"]["layers"]["layer"]
    for i in range(architecture.num_layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)

        def dense(x, name, layer=layer):
            return x @ layer[name]["kernel"] + layer[name]["bias"]

        normed = _norm(x, layer["attention_norm"])
        q, k, v = (dense(normed, n).reshape(len(x), heads, -1) for n in ("query", "key", "value"))
        mixed = np.zeros_like(q)
        for t in range(len(x)):
            for h in range(heads):
                weights = _softmax(k[: t + 1, h] @ q[t, h] / math.sqrt(dim // heads))
                mixed[t, h] = weights @ v[: t + 1, h]
        x = x + dense(mixed.reshape(x.shape), "output")
        inner = dense(_norm(x, layer["ffn_norm"]), "ffn_in")
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        x = x + dense(inner, "ffn_out")
    hidden = _norm(x, p["final_norm"])
    bands = len(edges) - 1
    table = p["embedding_0"]
    if bands > 1:
        table = np.concatenate([table, p["band_embeddings"]])
    first = _softmax(hidden @ table.T)
    found = [first[:, : edges[1]]]
    for band in range(1, bands):
        within = _softmax(hidden @ p[f"narrow_{band}"] @ p[f"embedding_{band}"].T)
        found.append(first[:, edges[1] + band - 1, None] * within)
    return np.concatenate(found, axis=1)


def write(directory, tokens, architecture=SMALL, seed=0, kind="language_model", scale=1.0):
    """A checkpoint of random parameters, as train_lm writes it; where it is, and log10 of it.

    The latter takes the words of a sentence. All parameters are multiplied by `scale`.
    """
    params = random_parameters(model_of(architecture, tokens.size), seed)
    params = jax.tree.map(lambda leaf: leaf * np.float32(scale), params)
    metadata = {
        "kind": kind,
        "architecture": config.to_dict(architecture),
        "tokens": tokens.to_dict(),
        "inputs": {"text": str(seed)},
    }
    checkpoints = Checkpoints(directory, keep=1, alone=True)
    checkpoints.save(0, {"params": params}, metadata)
    checkpoints.close()

    def log10(words):
        numbers = tokens.of_sentence(words)
        found = distributions(params, [END, *numbers[:-1]], architecture, tokens.size)
        return sum(math.log10(found[place, number]) for place, number in enumerate(numbers))

    return f"orbax:{directory}", log10
