"""Span masks against an independent implementation written from the recipe's text."""

import functools

import jax
import numpy as np
import pytest

from hubert_jax.model.masking import span_mask


def reference_mask(random, rows, positions, probability, span, lengths=None, least_spans=2):
    """Spans drawn row by row, then all rows trimmed to the smallest count, in plain NumPy."""
    masked = []
    for length in lengths or [positions] * rows:
        count = int(probability * length / span + random.random())
        starts = random.choice(length - span, max(count, least_spans), replace=False)
        masked.append(np.unique(starts[:, None] + np.arange(span)))
    fewest = min(map(len, masked))
    result = np.zeros((rows, positions), bool)
    for row, indices in zip(result, masked, strict=True):
        row[random.choice(indices, fewest, replace=False)] = True
    return result


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def draw(key, rows, positions, probability, span, lengths=None):
    return span_mask(key, rows, positions, probability, span, lengths)


def shares(positions, probability, span, rows=1, lengths=None, draws=400):
    """Share of masked positions of many independent draws, ours and the reference's."""
    random = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), draws)
    padded = None if lengths is None else np.array(lengths)
    ours = jax.vmap(lambda key: draw(key, rows, positions, probability, span, padded))(keys)
    reference = [
        reference_mask(random, rows, positions, probability, span, lengths).mean()
        for _ in range(draws)
    ]
    return np.asarray(ours).mean(axis=(1, 2)), np.array(reference)


@pytest.mark.parametrize(
    ("positions", "probability", "span", "rows", "lengths"),
    [
        (781, 0.8, 10, 1, None),
        (781, 0.8, 10, 8, None),
        (128, 0.8, 10, 4, None),
        (300, 0.65, 10, 3, None),
        (300, 0.65, 10, 4, (300, 211, 57, 80)),
        (768, 0.5, 64, 2, None),
    ],
)
def test_share_and_its_spread_agree_with_the_reference(positions, probability, span, rows, lengths):
    ours, reference = shares(positions, probability, span, rows, lengths)
    error = np.sqrt((ours.var() + reference.var()) / len(ours))
    assert abs(ours.mean() - reference.mean()) < 4 * error
    assert 0.8 < ours.std() / reference.std() < 1.25


def test_about_57_percent_of_781_frames_are_masked():
    ours, _ = shares(781, 0.8, 10)
    assert ours.mean() == pytest.approx(0.57, abs=0.005)


def test_every_position_is_masked_as_often_as_in_the_reference():
    """The ends are masked less often: position 0 only by a span that starts there, and no span
    starts at the last `span` positions."""
    positions, draws = 60, 4000
    random = np.random.default_rng(1)
    keys = jax.random.split(jax.random.key(1), draws)
    ours = np.asarray(jax.vmap(lambda key: draw(key, 1, positions, 0.5, 10))(keys))[:, 0]
    reference = np.stack([reference_mask(random, 1, positions, 0.5, 10)[0] for _ in range(draws)])
    np.testing.assert_allclose(ours.mean(0), reference.mean(0), rtol=0, atol=0.045)
    assert not ours[:, -1].any() and not reference[:, -1].any()


def test_one_row_is_whole_spans():
    """A single row is never trimmed: its runs are unions of spans of the full length."""
    for seed in range(20):
        mask = np.asarray(draw(jax.random.key(seed), 1, 200, 0.4, 10))[0]
        edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
        assert (edges[1::2] - edges[::2] >= 10).all()


def test_rows_have_equal_counts_and_padding_is_never_masked():
    lengths = np.array([300, 120, 57, 299])
    for seed in range(10):
        mask = np.asarray(draw(jax.random.key(seed), 4, 300, 0.8, 10, lengths))
        assert len(set(mask.sum(axis=1))) == 1 and mask.any()
        assert not mask[np.arange(300) >= lengths[:, None]].any()


def test_a_row_too_short_for_a_span_is_left_alone_and_does_not_empty_the_others():
    mask = np.asarray(draw(jax.random.key(0), 3, 100, 0.8, 10, np.array([100, 10, 100])))
    assert mask.sum(axis=1)[1] == 0
    assert mask.sum(axis=1)[0] == mask.sum(axis=1)[2] >= 20


def test_at_least_two_spans():
    ours, _ = shares(400, 0.001, 10)
    assert ours.min() > 10 / 400 and ours.max() == 20 / 400


def test_mask_is_a_function_of_its_key():
    first, again = (np.asarray(draw(jax.random.key(3), 4, 200, 0.8, 10)) for _ in range(2))
    other = np.asarray(draw(jax.random.key(4), 4, 200, 0.8, 10))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
