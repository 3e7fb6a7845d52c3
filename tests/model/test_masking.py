"""Span masks against the released procedure, written anew in NumPy."""

import functools

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hubert_jax.errors import InputError
from hubert_jax.model.masking import span_mask

# Upper ends of the length classes of maximal masked runs; below 10 frames, spans are broken.
RUN_CLASSES = (1, 3, 6, 9, 10, 14, 19, 29, 768)


def released_mask(random, lengths, positions, probability, span, least_spans=2):
    """`compute_mask_indices` with spans of one length that may overlap, for one device's batch."""
    masked = []
    for length in lengths:
        count = max(least_spans, int(probability * length / span + random.random()))
        room = length - span
        if room <= count:
            room = count + 1
        starts = random.choice(room, count, replace=False)
        covered = {start + offset for start in starts for offset in range(span)}
        masked.append(np.array(sorted(frame for frame in covered if frame < length), int))
    fewest = min(map(len, masked))
    mask = np.zeros((len(lengths), positions), bool)
    for row, frames in zip(mask, masked, strict=True):
        row[random.choice(frames, fewest, replace=False)] = True
    return mask


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def draw(key, rows, positions, probability, span, group_rows, lengths=None):
    return span_mask(key, rows, positions, probability, span, group_rows, lengths)


def fractions(positions, probability, span, rows=1, lengths=None, draws=400):
    """Masked fraction of many independent groups of `rows` rows, ours and the released one."""
    random = np.random.default_rng(0)
    keys = jax.random.split(jax.random.key(0), draws)
    padded = None if lengths is None else np.array(lengths)
    ours = jax.vmap(lambda key: draw(key, rows, positions, probability, span, rows, padded))(keys)
    released = [
        released_mask(random, lengths or [positions] * rows, positions, probability, span).mean()
        for _ in range(draws)
    ]
    return np.asarray(ours).mean(axis=(1, 2)), np.array(released)


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
def test_fraction_and_its_spread_are_the_released_ones(positions, probability, span, rows, lengths):
    ours, released = fractions(positions, probability, span, rows, lengths)
    error = np.sqrt((ours.var() + released.var()) / len(ours))
    assert abs(ours.mean() - released.mean()) < 4 * error
    assert 0.8 < ours.std() / released.std() < 1.25


def statistics(groups):
    """Of each group (rows, T): its masked fraction, then its runs a row in each length class."""
    found = []
    for mask in groups:
        edges = np.diff(np.pad(mask.astype(int), ((0, 0), (1, 1))), axis=1)
        lengths = np.nonzero(edges == -1)[1] - np.nonzero(edges == 1)[1]
        classes = np.bincount(np.searchsorted(RUN_CLASSES, lengths), minlength=len(RUN_CLASSES))
        found.append([mask.mean(), *(classes / len(mask))])
    return np.array(found)


@functools.cache
def released_statistics(group_rows, frames):
    random = np.random.default_rng(6)
    groups = 200 * 15 // group_rows
    return statistics(
        released_mask(random, [frames] * group_rows, frames, 0.8, 10) for _ in range(groups)
    )


@pytest.mark.parametrize("rows", [15, 60])
@pytest.mark.parametrize("group_rows", [5, 3, 1])
def test_masked_fraction_and_runs_are_those_of_released_device_batches(group_rows, rows):
    draws, frames = 200 * 15 // rows, 768
    keys = jax.random.split(jax.random.key(5), draws)
    ours = np.concatenate(
        [np.asarray(draw(key, rows, frames, 0.8, 10, group_rows)) for key in keys]
    )
    ours = statistics(ours.reshape(-1, group_rows, frames))
    released = released_statistics(group_rows, frames)
    error = np.sqrt(ours.var(axis=0) / len(ours) + released.var(axis=0) / len(released))
    broken = [s[:, 1:5].sum() / s[:, 1:].sum() for s in (ours, released)]
    print(
        f"\n{rows} rows of {frames} frames, {group_rows} trimmed together: masked "
        f"{ours[:, 0].mean():.4f}, released {released[:, 0].mean():.4f} (+- {error[0]:.4f}); "
        f"runs shorter than 10 frames {broken[0]:.3f}, released {broken[1]:.3f}"
    )
    for below, upper, mine, theirs, deviation in zip(
        (0, 0, *RUN_CLASSES), (0, *RUN_CLASSES), ours.mean(0), released.mean(0), error, strict=False
    ):
        what = f"runs of {below + 1} to {upper}" if upper else "masked fraction"
        print(f"  {what}: {mine:.4f}, released {theirs:.4f} (+- {deviation:.4f})")
        assert abs(mine - theirs) <= 4 * deviation, what


def test_a_rows_mask_depends_on_its_group_alone():
    for group_rows in (5, 3, 1):
        few, many = (
            np.asarray(draw(jax.random.key(8), rows, 200, 0.8, 10, group_rows)) for rows in (15, 60)
        )
        np.testing.assert_array_equal(many[:15], few)
        assert len(np.unique(many, axis=0)) == 60


@pytest.mark.parametrize("group_rows", [5, 3, 1])
def test_eight_devices_draw_the_masks_of_one(group_rows):
    rows = 8 * group_rows
    shards = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec("data"))

    def mask(key):
        return span_mask(key, rows, 768, 0.8, 10, group_rows)

    alone = jax.jit(mask)(jax.random.key(9))
    together = jax.jit(mask, out_shardings=shards)(jax.random.key(9))
    assert len(together.sharding.device_set) == 8 and len(alone.sharding.device_set) == 1
    np.testing.assert_array_equal(together, alone)


def test_rows_are_a_multiple_of_the_group():
    with pytest.raises(InputError, match="of 8 rows in groups of 5: expected a multiple"):
        draw(jax.random.key(0), 8, 100, 0.8, 10, 5)


def test_about_57_percent_of_781_frames_are_masked():
    ours, _ = fractions(781, 0.8, 10)
    assert ours.mean() == pytest.approx(0.57, abs=0.005)


def test_every_position_is_masked_as_often_as_in_the_released_procedure():
    """The ends are masked less often: position 0 only by a span that starts there, and no span
    starts at the last `span` positions."""
    positions, draws = 60, 4000
    random = np.random.default_rng(1)
    keys = jax.random.split(jax.random.key(1), draws)
    ours = np.asarray(jax.vmap(lambda key: draw(key, 1, positions, 0.5, 10, 1))(keys))[:, 0]
    released = np.stack(
        [released_mask(random, [positions], positions, 0.5, 10)[0] for _ in range(draws)]
    )
    np.testing.assert_allclose(ours.mean(0), released.mean(0), rtol=0, atol=0.045)
    assert not ours[:, -1].any() and not released[:, -1].any()


def test_untrimmed_rows_are_whole_spans():
    """In groups of one row, runs are unions of spans of the full length."""
    for seed in range(20):
        for row in np.asarray(draw(jax.random.key(seed), 3, 200, 0.4, 10, 1)):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
            assert (edges[1::2] - edges[::2] >= 10).all()


def test_rows_of_a_group_have_equal_counts_and_padding_is_never_masked():
    lengths = np.array([300, 120, 57, 299])
    for seed in range(10):
        mask = np.asarray(draw(jax.random.key(seed), 4, 300, 0.8, 10, 2, lengths))
        counts = mask.sum(axis=1)
        assert counts[0] == counts[1] > counts[2] == counts[3] > 0
        assert not mask[np.arange(300) >= lengths[:, None]].any()


def test_a_row_too_short_for_a_span_is_left_alone_and_does_not_empty_the_others():
    mask = np.asarray(draw(jax.random.key(0), 3, 100, 0.8, 10, 3, np.array([100, 10, 100])))
    assert mask.sum(axis=1)[1] == 0
    assert mask.sum(axis=1)[0] == mask.sum(axis=1)[2] >= 20


def test_at_least_two_spans():
    ours, _ = fractions(400, 0.001, 10)
    assert ours.min() > 10 / 400 and ours.max() == 20 / 400


def test_mask_is_a_function_of_its_key():
    first, again = (np.asarray(draw(jax.random.key(3), 4, 200, 0.8, 10, 2)) for _ in range(2))
    other = np.asarray(draw(jax.random.key(4), 4, 200, 0.8, 10, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
