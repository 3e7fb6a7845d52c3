"""Error rates against hand-counted edits and a textbook edit distance."""

import random

import pytest

from hubert_jax.asr.error_rates import ErrorRate, character_error_rate, word_error_rate
from hubert_jax.errors import InputError


def _edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def test_counts_by_hand_summed_over_the_split():
    references = ["THE CAT SAT ON THE MAT", "YES"]
    hypotheses = ["THE CAT SAD ON MAT", "OH YES"]  # SAT -> SAD, THE deleted; OH inserted
    assert word_error_rate(references, hypotheses) == ErrorRate(3 / 7, 1, 1, 1, 7)
    # T -> D, "THE " deleted, "OH " inserted; 22 + 3 characters
    assert character_error_rate(references, hypotheses) == ErrorRate(8 / 25, 1, 3, 4, 25)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_the_edit_distance(seed):
    rng = random.Random(seed)
    texts = [
        [" ".join(rng.choices(["A", "BA", "CAB", "ABBA"], k=rng.randint(1, 8))) for _ in range(6)]
        for _ in range(2)
    ]
    for measure, split in ((word_error_rate, str.split), (character_error_rate, list)):
        found = measure(*texts)
        errors = sum(_edit_distance(split(r), split(h)) for r, h in zip(*texts, strict=True))
        length = sum(len(split(r)) for r in texts[0])
        assert found.length == length
        assert found.substitutions + found.insertions + found.deletions == errors
        assert found.rate == errors / length


def test_empty_hypothesis_is_all_deletions_and_spaces_do_not_count():
    assert word_error_rate(["A B", " C  D "], ["", "C D"]) == ErrorRate(0.5, 0, 0, 2, 4)
    assert character_error_rate([" C  D "], ["C D"]).rate == 0


@pytest.mark.parametrize("measure", [word_error_rate, character_error_rate])
@pytest.mark.parametrize("references", [[], ["A", " "]])
def test_missing_transcripts_are_refused(measure, references):
    with pytest.raises(InputError):
        measure(references, ["A"] * len(references))
