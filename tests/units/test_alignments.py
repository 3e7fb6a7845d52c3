"""Phone alignments of every format: what they say, and what is refused."""

import numpy as np
import pytest

from hubert_jax.errors import InputError
from hubert_jax.units.alignments import Alignment, digest, fitted, phones_at_frames, read_alignments

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 0.5
tiers? <exists>
size = 3
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 0.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = "he said ""3"", x = 7"
    item [2]:
        class = "TextTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        points: size = 1
        points [1]:
            number = 0.25
            mark = "click"
    item [3]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 0.5
        intervals: size = 3
        intervals [1]:
            xmin = 0
            xmax = 1e-1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.3
            text = "AH0"
        intervals [3]:
            xmin = 0.3
            xmax = 0.5
            text = "ʃ"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
0.5 ! as long as the audio
<exists>
1
"IntervalTier"
"Ann - phones"
0
0.5
3
0
0.1
" "
0.1
0.3
"AH0"
0.3
0.5
"ʃ"
"""


def write(tmp_path, text, name="phones.txt"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def rows(alignment):
    columns = alignment.starts, alignment.ends, alignment.phones
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_phone_at_the_centre_of_a_frame(tmp_path):
    # Centres: 12.5, 32.5, 52.5 ms at 50 Hz; 12.5, 22.5, ... at 100 Hz.
    path = write(tmp_path, "u 0.000 0.0125 SIL\nu 0.0125 0.040 AH0\nu 0.040 0.080 K\n")
    alignment = read_alignments(path)["u"]
    assert phones_at_frames(alignment, 3, 50).tolist() == ["AH", "AH", "K"]
    assert phones_at_frames(alignment, 5, 100).tolist() == ["AH", "AH", "AH", "K", "K"]
    with pytest.raises(InputError, match="found an alignment of 0.080 s, expected at least 0.113"):
        phones_at_frames(alignment, 6, 50)


@pytest.mark.parametrize("rate", [50, 100])
def test_an_alignment_that_starts_late_begins_with_its_first_phone(tmp_path, rate):
    # The first centre is at 12.5 ms.
    path = write(tmp_path, "u 0.015 0.040 AH0\nu 0.040 0.090 ZZ\n")
    assert phones_at_frames(read_alignments(path)["u"], 1, rate).tolist() == ["AH"]


def test_ids_may_have_spaces(tmp_path):
    found = read_alignments(write(tmp_path, " é 1 2 0 0.1 A\né 1 2 0.1 0.2 B\n1 2\t0 0.1 A\n"))
    assert {name: a.phones.tolist() for name, a in found.items()} == {
        "é 1 2": ["A", "B"],
        "1 2": ["A"],
    }


def test_only_vowels_of_arpabet_lose_their_stress(tmp_path):
    given = "AA0 ER2 UW1 a1 a2 AA3 K1 AA0_B x0 B AW".split()
    lines = "".join(f"u {i / 10} {(i + 1) / 10} {phone}\n" for i, phone in enumerate(given))
    expected = "AA ER UW a1 a2 AA3 K1 AA0_B x0 B AW".split()
    assert read_alignments(write(tmp_path, lines))["u"].phones.tolist() == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", [LONG, SHORT])
def test_textgrids(tmp_path, text, encoding):
    (tmp_path / "ann").mkdir()
    (tmp_path / "ann" / "u.1.TextGrid").write_bytes(text.encode(encoding))
    (tmp_path / "notes.txt").write_text("other files are no matter")
    (found,) = read_alignments(tmp_path).items()
    assert (found[0], rows(found[1])) == (
        "u.1",
        [(0.0, 0.1, "SIL"), (0.1, 0.3, "AH"), (0.3, 0.5, "ʃ")],
    )


def test_a_textgrid_that_was_cut_off_anywhere_is_refused(tmp_path):
    path = write(tmp_path, "", "u.TextGrid")
    for text in (LONG, SHORT):
        for length in range(0, len(text.rstrip()), 7):
            path.write_text(text[:length])
            with pytest.raises(InputError, match="u.TextGrid: expected a TextGrid as Praat writes"):
                read_alignments(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Ann - phones", "words", "expected one tier of intervals named 'phones', found none"),
        ("TextGrid", "Pitch", "it is another kind of file"),
        ("0.3\n", '"x"\n', "found '\"x\"' in line"),
        ("3\n0\n", "1e999\n0\n", "expected a TextGrid"),
        ("3\n0\n0.1", "0\n0\n0.1", "the tier of phones has no intervals"),
        ('"AH0"\n0.3', '"AH0"\n0.2', "found 'ʃ' from 0.2 to 0.5 s, expected a segment that starts"),
        ("0.5\n", "0.2\n", "expected a segment that starts at 0.3 s or later"),
        ("ʃ", "ʃ" * 65, "a phone of 65 characters"),
    ],
)
def test_unusable_textgrids_are_refused(tmp_path, old, new, message):
    write(tmp_path, SHORT.replace(old, new), "u.TextGrid")
    with pytest.raises(InputError, match=message):
        read_alignments(tmp_path)


def test_folders_of_textgrids(tmp_path):
    with pytest.raises(InputError, match="expected TextGrids"):
        read_alignments(tmp_path)
    write(tmp_path, SHORT, "a/u.TextGrid")
    one = digest(tmp_path)
    write(tmp_path, SHORT.replace("0.3", "0.4"), "a/u.TextGrid")
    assert digest(tmp_path) != one
    write(tmp_path, SHORT, "b/u.TextGrid")
    with pytest.raises(
        InputError, match="b/u.TextGrid: found a second TextGrid of u, expected one"
    ):
        read_alignments(tmp_path)


def test_ctm(tmp_path):
    """Gaps are silence, and so is what follows the last phone."""
    text = ";; a comment\nu 1 0.10 0.20 AH0\nu 1 0.30 0.15 K 0.98\nu 1 0.6 0.1 T\nv A 0 0.2 B\n"
    read = read_alignments(write(tmp_path, text, "phones.CTM"))
    found, missing = fitted(read, {"v": 3_200, "u": 16_000}, 0.0, "phones.CTM")
    assert list(found) == ["v", "u"] and not missing
    assert rows(found["v"]) == [(0.0, 0.2, "B")]
    assert [phone for *_, phone in rows(found["u"])] == ["SIL", "AH", "K", "SIL", "T", "SIL"]
    np.testing.assert_allclose(found["u"].starts, [0, 0.1, 0.3, 0.45, 0.6, 0.7])
    np.testing.assert_allclose(found["u"].ends, [0.1, 0.3, 0.45, 0.6, 0.7, 1.0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u 1 0.1 0.2\n", "line 1: found 'u 1 0.1 0.2', expected 'UTT-ID CHANNEL START DURATION"),
        ("u 1 0 0.2 A\nu 2 0 0.2 B\n", "line 2: .* one channel an utterance"),
        ("u 1 0 0.2 A\nu 1 0.1 0.2 B\n", "line 2: found u from 0.1 .* at 0.2 s or later; sort"),
        ("u 1 0 0 A\n", "line 1: found u from 0.0 to 0.0 s"),
        ("u 1 -1 2 A\n", "line 1: found u from -1.0"),
        ("u 1 nan 2 A\n", "line 1: found u from nan"),
        (";; nothing\n", "no alignments in it"),
    ],
)
def test_unusable_ctm_is_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_alignments(write(tmp_path, text, "phones.ctm"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no alignments in it"),
        ("u 0 0.1\n", "line 1: found 'u 0 0.1', expected 'UTT-ID START END PHONE'"),
        ("u 0 0.1 A\nu 0.1 x B\n", "line 2"),
        ("u 0 0.1 A\nu 0.3 0.4 B\n", "line 2: found u .* starts at 0.1 s; sort .* with SIL$"),
        ("u 0 0.1 A\nu 0.1 0.1 B\n", "line 2"),
        ("u 0.5 0.6 A\n", "line 1: .*starts at 0.0 s"),
        ("u 0 nan A\n", "line 1"),
    ],
)
def test_unusable_lines_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        read_alignments(write(tmp_path, text))


def test_missing_or_binary_alignments(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_alignments(tmp_path / "none.txt")
    (tmp_path / "binary").write_bytes(b"\xff\x00\xfe")
    with pytest.raises(InputError, match="not a text file"):
        read_alignments(tmp_path / "binary")


def test_real_alignments(alignments_path):
    alignments = read_alignments(alignments_path)
    assert len(alignments) == 46
    phones = set(np.concatenate([a.phones for a in alignments.values()]))
    assert len(phones) == 40 and "SIL" in phones


def alignment(*ends):
    return Alignment(np.array([0.0, *ends[:-1]]), np.array(ends), np.array(["A", "B"][: len(ends)]))


def test_utterances_without_alignment_are_listed_and_counted():
    found = {"a": alignment(1.0), "c": alignment(1.0)}
    samples = dict.fromkeys("abcd", 16_000)
    kept, missing = fitted(found, samples, 0.5, "x.txt")
    assert list(kept) == ["a", "c"] and missing == ["b", "d"]
    message = r"x.txt: 2 of 4 utterances have no alignment \(b, d\), .*missing_alignments=0.49"
    with pytest.raises(InputError, match=message):
        fitted(found, samples, 0.49, "x.txt")
    message = r"2 of 2 .* have no alignment \(b, d\), expected those of this split"
    with pytest.raises(InputError, match=message):
        fitted(found, {"b": 1, "d": 1}, 1.0, "x.txt")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (2.021, "ends at 2.021 s, expected 2.000 s, the audio's end; is it of this audio"),
        (2_000, "are the times milliseconds"),
        (32_000, "are the times samples"),
        (200, "are the times frames of 10 ms"),
        (101, "are the times frames of 20 ms"),
        (2e7, "are the times units of 100 ns"),
        (1.9, "found an alignment of 1.900 s, expected at least 1.98"),
    ],
)
def test_alignments_of_other_times_than_the_audio_are_refused(end, message):
    with pytest.raises(InputError, match=f"x.txt: utterance u: .*{message}"):
        fitted({"u": alignment(0.5, end)}, {"u": 32_000}, 0.0, "x.txt")


def test_a_frame_more_or_less_is_taken():
    for end in (1.98, 2.0, 2.02):
        assert fitted({"u": alignment(0.5, end)}, {"u": 32_000}, 0.0, "x.txt")[0]
