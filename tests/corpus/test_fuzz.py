"""300 damaged files: each is decoded or listed, none crashes or hangs the reader."""

import collections
import io
import os

import numpy as np
import pytest
import soundfile

from hubert_jax.corpus import preparation
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.corpus.sources import discover
from hubert_jax.errors import InputError
from hubert_jax.frames import WINDOW

FORMATS = ("wav", "flac", "ogg", "opus", "mp3")
DAMAGES = ("bits", "cut", "header", "swapped")
FILES = 300
HEADER = 64  # bytes; where formats keep rates, channels and lengths


@pytest.fixture(scope="module")
def originals(minilibri) -> dict[str, bytes]:
    """1.5 s of real speech in every format."""
    source = sorted((minilibri / "dev-mini" / "1898").rglob("*.opus"))[0]
    speech = read_waveform(source)[16_000:40_000]
    coded = {}
    for suffix in FORMATS:
        content = io.BytesIO()
        kind, subtype = ("OGG", "OPUS") if suffix == "opus" else (suffix.upper(), None)
        soundfile.write(content, speech, 16_000, format=kind, subtype=subtype)
        coded[suffix] = content.getvalue()
    return coded


def _damaged(content: bytes, other: bytes, damage: str, random: np.random.Generator) -> bytes:
    changed = bytearray(content)
    if damage == "bits":
        for position in random.integers(0, len(changed), random.integers(1, 40)):
            changed[position] ^= 1 << int(random.integers(8))
    elif damage == "cut":
        del changed[int(random.integers(len(changed))) :]
    elif damage == "header":
        for position in random.integers(0, HEADER, random.integers(1, 8)):
            changed[position] = random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))])
    else:  # another format's beginning
        changed[:HEADER] = other[:HEADER]
    return bytes(changed)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, originals):
    """The damaged files, beside the good ones; every one differs."""
    folder = tmp_path_factory.mktemp("fuzzed")
    random = np.random.default_rng(20_21)
    for number in range(FILES):
        suffix = FORMATS[number % len(FORMATS)]
        damage = DAMAGES[number // len(FORMATS) % len(DAMAGES)]
        other = originals[FORMATS[(number + 1 + number // 20) % len(FORMATS)]]
        content = _damaged(originals[suffix], other, damage, random)
        (folder / f"{damage}-{number:03d}.{suffix}").write_bytes(content)
    for suffix, content in originals.items():
        (folder / f"good-{suffix}.{suffix}").write_bytes(content)
    return folder


@pytest.mark.parametrize("convert", [False, True])
def test_every_file_is_decoded_or_named(corpus, convert):
    outcomes = collections.Counter()
    for path in sorted(corpus.iterdir()):
        try:
            waveform = read_waveform(path, convert)
        except InputError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            assert not path.name.startswith("good")
            outcomes["listed"] += 1
        else:
            assert waveform.dtype == np.int16 and len(waveform) >= WINDOW
            outcomes["decoded"] += 1
    assert sum(outcomes.values()) == FILES + len(FORMATS)
    assert min(outcomes.values()) > 40


def test_a_corpus_of_them_is_prepared(corpus, tmp_path):
    """The same from within the preparation, by two workers: nothing is lost and no file twice."""
    conversion = preparation.Conversion(convert=True)
    planned = preparation.divided(discover(corpus), conversion)
    written = preparation.write_parts(tmp_path / "parts", planned, conversion, workers=2)
    rejected = [os.path.basename(file) for part in written for file, _ in part.notes.rejected]
    assert len(rejected) == len(set(rejected))
    assert sum(len(part.read_index()) for part in written) + len(rejected) == FILES + len(FORMATS)
