"""Audio files of every accepted format, joined, cut and falsified, are read whole or refused.

    python -m benchmarks.audio_fuzz [--files=2000] [--seed=0]

Real speech of the embedded corpus is written in each format and changed in each way in turn. Each
file's length as `hubert_jax` reads it is compared with what was put into it, or, where it was cut,
with what ffmpeg decodes (`pip install imageio-ffmpeg`): equal to 0.1 s, kept and flagged, refused
in one line, or silently shorter or longer, which are failures. Prints a table, and failures.
"""

import argparse
import collections
import functools
import io
import json
import pathlib
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import soundfile

from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[1] / "examples" / "minilibri" / "dev-mini"
TOLERANCE = 0.1  # seconds
OUTCOMES = ("equal", "flagged", "refused", "shorter", "longer")

# What libsndfile writes, the rate, and channels.
FORMATS = {
    "WAV": (dict(format="WAV", subtype="PCM_16"), 16_000, 1),
    "WAV 24 bit": (dict(format="WAV", subtype="PCM_24"), 44_100, 2),
    "WAV float": (dict(format="WAVEX", subtype="FLOAT"), 16_000, 1),
    "WAV mu-law": (dict(format="WAV", subtype="ULAW"), 8_000, 1),
    "RF64": (dict(format="RF64", subtype="PCM_16"), 48_000, 1),
    "W64": (dict(format="W64", subtype="PCM_16"), 16_000, 1),
    "AIFF": (dict(format="AIFF", subtype="PCM_16"), 44_100, 1),
    "AU": (dict(format="AU", subtype="PCM_16"), 16_000, 1),
    "CAF": (dict(format="CAF", subtype="PCM_16"), 16_000, 2),
    "SPHERE": (dict(format="NIST", subtype="PCM_16"), 16_000, 1),
    "SPHERE mu-law": (dict(format="NIST", subtype="ULAW"), 8_000, 1),
    "FLAC": (dict(format="FLAC", subtype="PCM_16"), 16_000, 1),
    "FLAC 24 bit": (dict(format="FLAC", subtype="PCM_24"), 48_000, 2),
    "Ogg Vorbis": (dict(format="OGG", subtype="VORBIS"), 16_000, 1),
    "Ogg Opus": (dict(format="OGG", subtype="OPUS"), 16_000, 1),
    "MP3": (dict(format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="CONSTANT"), 16_000, 1),
    "MP3 variable": (
        dict(format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE"),
        44_100,
        2,
    ),
}

# The same of ffmpeg, whose pages and tags differ.
OF_FFMPEG = {
    "WAV of ffmpeg": ("-ar 16000 -f wav", True),
    "AIFF of ffmpeg": ("-ar 22050 -f aiff", True),
    "FLAC of ffmpeg": ("-ar 16000 -f flac", True),
    "Ogg Vorbis of ffmpeg": ("-ar 44100 -c:a libvorbis -f ogg", True),
    "Ogg Opus of ffmpeg": ("-b:a 24k -f opus", True),
    "MP3 of ffmpeg": ("-ar 44100 -b:a 96k -f mp3", True),
    "MP3 without a tag": ("-ar 24000 -q:a 4 -id3v2_version 0 -write_xing 0 -f mp3", False),
}
FORMATS |= {kind: (None, 0, 1) for kind in OF_FFMPEG}

Random = np.random.Generator


def speech(random: Random) -> np.ndarray:
    """Two to six seconds, float32 at 16 kHz."""
    waveform = read_waveform(random.choice(_sources()))
    length = int(random.integers(32_000, 96_000))
    start = int(random.integers(0, max(1, len(waveform) - length)))
    return waveform[start : start + length].astype(np.float32) / 32768


@functools.cache
def _sources() -> list[pathlib.Path]:
    return sorted(CORPUS.rglob("*.opus"))


def coded(kind: str, random: Random) -> tuple[bytes, float]:
    """A file, and its seconds."""
    import soxr

    written, rate, channels = FORMATS[kind]
    if written is None:
        return _of_ffmpeg(kind, random)
    waveform = soxr.resample(speech(random), 16_000, rate)
    file = io.BytesIO()
    soundfile.write(file, np.stack([waveform] * channels, axis=1), rate, **written)
    return file.getvalue(), len(waveform) / rate


def _of_ffmpeg(kind: str, random: Random) -> tuple[bytes, float]:
    waveform = speech(random)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "a")  # not a pipe, for it goes back to write lengths
        arguments = f"-v error -f f32le -ar 16000 -ac 1 -i - {OF_FFMPEG[kind][0]} {path}".split()
        subprocess.run([_ffmpeg(), *arguments], input=waveform.tobytes(), check=True)
        content = path.read_bytes()
    # Without a tag nobody knows what the encoder added in front and behind.
    return content, len(waveform) / 16_000 + (0 if OF_FFMPEG[kind][1] else 0.06)


def joined(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, float]:
    """Another file of the same kind behind it, or of any."""
    if random.random() < 0.3:
        kind = str(random.choice(list(FORMATS)))
    other, more = coded(kind, random)
    return content + other, seconds + more


def cut(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, None]:
    """Cut at a random byte; what is left is for ffmpeg to say."""
    return content[: int(random.integers(1, len(content)))], None


def length_by_few(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, float]:
    """The header's length changed by up to 40 samples, or one frame of MP3."""
    change = int(random.choice([-1, 1])) * (1 if "MP3" in kind else int(random.integers(1, 41)))
    return with_length(kind, content, lambda samples: max(0, samples + change)), seconds


def length_by_much(
    kind: str, content: bytes, seconds: float, random: Random
) -> tuple[bytes, float]:
    """The header's length 0, the largest number, or changed by more than a tenth."""
    factor = random.choice([0, 0.2, 0.5, 0.9, 1.1, 2, 1000, 2**40])
    return with_length(kind, content, lambda samples: int(samples * factor)), seconds


def tag_in_front(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, float]:
    """ID3v2, with words that are also marks of audio formats."""
    words = random.choice(
        [b"Infomercial", b"Xing", b"OggS", b"fLaC", b"RIFF....WAVEdata", b"\xff\xfb"]
    )
    body = bytes(words) + bytes(int(random.choice([20, 2_000, 200_000])))
    body = b"TIT2" + len(body).to_bytes(4, "big") + bytes(2) + body
    size = bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0))
    zeros = bytes(int(random.choice([0, 0, 700])))
    return b"ID3\3\0\0" + size + body + zeros + content, seconds


def tag_behind(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, float]:
    """ID3v1, APE, both, or ID3v2."""
    first = b"TAG" + b"Infomercial".ljust(125, b"\0")
    items = bytes(int(random.integers(0, 9_000)))
    fields = struct.pack("<III", 2000, len(items) + 32, 1)
    ape = b"APETAGEX" + fields + (0xA0000000).to_bytes(4, "little") + bytes(8) + items
    ape += b"APETAGEX" + fields + (0x80000000).to_bytes(4, "little") + bytes(8)
    second = b"ID3\4\0\0\0\0\x08\0" + bytes(1024)
    return content + (first, ape, ape + first, second)[random.integers(4)], seconds


def zeros_inside(kind: str, content: bytes, seconds: float, random: Random) -> tuple[bytes, float]:
    """A range of bytes set to zero, anywhere."""
    start = int(random.integers(0, len(content)))
    length = int(random.integers(1, 6_000))
    middle = bytes(min(length, len(content) - start))
    return content[:start] + middle + content[start + length :], seconds


CHANGES = (
    joined,
    cut,
    length_by_few,
    length_by_much,
    tag_in_front,
    tag_behind,
    zeros_inside,
)


def with_length(kind: str, content: bytes, changed: Callable[[int], int]) -> bytes:
    """The file with another number of samples in its header."""
    written, _, channels = FORMATS[kind]
    subtype = written["subtype"] if written else "PCM_16"
    unit = {"PCM_16": 2, "PCM_24": 3, "FLOAT": 4}.get(subtype, 1) * channels
    content = bytearray(content)

    def put(place: int, form: str, unit: int = unit, lead: int = 0) -> None:
        (value,) = struct.unpack_from(form, content, place)
        most = 256 ** struct.calcsize(form) - 1
        new = min(most, changed((value - lead) // unit) * unit + lead)
        struct.pack_into(form.upper(), content, place, new)

    if kind.startswith("WAV"):
        put(content.index(b"data") + 4, "<I")
    elif kind == "RF64":
        put(content.index(b"ds64") + 16, "<Q")
    elif kind == "W64":
        put(content.index(b"data\xf3\xac") + 16, "<Q", lead=24)
    elif kind.startswith("AIFF"):
        put(content.index(b"SSND") + 4, ">I", lead=8)
    elif kind == "AU":
        put(8, ">I")
    elif kind == "CAF":
        put(content.index(b"data", 4000) + 4, ">Q", lead=4)
    elif kind.startswith("SPHERE"):
        place = content.index(b"sample_count -i ") + 16
        end = content.index(b"\n", place)
        number = b"%d" % changed(int(content[place:end]))
        header = content[:place] + number + content[end:1024]
        return bytes(header[:1024].ljust(1024, b"\0") + content[1024:])
    elif kind.startswith("FLAC"):
        packed = int.from_bytes(content[18:26])
        samples = min(2**36 - 1, changed(packed & 2**36 - 1))
        content[18:26] = (packed >> 36 << 36 | samples).to_bytes(8)
    elif kind.startswith("MP3"):
        tag = max(content.find(b"Xing", 0, 300), content.find(b"Info", 0, 300))
        if tag >= 0:
            put(tag + 8, ">I", unit=1)
    else:
        page = content.rindex(b"OggS")
        put(page + 6, "<Q", unit=1)
        content[page + 22 : page + 26] = bytes(4)
        content[page + 22 : page + 26] = _ogg_checksum(bytes(content[page:])).to_bytes(4, "little")
    return bytes(content)


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 as in zlib, but from the highest bit on, and without its complements."""
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    value = zlib.crc32(page.translate(turned), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


def _ffmpeg() -> str:
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def ffmpeg_seconds(path: pathlib.Path) -> float:
    """What ffmpeg decodes of a file."""
    command = [_ffmpeg(), "-v", "quiet", "-nostdin", "-i", str(path)]
    command += ["-map", "0:a:0", "-f", "s16le", "-ac", "1", "-ar", "16000", "-"]
    return len(subprocess.run(command, capture_output=True, check=False).stdout) / 32_000


def judged(path: pathlib.Path, seconds: float | None) -> tuple[str, str]:
    """One of OUTCOMES, and what was found."""
    remarks: list[str] = []
    try:
        found = len(read_waveform(path, convert=True, remarks=remarks)) / 16_000
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error), error
        return "refused", str(error)
    outcome = "flagged" if remarks else "equal"
    # Whoever says that the header has no length has to have read all.
    if not all(remark.startswith("its header states no length") for remark in remarks):
        return outcome, "; ".join(remarks)
    expected = ffmpeg_seconds(path) if seconds is None else seconds
    note = f"{found:.3f} s, expected {expected:.3f} s, ffmpeg {ffmpeg_seconds(path):.3f} s"
    if abs(found - expected) <= TOLERANCE:
        return outcome, note
    return "shorter" if found < expected else "longer", note


def run(numbers: Iterable[int], seed: int, folder: pathlib.Path) -> tuple[dict, list[str]]:
    """Outcomes by (format, change), and the failures, of which the files are kept in `folder`.

    The numbers say which files are made; each is the same whichever others are.
    """
    counts: dict[tuple[str, str], collections.Counter] = collections.defaultdict(
        collections.Counter
    )
    failures = []
    pairs = [(kind, change) for kind in FORMATS for change in CHANGES]
    for number in numbers:
        kind, change = pairs[number % len(pairs)]
        random = np.random.default_rng([seed, number])
        content, seconds = change(kind, *coded(kind, random), random)
        path = folder / f"{number:05d}.audio"
        path.write_bytes(content)
        outcome, note = judged(path, seconds)
        counts[kind, change.__name__][outcome] += 1
        if outcome in ("shorter", "longer"):
            failures.append(f"{path}: {kind}, {change.__name__}: {outcome}: {note}")
        else:
            path.unlink()
    return counts, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="audio_fuzz-"))
    counts, failures = run(range(arguments.files), arguments.seed, folder)
    for title, place in (("format", 0), ("change", 1)):
        print(f"| {title} | files | {' | '.join(OUTCOMES)} |")
        print(f"| --- |{' --- |' * (len(OUTCOMES) + 1)}")
        for name in dict.fromkeys(key[place] for key in counts):
            row = sum(
                (count for key, count in counts.items() if key[place] == name),
                collections.Counter(),
            )
            print(f"| {name} | {row.total()} | {' | '.join(str(row[o]) for o in OUTCOMES)} |")
        print()
    print(*failures, sep="\n")
    total = sum(counts.values(), collections.Counter())
    print(
        json.dumps(
            {
                "benchmark": "audio_fuzz",
                "files": arguments.files,
                "seed": arguments.seed,
                **{outcome: total[outcome] for outcome in OUTCOMES},
                "met": not failures,
            }
        )
    )
    if not failures:
        folder.rmdir()
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
