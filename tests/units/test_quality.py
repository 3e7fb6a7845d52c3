"""Purities and PNMI against scikit-learn and brute force; alignments and frame times."""

import collections

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.units.quality import (
    JointCounts,
    phones_at_frames,
    read_alignments,
    score,
    units_at_frames,
)


def test_score_equals_scikit_learn_and_brute_force():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(0)
    phones = rng.integers(0, 7, 3_000)
    units = (phones * 2 + rng.integers(0, 6, 3_000)) % 19
    counts = np.zeros((8, 20), int)  # one phone and one unit never occur
    np.add.at(counts, (phones, units), 1)
    found = score(counts)
    entropy = mutual_info_score(phones, phones)
    assert found.pnmi == pytest.approx(mutual_info_score(phones, units) / entropy, abs=1e-12)
    pairs = list(zip(phones.tolist(), units.tolist(), strict=True))
    by_unit = {u: collections.Counter(p for p, v in pairs if v == u) for u in set(units.tolist())}
    by_phone = {p: collections.Counter(u for q, u in pairs if q == p) for p in range(7)}
    purity = sum(c.most_common(1)[0][1] for c in by_unit.values()) / 3_000
    cluster = sum(c.most_common(1)[0][1] for c in by_phone.values()) / 3_000
    assert found.phone_purity == pytest.approx(purity)
    assert found.cluster_purity == pytest.approx(cluster)
    assert found.used_units == len(by_unit)
    assert found.commonest_unit_share == pytest.approx(np.bincount(units).max() / 3_000)
    assert found.frames == 3_000


def test_bounds():
    assert score(np.diag([3, 5, 7])).pnmi == pytest.approx(1)
    assert score(np.outer([1, 2, 3], [4, 5])).pnmi == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("counts", [np.zeros((3, 4), int), np.array([[3, 4], [0, 0]])])
def test_what_has_no_pnmi_is_refused(counts):
    with pytest.raises(InputError, match="quality:"):
        score(counts)


def write(tmp_path, text):
    path = tmp_path / "phones.txt"
    path.write_text(text)
    return path


def test_phone_at_the_centre_of_a_frame(tmp_path):
    # Centres: 12.5, 32.5, 52.5 ms at 50 Hz; 12.5, 22.5, ... at 100 Hz.
    path = write(tmp_path, "u 0.000 0.0125 SIL\nu 0.0125 0.040 AH0\nu 0.040 0.080 K\n")
    alignment = read_alignments(path)["u"]
    assert phones_at_frames(alignment, 3, 50).tolist() == ["AH", "AH", "K"]
    assert phones_at_frames(alignment, 5, 100).tolist() == ["AH", "AH", "AH", "K", "K"]
    with pytest.raises(InputError, match="found an alignment of 0.080 s, expected at least 0.113"):
        phones_at_frames(alignment, 6, 50)


def test_ids_may_have_spaces(tmp_path):
    found = read_alignments(write(tmp_path, " é 1 2 0 0.1 A\né 1 2 0.1 0.2 B\n1 2\t0 0.1 A\n"))
    assert {name: a.phones.tolist() for name, a in found.items()} == {
        "é 1 2": ["A", "B"],
        "1 2": ["A"],
    }


@pytest.mark.parametrize("rate", [50, 100])
def test_an_alignment_that_starts_late_begins_with_its_first_phone(tmp_path, rate):
    # The first centre is at 12.5 ms.
    path = write(tmp_path, "u 0.015 0.040 AH0\nu 0.040 0.090 ZZ\n")
    assert phones_at_frames(read_alignments(path)["u"], 1, rate).tolist() == ["AH"]


def test_labels_of_the_other_rate():
    labels = np.array([5, 6, 7, 8, 9], np.uint16)
    assert units_at_frames(labels, 100, 3, 50).tolist() == [5, 7, 9]
    assert units_at_frames(labels, 50, 9, 100).tolist() == [5, 5, 6, 6, 7, 7, 8, 8, 9]
    with pytest.raises(InputError, match="found 5 labels at 50 Hz, expected at least 6"):
        units_at_frames(labels, 50, 11, 100)


def test_joint_counts_at_both_rates(tmp_path):
    path = write(tmp_path, "u 0 0.05 A\nu 0.05 0.1 B\nv 0 0.1 A\n")
    alignments = read_alignments(path)
    samples = 400 + 3 * 320 + 160  # 4 frames at 50 Hz, 8 at 100 Hz
    for rate, expected in ((50, [[2, 0, 0], [1, 0, 1]]), (100, [[4, 0, 0], [1, 1, 2]])):
        joint = JointCounts(alignments, 3, rate)
        joint.add("u", samples, np.array([0, 0, 0, 0, 0, 1, 2, 2], np.uint16), 100)
        assert joint.phones.tolist() == ["A", "B"]
        np.testing.assert_array_equal(joint.counts, np.array(expected))
    with pytest.raises(InputError, match="utterance w: no alignment"):
        joint.add("w", samples, np.zeros(8, np.uint16), 100)
    with pytest.raises(InputError, match="utterance v: found label 3, expected labels below 3"):
        joint.add("v", samples, np.full(8, 3, np.uint16), 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no alignments in it"),
        ("u 0 0.1\n", "line 1: found 'u 0 0.1', expected 'UTT-ID START END PHONE'"),
        ("u 0 0.1 A\nu 0.1 x B\n", "line 2"),
        ("u 0 0.1 A\nu 0.3 0.4 B\n", "line 2: .*expected a segment that starts at 0.1"),
        ("u 0 0.1 A\nu 0.1 0.1 B\n", "line 2"),
        ("u 0.5 0.6 A\n", "line 1: .*starts at 0.0 s"),
        ("u 0 nan A\n", "line 1"),
    ],
)
def test_unusable_alignments_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_alignments(write(tmp_path, text))


def test_missing_or_binary_alignments(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_alignments(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_alignments(tmp_path / "binary")


def test_real_alignments(alignments_path):
    alignments = read_alignments(alignments_path)
    assert len(alignments) == 46
    phones = set(np.concatenate([a.phones for a in alignments.values()]))
    assert len(phones) == 40 and "SIL" in phones
