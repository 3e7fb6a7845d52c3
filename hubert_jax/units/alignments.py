"""Phone alignments: lines of text, CTM, or a folder of TextGrids, as of the Montreal aligner."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from hubert_jax import config, files, storage
from hubert_jax.errors import InputError
from hubert_jax.frames import SAMPLE_RATE, centres, num_frames

SILENCE = "SIL"
_TOLERANCE = 0.02  # seconds by which times may miss one another: one frame of 50 Hz
_LONGEST_PHONE = 64  # characters
_LINES = "expected lines 'UTT-ID START END PHONE'"
_STRESSED = re.compile("(A[AEHOWY]|E[HRY]|I[HY]|O[WY]|U[HW])[012]")  # ARPAbet's vowels
# Praat's text files are strings, numbers and flags that stand free; all else is for the reader.
_TOKEN = re.compile(r'"((?:[^"]|"")*)"|(?<!\S)(?:([-+\d.][-+\d.eE]*)|<(\w+)>|!.*)(?!\S)')
_UNITS = {
    **{"milliseconds": 1e3, "samples": SAMPLE_RATE, "units of 100 ns": 1e7},
    **{"frames of 10 ms": 100, "frames of 20 ms": 50},
}


@dataclasses.dataclass(frozen=True, eq=False)
class Alignment:
    """Phones of an utterance, str (P,), from `starts` to `ends`, float64 seconds, without gaps."""

    starts: np.ndarray
    ends: np.ndarray
    phones: np.ndarray
    whole: bool = True  # False: what follows the last phone is silence


def read_alignments(path: str | os.PathLike) -> dict[str, Alignment]:
    """Alignments by utterance: of a folder of TextGrids, a .ctm, or lines `UTT-ID START END PHONE`.

    A TextGrid UTT-ID.TextGrid, in any folder below, has a tier "phones". Empty intervals and gaps
    are SIL, but in lines of text, which have none. ARPAbet's vowels lose their stress (AH0 is AH);
    all other phones stay. Raises InputError, naming file and line, for what is missing, malformed
    or overlaps.
    """
    path = storage.path(path)
    if path.is_dir():
        return _read_textgrids(path)
    gaps = path.suffix.lower() == ".ctm"
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for where, (name, start, end, phone) in (_ctm_lines if gaps else _text_lines)(path):
        _append(rows.setdefault(name, []), start, end, phone, f"{where}: found {name}", gaps)
    if not rows:
        raise InputError(f"{path}: no alignments in it; {_LINES}")
    return {name: _alignment(segments, not gaps) for name, segments in rows.items()}


def digest(path: str | os.PathLike) -> str:
    """SHA-256 (hex) of the file, or of the TextGrids of a folder and their places."""
    path = storage.path(path)
    if not path.is_dir():
        return files.sha256_file(path)
    found = _textgrids(path)
    return config.digest([[str(each.relative_to(path)), files.sha256_file(each)] for each in found])


def fitted(
    alignments: Mapping[str, Alignment],
    samples: Mapping[str, int],
    missing: float,
    where: str,
) -> tuple[dict[str, Alignment], list[str]]:
    """The alignments of utterances of so many `samples` (16 kHz), and those that have none.

    Raises InputError where that is a larger fraction than `missing`, or all; where an alignment
    ends before or after the audio; `where` they are from is named.
    """
    absent = [name for name in samples if name not in alignments]
    if len(absent) > missing * len(samples) or len(absent) == len(samples) > 0:
        listed = ", ".join(absent[:5]) + ", ..." * (len(absent) > 5)
        remedy = (
            f"config.missing_alignments={missing} allows {int(missing * len(samples))}; align "
            "them, or raise it and they are left out"
            if len(absent) < len(samples)
            else "expected those of this split"
        )
        raise InputError(
            f"{where}: {len(absent)} of {len(samples)} utterances have no alignment ({listed}), "
            f"{remedy}"
        )
    found = {}
    for name in samples.keys() - set(absent):
        alignment, seconds = alignments[name], samples[name] / SAMPLE_RATE
        end = float(alignment.ends[-1])
        if end > seconds + _TOLERANCE:
            units = (unit for unit, n in _UNITS.items() if 0.9 < end / seconds / n < 1.1)
            guess = next((f"are the times {unit}?" for unit in units), "is it of this audio?")
            raise InputError(
                f"{where}: utterance {name}: found an alignment that ends at {end:.3f} s, expected "
                f"{seconds:.3f} s, the audio's end; {guess}"
            )
        if not alignment.whole and end < seconds:
            rows = zip(alignment.starts, alignment.ends, alignment.phones, strict=True)
            alignment = _alignment([*rows, (end, seconds, SILENCE)], whole=True)
        try:
            phones_at_frames(alignment, num_frames(samples[name], 100), 100)
        except InputError as error:
            raise InputError(f"{where}: utterance {name}: {error}") from None
        found[name] = alignment
    return {name: found[name] for name in samples if name in found}, absent


def phones_at_frames(alignment: Alignment, frames: int, rate: int) -> np.ndarray:
    """The phone at the centre of each frame, str (T,); the first where the alignment starts later.

    Raises InputError where the alignment ends before the last frame's centre.
    """
    times = centres(frames, rate)
    if frames and times[-1] > alignment.ends[-1] + _TOLERANCE:
        raise InputError(
            f"found an alignment of {alignment.ends[-1]:.3f} s, expected at least "
            f"{times[-1]:.3f} s for {frames} frames at {rate} Hz; is it the alignment of "
            "this audio?"
        )
    index = np.searchsorted(alignment.starts, times, side="right") - 1
    return alignment.phones[np.maximum(index, 0)]


def _alignment(rows: list[tuple[float, float, str]], whole: bool) -> Alignment:
    starts, ends, phones = map(np.array, zip(*rows, strict=True))
    return Alignment(starts, ends, phones, whole)


def _append(
    rows: list[tuple[float, float, str]],
    start: float,
    end: float,
    phone: str,
    found: str,
    gaps: bool,
) -> None:
    """Adds a segment behind the others, and silence before it where there may be `gaps`."""
    before = rows[-1][1] if rows else 0.0
    earliest = max(before - _TOLERANCE, rows[-1][0] if rows else -_TOLERANCE)
    if len(phone) > _LONGEST_PHONE:  # arrays are as wide as the longest
        raise InputError(f"{found} with a phone of {len(phone)} characters")
    late = start - before
    if not earliest <= start < end or not (gaps or late <= _TOLERANCE):
        remedy = "sort the segments" if gaps else f"sort the segments and fill gaps with {SILENCE}"
        raise InputError(
            f"{found} from {start} to {end} s, expected a segment that starts at {before} s"
            f"{' or later' * gaps}; {remedy}"
        )
    if late > _TOLERANCE:
        rows.append((before, start, SILENCE))
    phone = phone.strip() or SILENCE
    stressed = _STRESSED.fullmatch(phone)
    rows.append((start, end, stressed[1] if stressed else phone))


def _text(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
        wide = content[:2] in (b"\xff\xfe", b"\xfe\xff")  # as Praat writes what is not ASCII
        return content.decode("utf-16" if wide else "utf-8-sig")
    except OSError as error:
        raise InputError(
            f"{path}: alignments cannot be read ({error.strerror}); {_LINES}"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; {_LINES}") from None


_Line = tuple[str, tuple[str, float, float, str]]  # where it is; id, start, end, phone


def _text_lines(path: pathlib.Path) -> Iterator[_Line]:
    def fields(line: str) -> tuple[str, float, float, str]:
        name, start, end, phone = line.rsplit(maxsplit=3)  # names may have spaces
        return name, float(start), float(end), phone

    return _lines(path, fields, "'UTT-ID START END PHONE' with times in seconds")


def _ctm_lines(path: pathlib.Path) -> Iterator[_Line]:
    channels: dict[str, str] = {}

    def fields(line: str) -> tuple[str, float, float, str]:
        name, channel, start, duration, phone, *_ = line.split()
        if channels.setdefault(name, channel) != channel:
            raise ValueError("a second channel")
        return name, float(start), float(start) + float(duration), phone

    return _lines(path, fields, "'UTT-ID CHANNEL START DURATION PHONE', one channel an utterance")


def _lines(
    path: pathlib.Path, fields: Callable[[str], tuple[str, float, float, str]], expected: str
) -> Iterator[_Line]:
    for number, line in enumerate(_text(path).splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith(";;"):
            continue
        try:
            yield f"{path}, line {number}", fields(line)
        except ValueError:
            raise InputError(
                f"{path}, line {number}: found {line[:80]!r}, expected {expected}"
            ) from None


def _textgrids(folder: pathlib.Path) -> list[pathlib.Path]:
    entries = (entry for _, listed in files.folders_below(folder) for entry in listed)
    found = [storage.path(entry.path) for entry in entries if entry.name.endswith(".TextGrid")]
    if not found:
        raise InputError(f"{folder}: expected TextGrids, UTT-ID.TextGrid, in it or below")
    return sorted(found)


def _read_textgrids(folder: pathlib.Path) -> dict[str, Alignment]:
    alignments: dict[str, Alignment] = {}
    for path in _textgrids(folder):
        if path.stem in alignments:
            raise InputError(f"{path}: found a second TextGrid of {path.stem}, expected one")
        rows: list[tuple[float, float, str]] = []
        for start, end, phone in _phone_tier(path):
            _append(rows, start, end, phone, f"{path}: found {phone!r}", True)
        if not rows:
            raise InputError(f"{path}: the tier of phones has no intervals; align it again")
        alignments[path.stem] = _alignment(rows, whole=True)
    return alignments


def _phone_tier(path: pathlib.Path) -> list[tuple[float, float, str]]:
    """The intervals of the tier "phones", or of the one that ends so, as "Ann - phones"."""
    text = _text(path)
    tokens = _TOKEN.finditer(text)

    def take(kind: Any) -> Any:
        for token in tokens:
            string, number, flag = token.groups()
            if string is not None or number is not None or flag is not None:
                if kind is float and number is not None:
                    return float(number)
                if kind is str and string is not None:
                    return string.replace('""', '"')
                if kind is bool and flag is not None:
                    return flag == "exists"
                line = text.count("\n", 0, token.start()) + 1
                raise ValueError(f"found {token[0][:40]!r} in line {line}")
        raise ValueError("it ends too early")

    try:
        if not take(str).startswith("ooTextFile") or take(str) != "TextGrid":
            raise ValueError("it is another kind of file")
        take(float), take(float)
        tiers: dict[str, list[tuple[float, float, str]]] = {}
        for _ in range(int(take(float)) if take(bool) else 0):
            of_intervals, name = take(str) == "IntervalTier", take(str)
            take(float), take(float)
            kinds = (float, float, str) if of_intervals else (float, str)
            rows = [tuple(map(take, kinds)) for _ in range(int(take(float)))]
            if of_intervals and name.lower().split(" - ")[-1] == "phones":
                tiers[name] = rows
    except (ValueError, OverflowError) as error:  # of an infinite number of tiers
        raise InputError(f"{path}: expected a TextGrid as Praat writes as text; {error}") from None
    if len(tiers) != 1:
        found = ", ".join(tiers) or "none"
        raise InputError(f"{path}: expected one tier of intervals named 'phones', found {found}")
    return next(iter(tiers.values()))
