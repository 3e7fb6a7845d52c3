"""ABX against every triple by itself; what items are."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.quality.abx import AbxConfig, Item, abx, read_items, triphones
from hubert_jax.units.alignments import Alignment

ALL = AbxConfig(max_items=0, max_speakers=0)


def path_mean(x, y, distance):
    """The cheapest path's mean distance, walked back from its end; diagonals first, then y's."""
    costs = np.full((len(x) + 1, len(y) + 1), np.inf)
    costs[0, 0] = 0
    for i, j in np.ndindex(len(x), len(y)):
        before = min(costs[i, j], costs[i, j + 1], costs[i + 1, j])
        costs[i + 1, j + 1] = distance(x[i], y[j]) + before
    i, j, steps = len(x), len(y), 0
    while (i, j) != (0, 0):
        straight, up, left = costs[i - 1, j - 1], costs[i - 1, j], costs[i, j - 1]
        steps += 1
        if straight <= left and straight <= up:
            i, j = i - 1, j - 1
        elif left <= up:
            j -= 1
        else:
            i -= 1
    return costs[-1, -1] / steps


def angle(x, y):
    if not x.any() or not y.any():
        return float(x.any() != y.any())
    cosine = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    return math.acos(min(1, max(-1, cosine))) / math.pi


def brute_force(items, frames, distance, across):
    """Every triple of every cell, averaged over contexts and X's speakers, speakers, phones."""
    known = {}

    def apart(x, y):
        if (x, y) not in known:
            known[x, y] = path_mean(frames[x], frames[y], distance)
        return known[x, y]

    cells = {}
    numbers = range(len(items))
    for a, b, x in itertools.product(numbers, repeat=3):
        one, other, third = items[a], items[b], items[x]
        if not (one.context == other.context == third.context and one.speaker == other.speaker):
            continue
        if one.phone == other.phone or one.phone != third.phone or a == x:
            continue
        if (third.speaker != one.speaker) != across:
            continue
        # Of one speaker, the distance of two of a phone is taken in their order.
        near = apart(x, a) if across else apart(min(x, a), max(x, a))
        far = apart(x, b)
        lost = 1.0 if near > far else 0.5 if near == far else 0.0
        key = one.speaker, one.phone, other.phone, one.context, third.speaker
        cells.setdefault(key, []).append(lost)
    for level in (3, 2, 1):  # keys lose their context, then the first, the speaker
        merged = {}
        for key, lost in cells.items():
            merged.setdefault(key[:3] if level == 3 else key[1:3], []).append(np.mean(lost))
        cells = merged
    return np.mean([np.mean(lost) for lost in cells.values()])


@pytest.fixture(scope="module")
def drawn():
    """40 items of 3 speakers, 3 phones, 2 contexts in 6 utterances; some of a frame or none."""
    rng = np.random.default_rng(0)
    items, at = [], dict.fromkeys("uvwxyz", 0.0)
    for _ in range(40):
        utterance = str(rng.choice(list(at)))
        onset = at[utterance]
        at[utterance] = onset + rng.uniform(0.01, 0.24)
        phone = "ptk"[rng.integers(3)]
        context = ("a", "ae"[rng.integers(2)])
        speaker = "ABC"["uvwxyz".index(utterance) // 2]
        items.append(Item(utterance, onset, at[utterance], phone, context, speaker))
    return items, {name: int(50 * end) for name, end in at.items()}


def pieces(items, utterances):
    """The items that have frames, in the order of the utterances, and their frames."""
    found = []
    for name, frames in utterances.items():
        for item in items:
            begin = max(0, math.ceil(50 * item.onset - 0.5))
            end = math.floor(50 * item.offset - 0.5)
            if item.utterance == name and len(frames[begin:end]):
                found.append((item, frames[begin:end]))
    return zip(*found, strict=True)


def test_features(drawn):
    items, lengths = drawn
    rng = np.random.default_rng(1)
    utterances = {n: rng.normal(size=(t, 3)).astype(np.float32) for n, t in lengths.items()}
    utterances["u"][2] = 0  # without a direction
    found = abx(items, utterances.items(), 50, ALL)
    kept, frames = pieces(items, utterances)
    assert 20 < len(kept) < len(items) and {1} < set(map(len, frames))
    for key, across in (("within", False), ("across", True)):
        expected = brute_force(kept, frames, angle, across)
        assert found[key] == pytest.approx(expected, abs=1e-6) and 0.2 < expected < 0.8


def test_units(drawn):
    """Few units, so that ties, of distances and of paths, are everywhere."""
    items, lengths = drawn
    rng = np.random.default_rng(2)
    utterances = {n: rng.integers(0, 3, t).astype(np.uint16) for n, t in lengths.items()}
    found = abx(items, utterances.items(), 50, ALL)
    kept, units = pieces(items, utterances)
    for key, across in (("within", False), ("across", True)):
        expected = brute_force(kept, units, lambda u, v: 0.5 * (u != v), across)
        assert found[key] == pytest.approx(expected, abs=1e-6) and 0.2 < expected < 0.8


def test_what_tells_phones_apart_has_no_errors_and_noise_is_at_chance():
    rng = np.random.default_rng(3)
    directions = {"p": [1, 0, 0], "t": [0, 1, 0]}
    items, right, noise = [], {}, {}
    for number in range(60):
        phone, speaker = "pt"[number % 2], "AB"[number // 30]
        items.append(Item(str(number), 0, 0.25, phone, ("a", "a"), speaker))
        around = np.array(directions[phone]) + 0.1 * rng.normal(size=(12, 3))
        right[str(number)], noise[str(number)] = around, rng.normal(size=(12, 3))
    assert abx(items, right.items(), 50, ALL) == {"within": 0.0, "across": 0.0}
    for error in abx(items, noise.items(), 50, ALL).values():
        assert error == pytest.approx(0.5, abs=0.08)
    # A sample of the items, the same for a seed, estimates what all give.
    few = dataclasses.replace(ALL, max_items=5)
    sampled = [abx(items, noise.items(), 50, few, seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    alone = [item for item in items if item.speaker == "A"]
    assert abx(alone, right.items(), 50, ALL) == {"within": 0.0, "across": None}
    assert abx([], right.items(), 50, ALL) == {"within": None, "across": None}


def test_speakers_of_x_are_drawn_by_the_seed():
    rng = np.random.default_rng(4)
    items = [
        Item(f"{s}{i}", 0, 0.25, "pt"[i % 2], ("a", "a"), str(s))
        for s in range(6)
        for i in range(4)
    ]
    frames = {item.utterance: rng.normal(size=(12, 3)) for item in items}
    found = [
        abx(items, frames.items(), 50, dataclasses.replace(ALL, max_speakers=most), seed)
        for most, seed in ((0, 0), (5, 0), (2, 0), (2, 0), (2, 1))
    ]
    assert found[0] == found[1] and found[2] == found[3]
    assert len({each["across"] for each in found}) == 3
    assert len({each["within"] for each in found}) == 1


def test_triphones_have_no_silence():
    phones = np.array("SIL K AE T SIL sp D AO G spn".split())
    edges = np.arange(11) / 10
    found = triphones({"u": Alignment(edges[:-1], edges[1:], phones)}, {"u": "Ann"})
    assert found == [
        Item("u", 0.1, 0.4, "AE", ("K", "T"), "Ann"),
        Item("u", 0.6, 0.9, "AO", ("D", "G"), "Ann"),
    ]


def test_items_of_zerospeech(tmp_path):
    path = tmp_path / "dev.item"
    path.write_text(
        "#file onset offset #phone prev-phone next-phone speaker\n"
        "6295-244435-0009 0.2925 0.4725 IH L NG 6295\n"
    )
    expected = Item("6295-244435-0009", 0.2925, 0.4725, "IH", ("L", "NG"), "6295")
    assert read_items(str(path)) == [expected]
    path.write_text("#file\n6295 0.2925 0.4725 IH L NG\n")
    with pytest.raises(InputError, match="dev.item, line 2: found '6295 .*, expected '#file onset"):
        read_items(str(path))
    with pytest.raises(InputError, match="none: items cannot be read"):
        read_items(str(tmp_path / "none"))
