"""What of a split's transcripts a head cannot spell, or learn, before anything expensive."""

import bisect
import collections
import functools
import itertools

from hubert_jax import distributed, storage
from hubert_jax.data.manifests import AudioManifest
from hubert_jax.data.reading import RecordReader
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, num_frames, num_samples
from hubert_jax.vocabulary import Vocabulary, named

FRAMES_PER_CHARACTER = 2  # 25 characters a second, more than anybody reads aloud
_LISTED, _NAMES = 100, 5
_REMEDIES = (
    "--config.vocabulary.source=transcripts learns all symbols of config.audio, "
    "--config.vocabulary.punctuation=drop makes it spaces, --config.vocabulary.replace=FROM=TO "
    "writes some otherwise, --config.vocabulary.outside=drop leaves them out"
)


class _Outside:
    """What no symbol spells: how often, and in which utterance first."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}
        self.texts = 0

    def add(self, name: str, found: list[str]) -> None:
        self.texts += bool(found)
        self._counts.update(found)
        for part in found:
            self._first.setdefault(part, name)

    def __str__(self) -> str:
        listed = [
            f"{named(part)} {count} x, first in {self._first[part]}"
            for part, count in self._counts.most_common(_LISTED)
        ]
        more = len(self._counts) - len(listed)
        return "; ".join([*listed, *[f"and {more} more"] * bool(more)])

    def in_other_case(self, vocabulary: Vocabulary) -> str:
        """The case in which the vocabulary has something of it; "" where it has nothing."""
        for case in ("upper", "lower"):
            others = {part: getattr(part, case)() for part in self._counts}
            if any(to != part and to in vocabulary.characters for part, to in others.items()):
                return case
        return ""


def check(
    splits: dict[str, tuple[str, AudioManifest]],
    vocabulary: Vocabulary,
    padded_frames: tuple[int, ...],
) -> float:
    """Seconds of audio that is learnt from; refuses transcripts that a run would stop at.

    `splits` are directories and manifests by the configuration's key: "config.audio", which is
    trained on, and those of held-out ones. Utterances longer than all of `padded_frames` are left
    out; what else cannot be learnt from is announced. Raises InputError for what no symbol spells,
    all of it with counts, where nothing can be learnt, and, held out, for a transcript of more
    symbols than its padding has frames.
    """
    seconds = {
        key: distributed.from_first(
            functools.partial(_check, key, *split, vocabulary, padded_frames)
        )
        for key, split in splits.items()
    }
    return seconds["config.audio"]


def _check(
    key: str,
    directory: str,
    audio: AudioManifest,
    vocabulary: Vocabulary,
    padded_frames: tuple[int, ...],
) -> float:
    reader, held_out = RecordReader(storage.path(directory), audio), key != "config.audio"
    most = [num_samples(length) for length in padded_frames]
    verb = "scored" if held_out else "learnt from"
    outside, learnt = _Outside(), 0
    left_out: dict[str, list[int]] = {}  # numbers by the reason
    endless: InputError | None = None
    for number, text in enumerate(reader.transcripts()):
        name, samples = reader.index.ids[number], int(reader.index.samples[number])
        if samples > most[-1] or not reader.index.transcribed[number]:
            continue
        classes, found = vocabulary.spell(text)
        outside.add(name, found)
        padded = padded_frames[bisect.bisect_left(most, samples)]
        if held_out and len(classes) > padded and endless is None:
            endless = too_long(name, len(classes), padded)
        # CTC needs a frame for each symbol, and one between two that are the same.
        needed = len(classes) + sum(a == b for a, b in itertools.pairwise(classes))
        room = padded if held_out else padded // FRAMES_PER_CHARACTER
        reason = ""
        if not classes:
            reason = f"have nothing that a symbol spells and are not {verb}"
        elif needed > num_frames(samples) or len(classes) > room:
            then = "count with a loss of 0" if held_out else f"are not {verb}"
            reason = f"are too long for their audio and {then}"
        if reason:
            left_out.setdefault(reason, []).append(number)
        if not reason or (held_out and classes):
            learnt += samples
    if outside.texts and vocabulary.policy.outside == "fail":
        case = outside.in_other_case(vocabulary)
        remedies = f"--config.vocabulary.case={case} brings it to theirs, " * bool(case) + _REMEDIES
        raise InputError(
            f"{key}={directory}: {outside.texts} of {audio.utterances} transcripts hold what "
            f"none of the vocabulary's {len(vocabulary.characters)} symbols spells: {outside}; "
            f"{remedies}"
        )
    if endless is not None:
        raise endless
    if outside.texts:
        _announce_dropped(directory, outside, audio)
    for reason, numbers in left_out.items():
        ids = ", ".join(reader.index.ids[number] for number in numbers[:_NAMES])
        hours = reader.index.samples[numbers].sum(dtype=float) / SAMPLE_RATE / 3600
        distributed.announce(
            f"{directory}: {len(numbers)} of {audio.utterances} transcripts, {hours:.2f} h, "
            f"{reason}: {ids}{', ...' * (len(numbers) > _NAMES)}"
        )
    if not learnt:
        raise InputError(
            f"{key}={directory}: none of its {audio.utterances} transcripts can be {verb}: they "
            f"{', or '.join(left_out) or 'are of utterances beyond config.padded_frames'}"
        )
    return learnt / SAMPLE_RATE


def tell_outside(directory: str, audio: AudioManifest, vocabulary: Vocabulary) -> None:
    """Announces what of a split's references no symbol spells, which then counts as errors.

    Where the vocabulary's policy leaves it out, it is left out of references too.
    """
    reader, outside, empty = RecordReader(storage.path(directory), audio), _Outside(), []
    for name, text in zip(reader.index.ids, reader.transcripts(), strict=True):
        outside.add(name, vocabulary.outside(text))
        if text.strip() and not vocabulary.normalised(text):
            empty.append(name)
    if outside.texts and vocabulary.policy.outside == "drop":
        _announce_dropped(directory, outside, audio)
    elif outside.texts:
        distributed.announce(
            f"{directory}: {outside.texts} of {audio.utterances} references hold what the head "
            f"cannot spell and count with it: {outside}"
        )
    if empty:
        distributed.announce(
            f"{directory}: {len(empty)} references, that of {empty[0]} for one, have nothing to "
            "compare with by the vocabulary's policy"
        )


def _announce_dropped(directory: str, outside: _Outside, audio: AudioManifest) -> None:
    distributed.announce(
        f"{directory}: left out of {outside.texts} of {audio.utterances} transcripts, as no symbol "
        f"spells it: {outside}"
    )


def too_long(name: str, characters: int, frames: int) -> InputError:
    """What is said of a held-out utterance whose transcript has no room in its padding."""
    return InputError(
        f"utterance {name}: {characters} characters in at most {frames} frames, more than anybody "
        "reads aloud; leave it out of config.validation_audio"
    )
