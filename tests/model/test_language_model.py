"""The language model against its formulas in NumPy, in float64."""

import dataclasses

import jax
import numpy as np
import pytest
from lm_oracle import SMALL, distributions, model_of, random_parameters

from hubert_jax.errors import InputError
from hubert_jax.model import language_model

TOKENS = 12


@pytest.mark.parametrize("cutoffs", [(), (5, 9), (5, 500)])
def test_equals_its_formulas(cutoffs):
    architecture = dataclasses.replace(SMALL, cutoffs=cutoffs)
    model = model_of(architecture, TOKENS)
    params = random_parameters(model)
    rows = np.random.default_rng(1).integers(TOKENS, size=(3, 8))
    found = jax.jit(lambda *x: model.apply({"params": params}, *x))(rows[:, :-1], rows[:, 1:])
    for row, log_p in zip(rows, np.asarray(found), strict=True):
        expected = distributions(params, row[:-1], architecture)
        np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_allclose(log_p, np.log(expected[range(7), row[1:]]), atol=1e-5)


def test_no_token_is_foretold_by_later_ones():
    model = model_of(SMALL, TOKENS)
    params = random_parameters(model)
    rows = np.random.default_rng(2).integers(TOKENS, size=(1, 9))
    of = jax.jit(lambda x: model.apply({"params": params}, x[:, :-1], x[:, 1:]))
    before = np.asarray(of(rows))[0]
    for place in range(1, 9):
        changed = rows.copy()
        changed[0, place] = (rows[0, place] + 5) % TOKENS
        after = np.asarray(of(changed))[0]
        # The target before this place is another; nothing else before it has changed.
        np.testing.assert_array_equal(before[: place - 1], after[: place - 1])
        assert (before[place - 1 :] != after[place - 1 :]).all()


def test_logits_in_parts_are_the_same(monkeypatch):
    model = model_of(SMALL, TOKENS)
    params = random_parameters(model)
    rows = np.random.default_rng(3).integers(TOKENS, size=(2, 13))

    def loss(params):
        return model.apply({"params": params}, rows[:, :-1], rows[:, 1:]).sum()

    whole = jax.value_and_grad(loss)(params)
    monkeypatch.setattr(language_model, "_MOST_LOGITS", 2 * 3 * TOKENS)
    parts = jax.value_and_grad(loss)(params)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(dim=15, num_heads=3), "config.architecture.num_heads=3: must divide"),
        (dict(cutoffs=(9, 5)), r"config.architecture.cutoffs=\(9, 5\): expected numbers"),
        (dict(dim=8, num_heads=2, cutoffs=(2, 3)), "cutoffs=.*: the last band of dim=8 has no"),
        (dict(num_layers=0), "config.architecture.num_layers=0: expected 1 to 1,024"),
    ],
)
def test_bad_shapes_are_named(values, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **values)
