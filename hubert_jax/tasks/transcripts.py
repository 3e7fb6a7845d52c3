"""What of a split's transcripts fine-tuning could not take, before its first step."""

import bisect
import collections
import itertools
import pathlib

from hubert_jax import distributed
from hubert_jax.data import manifests
from hubert_jax.data.reading import RecordReader
from hubert_jax.errors import InputError
from hubert_jax.frames import num_frames, num_samples
from hubert_jax.vocabulary import Vocabulary

FRAMES_PER_CHARACTER = 2  # 25 characters a second, more than anybody reads aloud


def check(
    key: str,
    directory: str,
    audio: manifests.AudioManifest,
    vocabulary: Vocabulary,
    padded_frames: tuple[int, ...],
) -> None:
    """Refuses transcripts of a split that a run would stop at; announces those it cannot use.

    `key` is the configuration's for the split `directory`: "config.audio", which is trained on, or
    that of a held-out one. Utterances longer than all of `padded_frames` are left out. Raises
    InputError for characters outside the vocabulary, all of them with their counts, and, held out,
    for a transcript of more characters than its padding has frames.
    """
    reader, held_out = RecordReader(pathlib.Path(directory), audio), key != "config.audio"
    most = [num_samples(length) for length in padded_frames]
    outside: collections.Counter[str] = collections.Counter()
    refused: list[tuple[str, str]] = []  # id and text
    ignored: list[str] = []
    endless: InputError | None = None
    for number, text in enumerate(reader.transcripts()):
        name, samples = reader.index.ids[number], int(reader.index.samples[number])
        if samples > most[-1]:
            continue
        if found := vocabulary.outside(text):
            outside.update(found)
            refused.append((name, text))
        spelled = " ".join(text.split())
        padded = padded_frames[bisect.bisect_left(most, samples)]
        if held_out and len(spelled) > padded and endless is None:
            endless = too_long(name, len(spelled), padded)
        # CTC needs a frame for each character, and one between two that are the same.
        needed = len(spelled) + sum(a == b for a, b in itertools.pairwise(spelled))
        room = padded if held_out else padded // FRAMES_PER_CHARACTER
        if needed > num_frames(samples) or len(spelled) > room:
            ignored.append(name)
    if refused:
        listed = ", ".join(f"{c!r} (U+{ord(c):04X}) {n} x" for c, n in outside.most_common(20))
        names = ", ".join(name for name, _ in refused[:3]) + ", ..." * (len(refused) > 3)
        try:
            vocabulary.encode(refused[0][1], refused[0][0])
        except InputError as error:  # says what to do
            raise InputError(
                f"{key}={directory}: {len(refused)} of {audio.utterances} transcripts, of {names}, "
                f"hold what the vocabulary lacks: {listed}; {error}"
            ) from None
    if endless is not None:
        raise endless
    if ignored:
        distributed.announce(
            f"{directory}: {len(ignored)} of {audio.utterances} transcripts are too long for their "
            f"audio and {'count with a loss of 0' if held_out else 'not learnt from'}, that of "
            f"{ignored[0]} for one"
        )


def too_long(name: str, characters: int, frames: int) -> InputError:
    """What is said of a held-out utterance whose transcript has no room in its padding."""
    return InputError(
        f"utterance {name}: {characters} characters in at most {frames} frames, more than anybody "
        "reads aloud; leave it out of config.validation_audio"
    )
