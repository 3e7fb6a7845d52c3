"""Figures of units against scikit-learn and brute force, and their intervals."""

import collections
import itertools
import time

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from hubert_jax.errors import InputError
from hubert_jax.quality.counts import (
    JointCounts,
    PairedBootstrap,
    interval,
    score,
    units_at_frames,
)
from hubert_jax.units.alignments import Alignment


def aligned(phones):
    """An alignment of one phone a frame of 50 Hz, and the utterance's samples."""
    edges = 0.0025 + 0.02 * np.arange(len(phones) + 1)
    return Alignment(edges[:-1], edges[1:], np.array(phones)), 320 * len(phones) + 80


def joint_of(utterances, num_units=20, rate=50):
    """Joint counts of [(phones, units)], of 50 Hz each, as utterances 0, 1, ..."""
    of = {str(i): aligned(phones) for i, (phones, _) in enumerate(utterances)}
    joint = JointCounts({name: alignment for name, (alignment, _) in of.items()}, num_units, rate)
    for i in reversed(range(len(utterances))):  # any order
        joint.add(str(i), of[str(i)][1], np.array(utterances[i][1], np.uint16), 50)
    return joint


def drawn(seed, utterances=1, frames=3_000, spread=6):
    """Utterances of phones a ... g, and of units that tell something of them."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(utterances):
        phones = rng.integers(0, 7, frames).repeat(2)[:frames]
        units = (phones * 2 + rng.integers(0, spread, frames)) % 19
        found.append((np.array(list("abcdefg"))[phones], units))
    return found


def test_score_equals_scikit_learn_and_brute_force():
    joint = joint_of(drawn(0, 2, 1_500))
    phones, units = (np.concatenate(part) for part in zip(*drawn(0, 2, 1_500), strict=True))
    found = score(joint)
    entropy = mutual_info_score(phones, phones)
    assert found.pnmi == pytest.approx(mutual_info_score(phones, units) / entropy, abs=1e-12)
    pairs = list(zip(phones.tolist(), units.tolist(), strict=True))
    by_unit = {u: collections.Counter(p for p, v in pairs if v == u) for u in set(units.tolist())}
    by_phone = {p: collections.Counter(u for q, u in pairs if q == p) for p in "abcdefg"}
    purity = sum(c.most_common(1)[0][1] for c in by_unit.values()) / 3_000
    cluster = sum(c.most_common(1)[0][1] for c in by_phone.values()) / 3_000
    assert found.phone_purity == pytest.approx(purity, abs=1e-12)
    assert found.cluster_purity == pytest.approx(cluster, abs=1e-12)
    assert found.used_units == len(by_unit)
    assert found.commonest_unit_share == pytest.approx(np.bincount(units).max() / 3_000)
    assert found.frames == 3_000
    bits = mutual_info_score(units, units) / np.log(2)
    assert found.entropy == pytest.approx(bits, abs=1e-12)
    assert found.perplexity == pytest.approx(2**bits)
    runs = [u for _, of in drawn(0, 2, 1_500) for u, _ in itertools.groupby(of.tolist())]
    assert found.mean_run == pytest.approx(3_000 / len(runs))
    per_run = mutual_info_score(runs, runs) / np.log(2)
    assert found.bitrate == pytest.approx(len(runs) * per_run / 60)


def test_a_stream_of_two_units_in_turn_has_a_bit_for_each_run():
    found = score(joint_of([(list("ab" * 50), [3, 3, 3, 3, 7] * 20)]))
    assert (found.mean_run, found.bitrate) == pytest.approx((100 / 40, 20.0))  # 40 runs in 2 s
    assert found.entropy == pytest.approx(-0.8 * np.log2(0.8) - 0.2 * np.log2(0.2))
    doubled = score(joint_of([(list("ab" * 50), [3, 3, 3, 3, 7] * 20)], rate=100))
    assert doubled.mean_run == pytest.approx(5, rel=0.01)  # the last frame is not there twice


def test_bounds():
    phones = list("aabbbccc")
    assert score(joint_of([(phones, [1, 1, 2, 2, 2, 9, 9, 9])])).pnmi == pytest.approx(1)
    nothing = score(joint_of([(list("ab" * 6), [0, 0, 1, 1, 4, 4] * 2)]))
    assert nothing.pnmi == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("utterance", [([], []), (["a"] * 3, [0, 1, 2])])
def test_what_has_no_pnmi_is_refused(utterance):
    joint = joint_of([utterance] if utterance[1] else [(["a"], [0])])
    if not utterance[1]:
        joint = JointCounts({"0": aligned(["a"])[0]}, 3, 50)
    with pytest.raises(InputError, match="quality:"):
        score(joint)


def test_labels_of_the_other_rate():
    labels = np.array([5, 6, 7, 8, 9], np.uint16)
    assert units_at_frames(labels, 100, 3, 50).tolist() == [5, 7, 9]
    assert units_at_frames(labels, 50, 9, 100).tolist() == [5, 5, 6, 6, 7, 7, 8, 8, 9]
    with pytest.raises(InputError, match="found 5 labels at 50 Hz, expected at least 6"):
        units_at_frames(labels, 50, 11, 100)


def test_joint_counts_at_both_rates():
    edges = np.array([0.0, 0.05, 0.1])
    alignments = {
        "v": Alignment(edges[:1], edges[2:], np.array(["A"])),
        "u": Alignment(edges[:-1], edges[1:], np.array(["A", "B"])),
    }
    samples = 400 + 3 * 320 + 160  # 4 frames at 50 Hz, 8 at 100 Hz
    labels = np.array([0, 0, 0, 0, 0, 1, 2, 2], np.uint16)
    for rate, expected, runs in (
        (50, [[2, 0, 0], [1, 0, 1]], [1, 0, 1]),
        (100, [[4, 0, 0], [1, 1, 2]], [1, 1, 1]),
    ):
        joint = JointCounts(alignments, 3, rate)
        joint.add("u", samples, labels, 100)
        assert joint.phones.tolist() == ["A", "B"] and joint.runs.tolist() == runs
        np.testing.assert_array_equal(joint.counts, np.array(expected))
        by_utterance = joint.by_utterance().toarray().reshape(2, 2, 3)
        np.testing.assert_array_equal(by_utterance, [np.zeros((2, 3)), expected])
    with pytest.raises(InputError, match="utterance v: found label 3, expected labels below 3"):
        joint.add("v", samples, np.full(8, 3, np.uint16), 100)


@pytest.fixture(scope="module")
def sets():
    """Two sets of units of the same 40 utterances: the first tells more of phones."""
    return [joint_of(drawn(1, 40, 200, spread)) for spread in (4, 6)]


def test_draws_are_those_of_a_plain_bootstrap(sets):
    """Of speakers, too: whose utterances come and go together."""
    for groups in (np.arange(40), np.arange(40) % 5):
        found = PairedBootstrap(groups, 7, seed=3).pnmi(sets[0])
        rng = np.random.default_rng(3)
        size = groups.max() + 1
        utterances = drawn(1, 40, 200, 4)
        for value in found:
            times = rng.multinomial(size, np.full(size, 1 / size))
            chosen = [u for i, u in enumerate(utterances) for _ in range(times[groups[i]])]
            phones, units = (np.concatenate(part) for part in zip(*chosen, strict=True))
            pnmi = mutual_info_score(phones, units) / mutual_info_score(phones, phones)
            assert value == pytest.approx(pnmi, abs=1e-12)


def test_intervals_of_differences(sets):
    bootstrap = PairedBootstrap(np.arange(40), 1_000, seed=0)
    draws = [bootstrap.pnmi(joint) for joint in sets]
    pnmi = [score(joint).pnmi for joint in sets]
    # Why not of one set: its draws are biased.
    assert all(of.mean() > own for of, own in zip(draws, pnmi, strict=True))
    low, high = interval(pnmi[0] - pnmi[1], draws[0] - draws[1])
    assert 0 < low < pnmi[0] - pnmi[1] < high
    # The spread is that of other samples of the kind.
    others = [
        score(joint_of(drawn(seed, 40, 200, 4))).pnmi
        - score(joint_of(drawn(seed, 40, 200, 6))).pnmi
        for seed in range(100, 160)
    ]
    assert (high - low) / 3.92 == pytest.approx(np.std(others), rel=0.3)
    again = PairedBootstrap(np.arange(40), 1_000, seed=0)
    np.testing.assert_array_equal(again.pnmi(sets[0]), draws[0])
    assert (PairedBootstrap(np.arange(40), 1_000, seed=1).pnmi(sets[0]) != draws[0]).any()


def test_a_thousand_draws_take_seconds():
    """As of an hour and 500 units."""
    joint = joint_of(drawn(2, 300, 600), 500)
    started = time.monotonic()
    PairedBootstrap(np.arange(300), 1_000, seed=0).pnmi(joint)
    assert time.monotonic() - started < 5
