"""A few seconds of real speech as a prepared split."""

import pathlib

import pytest
import soundfile

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"
SECONDS = 4


@pytest.fixture(scope="session")
def alignments_path():
    return CORPUS / "alignments" / "dev-mini.phones.txt"


@pytest.fixture(scope="session")
def speech():
    """{id: int16 (n,)}: the first seconds of two utterances of each development speaker."""
    found = {}
    for speaker in sorted((CORPUS / "dev-mini").iterdir()):
        for path in sorted(speaker.glob("*/*.opus"))[:2]:
            # Lengths that differ, none a whole number of frames.
            stop = SECONDS * 16_000 - 1_003 * len(found)
            found[path.stem] = soundfile.read(path, stop=stop, dtype="int16")[0]
    assert len(found) == 6
    return found


@pytest.fixture(scope="session")
def make_split(speech):
    """(directory, ids, split's name) -> the directory, written as the prepare job does."""
    from hubert_jax.data.records import Utterance
    from hubert_jax.data.shards import write_split

    def make(directory, ids=tuple(speech), split="dev"):
        directory.mkdir(parents=True)
        write_split(directory, split, (Utterance(i, speech[i]) for i in ids), [], 64)
        return str(directory)

    return make


@pytest.fixture(scope="session")
def split(make_split, tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("prepare") / "dev")
