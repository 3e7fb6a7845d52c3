"""When words were said: of greedy decoding, of long recordings in stretches, and as captions."""

import dataclasses
import html
import math
import textwrap
from collections.abc import Sequence

import numpy as np

from hubert_jax.asr.search import Word
from hubert_jax.frames import HOP, SAMPLE_RATE, WINDOW
from hubert_jax.vocabulary import Vocabulary

_LONGEST = 1_500  # frames of a stretch, 30 s
_SHORTEST = 500  # of one that ends where nobody speaks
_PAUSE = 0.6  # seconds without a word, at which a caption ends
_CAPTION_SECONDS = 7.0
_LINE = 42  # characters; a caption has two lines at most


def greedy_words(log_probs: np.ndarray, vocabulary: Vocabulary) -> tuple[Word, ...]:
    """The words of emissions (T, V) by the likeliest class of each frame, with their times.

    A word's confidence is the mean probability of its symbols where they are likeliest. Of scripts
    that do not part words, and of separated symbols, each symbol is one.
    """
    path = log_probs.argmax(axis=1)
    starts = np.concatenate([[0], np.flatnonzero(path[1:] != path[:-1]) + 1])
    stops = np.append(starts[1:], len(path))
    silent, boundary = set(vocabulary.silent), vocabulary.boundary
    pieces = any(symbol.startswith(" ") and len(symbol) > 1 for symbol in vocabulary.symbols)
    apart = vocabulary.separated or (boundary < 0 and not pieces)
    words: list[Word] = []
    sure: list[float] = []
    within = False
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        label = int(path[start])
        if label in silent:
            continue
        if label == boundary:
            within = False
            continue
        symbol = vocabulary.symbols[label - 1]
        likely = float(np.exp(log_probs[start:stop, label].max()))
        if not within or apart or symbol.startswith(" "):
            words.append(Word("", _seconds(start)[0], 0.0))
            sure = []
        within = True
        sure.append(likely)
        words[-1] = dataclasses.replace(
            words[-1],
            text=words[-1].text + symbol.removeprefix(" "),
            end=_seconds(stop - 1)[1],
            confidence=float(np.mean(sure)),
        )
    return tuple(word for word in words if word.text)


def _seconds(frame: int) -> tuple[float, float]:
    """The first and the last second that a frame of 50 Hz sees."""
    return frame * HOP / SAMPLE_RATE, (frame * HOP + WINDOW) / SAMPLE_RATE


def stretches(log_probs: np.ndarray, vocabulary: Vocabulary) -> list[slice]:
    """Emissions (T, V) in stretches of 30 s at most, which a search takes one at a time.

    They end in the middle of the longest pause there is from their tenth second on; without one,
    in the frame that is likeliest to have no symbol.
    """
    silent = [*vocabulary.silent, *([vocabulary.boundary] if vocabulary.boundary >= 0 else [])]
    nothing = np.logaddexp.reduce(log_probs[:, silent], axis=1)
    quiet = np.isin(log_probs.argmax(axis=1), silent)
    found, start = [], 0
    while len(log_probs) - start > _LONGEST:
        there = np.flatnonzero(quiet[start + _SHORTEST : start + _LONGEST])
        runs = np.split(there, np.flatnonzero(np.diff(there) > 1) + 1)
        longest = max(runs, key=len)
        if len(longest):
            end = start + _SHORTEST + int(longest[len(longest) // 2])
        else:
            end = start + _SHORTEST + int(nothing[start + _SHORTEST : start + _LONGEST].argmax())
        found.append(slice(start, end))
        start = end
    return [*found, slice(start, len(log_probs))]


@dataclasses.dataclass(frozen=True)
class Captions:
    """Texts of one or two lines: (start, end, text), in seconds."""

    shown: tuple[tuple[float, float, str], ...]

    @classmethod
    def of_words(cls, words: Sequence[Word], joint: str = " ") -> "Captions":
        """Of words with `joint` between them; they end at pauses, after 7 s or two lines."""
        found: list[list[Word]] = []
        for word in words:
            said = [*found[-1], word] if found else [word]
            text = joint.join(each.text for each in said)
            fits = len(said) == 1 or (
                word.start - said[-2].end < _PAUSE
                and word.end - said[0].start <= _CAPTION_SECONDS
                and len(textwrap.wrap(text, _LINE)) <= 2
            )
            if found and fits:
                found[-1] = said
            else:
                found.append([word])
        # A frame sees 25 ms, so that neighbours may overlap.
        next_starts = [*(each[0].start for each in found), math.inf][1:]
        return cls(
            tuple(
                (
                    each[0].start,
                    min(each[-1].end, next_start),
                    "\n".join(textwrap.wrap(joint.join(word.text for word in each), _LINE)),
                )
                for each, next_start in zip(found, next_starts, strict=True)
            )
        )

    def subrip(self) -> str:
        """As an .srt file has them."""
        return "".join(
            f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"
            for number, (start, end, text) in enumerate(self.shown, start=1)
        )

    def webvtt(self) -> str:
        """As a .vtt file has them."""
        return "WEBVTT\n\n" + "".join(
            f"{_clock(start, '.')} --> {_clock(end, '.')}\n{html.escape(text, quote=False)}\n\n"
            for start, end, text in self.shown
        )


def _clock(second: float, point: str) -> str:
    milliseconds = round(1000 * second)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
