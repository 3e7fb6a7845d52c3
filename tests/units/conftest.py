"""A few seconds of real speech as a prepared split."""

import pathlib

import pytest
import splits

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"


@pytest.fixture(scope="session")
def alignments_path():
    return CORPUS / "alignments" / "dev-mini.phones.txt"


@pytest.fixture(scope="session")
def cut_alignments(alignments_path, speech, tmp_path_factory):
    """Those of `speech`, which has the first seconds of its utterances."""
    path = tmp_path_factory.mktemp("alignments") / "phones.txt"
    lines = []
    for name, start, end, phone in map(str.split, alignments_path.read_text().splitlines()):
        seconds = len(speech.get(name, ())) / 16_000
        if float(start) < seconds:
            lines.append(f"{name} {start} {min(float(end), seconds)} {phone}\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="session")
def make_split(speech):
    """(directory, ids, split's name) -> the directory, written as the prepare job does."""
    from hubert_jax.data.records import Utterance

    def make(directory, ids=tuple(speech), split="dev"):
        directory.mkdir(parents=True)
        splits.write_split(
            directory, split, (Utterance(i, speech[i], i.split("-")[0]) for i in ids), [], 64
        )
        return str(directory)

    return make


@pytest.fixture(scope="session")
def split(make_split, tmp_path_factory):
    return make_split(tmp_path_factory.mktemp("prepare") / "dev")
