"""The language model that comes with the embedded corpus."""

import numpy as np
from asr import kneser_ney

from hubert_jax.language import ngram

ORDER = 3


def test_it_is_of_the_training_transcripts_alone(minilibri):
    sentences = kneser_ney.sentences_of(minilibri / "train-clean-5")
    assert len(sentences) == 260
    expected = kneser_ney.arpa(sentences, ORDER).splitlines()
    found = (minilibri / "lm.arpa").read_text().splitlines()
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        ours, theirs = ours.split("\t"), theirs.split("\t")
        assert ours[1:2] == theirs[1:2]
        if len(ours) > 1:  # the last digit may differ from one C library to another
            numbers = ([float(n) for n in (row[0], *row[2:])] for row in (ours, theirs))
            np.testing.assert_allclose(*numbers, atol=2e-6)
    words = set(ngram.words(str(minilibri / "lm.arpa"))) - {"<s>", "</s>", "<unk>"}
    assert words == {word for sentence in sentences for word in sentence}
