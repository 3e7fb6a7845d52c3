"""What a file's container counts: joined, cut and falsified files are read whole or refused."""

import io
import pathlib
import re
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from benchmarks import audio_fuzz
from hubert_jax.corpus.audio_files import read_waveform
from hubert_jax.errors import InputError

CORPUS = pathlib.Path(__file__).parents[2] / "examples" / "minilibri"
SPEECH = CORPUS / "dev-mini" / "1898" / "145715" / "1898-145715-0017.opus"
KINDS = {
    "wav": dict(format="WAV"),
    "wavex": dict(format="WAVEX", subtype="PCM_24"),
    "mulaw": dict(format="WAV", subtype="ULAW"),
    "rf64": dict(format="RF64", subtype="PCM_16"),
    "w64": dict(format="W64", subtype="PCM_16"),
    "aiff": dict(format="AIFF"),
    "au": dict(format="AU"),
    "caf": dict(format="CAF", subtype="PCM_16"),
    "sphere": dict(format="NIST", subtype="PCM_16"),
    "sphere mu-law": dict(format="NIST", subtype="ULAW"),
    "sphere A-law": dict(format="NIST", subtype="ALAW"),
    "flac": dict(format="FLAC"),
    "ogg": dict(format="OGG"),
    "opus": dict(format="OGG", subtype="OPUS"),
    "mp3": dict(format="MP3"),
}
# Where a header has its length: the mark before it, how far behind, and its form.
LENGTHS = {
    "wav": (b"data", 4, "<I", 0),
    "rf64": (b"ds64", 16, "<Q", 0),
    "w64": (b"data\xf3\xac", 16, "<Q", 24),
    "aiff": (b"SSND", 4, ">I", 8),
    "au": (b".snd", 8, ">I", 0),
    "caf": (b"data\0\0\0\0", 4, ">Q", 4),
}
SAMPLES = 40_001  # odd, and no multiple of a frame


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return read_waveform(SPEECH)


@pytest.fixture(scope="module")
def coded(speech) -> dict[str, bytes]:
    return {kind: _coded(speech[:SAMPLES], kind) for kind in KINDS}


def _coded(samples: np.ndarray, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, **KINDS[kind])
    return file.getvalue()


def _read(content: bytes, **options) -> tuple[int, list[str]]:
    remarks: list[str] = []
    return len(read_waveform(content, name="a", remarks=remarks, **options)), remarks


def _with_length(content: bytes, kind: str, change) -> bytes:
    mark, behind, form, lead = LENGTHS[kind]
    place = content.index(mark) + behind
    changed = bytearray(content)
    (length,) = struct.unpack_from(form, content, place)
    struct.pack_into(form, changed, place, change(length - lead) + lead)
    return bytes(changed)


def _id3(text: bytes, size: int) -> bytes:
    body = b"TIT2" + size.to_bytes(4) + bytes(3) + text + bytes(size)
    return b"ID3\3\0\0" + bytes(len(body) >> shift & 127 for shift in (21, 14, 7, 0)) + body


@pytest.mark.parametrize("kind", KINDS)
def test_joined_streams_are_read_whole(kind, coded, speech):
    first, second = coded[kind], _coded(speech[SAMPLES : SAMPLES + 24_000], kind)
    assert _read(first) == (SAMPLES, [])
    found, remarks = _read(first + second)
    assert (found, remarks) == (SAMPLES + 24_000, ["2 streams, read one after the other"])
    # Lossless ones, to the sample.
    if kind in ("wav", "flac", "aiff", "sphere"):
        waveform = read_waveform(first + second)
        np.testing.assert_array_equal(waveform, speech[: SAMPLES + 24_000])
    mixed = first + coded["opus"] + _id3(b"Info", 10) + second
    if kind != "flac":
        assert _read(mixed)[0] == 2 * SAMPLES + 24_000
    else:  # whose last frame does not say where it ends
        with pytest.raises(InputError, match="bytes behind its audio"):
            _read(mixed)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_off_files_are_refused(kind, coded):
    for share in (0.03, 0.6, 0.9):
        cut = coded[kind][: int(len(coded[kind]) * share)]
        # A tag in front may be larger than the audio, and have any letters in it.
        for tag in (b"", _id3(b"Information theory, lecture 3", 50), _id3(b"Infomercial", 200_000)):
            with pytest.raises(InputError, match="cut off|damaged"):
                _read(tag + cut)


@pytest.mark.parametrize("kind", KINDS)
def test_tags_in_front_and_behind_are_no_audio(kind, coded):
    content = coded[kind]
    ape = struct.pack("<8sIIII8x", b"APETAGEX", 2000, 532, 1, 1 << 31)
    ape = b"APETAGEX" + bytes(24) + bytes(500) + ape
    for text in (b"Information theory", b"Xing", b"fLaC\0\0\0\x22", b"\xff\xfb\x90\x64"):
        assert _read(_id3(text, 200_000) + bytes(300) + content) == (SAMPLES, [])
    for tag in (b"TAG" + bytes(125), ape, ape + b"TAG" + bytes(125), _id3(b"OggS", 50)):
        assert _read(content + tag) == (SAMPLES, [])
    with pytest.raises(InputError, match=r"\d+ bytes behind its audio are neither"):
        _read(content + b"\x81\x7f\x12" * 3000)


@pytest.mark.parametrize("kind", LENGTHS)
def test_lengths_that_are_wrong_or_missing(kind, coded):
    content = coded[kind]
    few = SAMPLES * 2 + 18
    found, remarks = _read(_with_length(content, kind, lambda length: few))
    expected = f"its header counts {SAMPLES + 9} samples, {SAMPLES} are there"
    assert found == SAMPLES and remarks[0] == expected
    found, remarks = _read(_with_length(content, kind, lambda length: length - 18))
    assert found == SAMPLES - 9 and "bytes behind its audio" in remarks[0]
    with pytest.raises(InputError, match=f"cut off, {SAMPLES} samples found, {SAMPLES * 2} exp"):
        _read(_with_length(content, kind, lambda length: SAMPLES * 4))
    with pytest.raises(InputError, match="bytes behind its audio are neither audio nor a tag"):
        _read(_with_length(content, kind, lambda length: length // 2))
    most = 256 ** struct.calcsize(LENGTHS[kind][2]) - 1
    for unknown in (0, most):
        changed = _with_length(content, kind, lambda _, unknown=unknown: min(unknown, most - 24))
        found, remarks = _read(changed)
        expected = f"its header states no length: read to its end, {SAMPLES} samples"
        assert (found, remarks) == (SAMPLES, [expected])


def test_lengths_of_flac(coded):
    def with_total(samples: int) -> bytes:
        packed = int.from_bytes(coded["flac"][18:26]) >> 36 << 36 | samples
        return coded["flac"][:18] + packed.to_bytes(8) + coded["flac"][26:]

    assert _read(with_total(0))[0] == SAMPLES  # from a pipe
    assert "counts 40010 samples, 40001 are there" in _read(with_total(SAMPLES + 9))[1][0]
    assert "40001 samples are there, 39992 could be decoded" in _read(with_total(SAMPLES - 9))[1]
    for wrong in (SAMPLES // 2, SAMPLES * 2, 2**36 - 1):
        with pytest.raises(InputError, match=f"40001 samples found, {wrong} expected"):
            _read(with_total(wrong))


@pytest.mark.parametrize("kind", ["sphere", "sphere mu-law", "sphere A-law"])
def test_spellings_of_sphere(kind, coded):
    content = coded[kind]
    header, audio = content[:1024].rstrip(b"\0"), content[1024:]
    for spelling in (b"-s5 %d", b"-r %d.0", b" -i  %d"):
        said = header.replace(b"-i %d" % SAMPLES, spelling % SAMPLES).ljust(1024, b"\0")
        assert _read(said + audio) == (SAMPLES, [])
        with pytest.raises(InputError, match=f"samples found, {SAMPLES} expected"):
            _read(said + audio[: len(audio) // 2])
    # What cannot be counted is not taken for a header without a length.
    for field, found in (
        (rb"sample_n_bytes.*\n", b""),
        (rb"sample_count.*", b"sample_count -i -7"),
        (rb"sample_count.*", b"sample_count -s4 many"),
    ):
        said = re.sub(field, found, header).ljust(1024, b"\0")
        with pytest.raises(InputError, match="no whole number is sample_"):
            _read(said + audio)
    for found in (b"", b"sample_count -i 0\n"):
        said = re.sub(rb"sample_count.*\n", found, header).ljust(1024, b"\0")
        assert _read(said + audio)[1][0].startswith("its header states no length")


def test_frames_of_mp3(coded):
    content = coded["mp3"]
    tag = max(content.find(b"Xing"), content.find(b"Info")) + 8
    frames = int.from_bytes(content[tag : tag + 4])

    def with_frames(number: int) -> bytes:
        return content[:tag] + number.to_bytes(4) + content[tag + 4 :]

    assert _read(with_frames(frames + 1))[1] and _read(with_frames(frames - 1))[1]
    for wrong in (0, frames // 2, 2 * frames, 2**32 - 1):
        with pytest.raises(InputError, match=f"{SAMPLES} samples found, .* expected"):
            _read(with_frames(wrong))
    # Without the frame of the tag nobody knows how many there have to be: all that are there.
    length = content.index(b"\xff\xf3", 8)  # the second frame
    bare = content[length:]
    found, remarks = _read(bare)
    assert abs(found - frames * 576) <= 576
    assert remarks == [f"its header states no length: read to its end, {found} samples"]
    middle = bare.index(b"\xff\xf3", len(bare) // 2)
    found, remarks = _read(bare[:middle])  # between two frames
    assert SAMPLES * 0.4 < found < SAMPLES * 0.6
    assert remarks == [f"its header states no length: read to its end, {found} samples"]
    for more in (1, 2, 3, 4, 41, length - 1):  # within a frame, and within its header
        for tag in (b"", b"TAG" + bytes(125)):
            with pytest.raises(InputError, match=f"cut off, .* last frame has {more} bytes of"):
                _read(bare[: middle + more] + tag)


def test_decoders_of_mp3_print_nothing(coded, capfd):
    tag = max(coded["mp3"].find(b"Xing"), coded["mp3"].find(b"Info")) + 12  # a count of bytes
    for said in (0, 1, 2**32 - 1):
        content = coded["mp3"][:tag] + said.to_bytes(4) + coded["mp3"][tag + 4 :]
        assert _read(content) == (SAMPLES, [])
        with pytest.raises(InputError, match="cut off"):
            _read(content[: len(content) // 2])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("head", ["fff75080", "fff55080", "fff30880", "fff15080"])
def test_other_frames_of_mpeg_are_refused(head, coded):
    """Of layers I and II, of layer III without a bitrate, and ADTS."""
    frames = (bytes.fromhex(head) + bytes(140)) * 300
    with pytest.raises(InputError, match="corrupt or not audio"):
        _read(frames)
    with pytest.raises(InputError, match="43200 bytes behind its audio are neither"):
        _read(coded["mp3"] + frames)


def test_chunks_in_front_and_behind(coded, speech):
    wav = coded["wav"]
    chunk = b"bext" + (603).to_bytes(4, "little") + b"data" * 150 + b"\1\2\3" + b"\0"
    text = b"junk" + (11).to_bytes(4, "little") + b"INFOISFT\1\1\1" + b"\0"
    for content in (
        wav[:12] + chunk + wav[12:],
        wav + chunk + text,
        wav + text[:-1],
        wav[:12] + text + wav[12:] + bytes(50_000),
    ):
        assert _read(content)[0] == SAMPLES
    eight = io.BytesIO()
    soundfile.write(eight, speech[:SAMPLES], 16_000, format="WAV", subtype="PCM_U8")
    assert _read(eight.getvalue().rstrip(b"\0") + text)[:2] == (SAMPLES, [])  # without its padding
    assert _read(eight.getvalue() + eight.getvalue())[0] == 2 * SAMPLES


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "GSM610"])
def test_what_nobody_can_check_is_refused_or_taken_when_asked(subtype, speech):
    file = io.BytesIO()
    soundfile.write(file, speech[:SAMPLES], 16_000, format="WAV", subtype=subtype)
    with pytest.raises(InputError, match=f"WAV of {subtype}: nobody can tell .*--config.unchecked"):
        _read(file.getvalue())
    found, remarks = _read(file.getvalue(), unchecked=True)
    assert found >= SAMPLES and remarks == [f"WAV of {subtype}: not known to be complete"]
    with pytest.raises(InputError, match="cut off, .* bytes found"):
        _read(file.getvalue()[:5_000], unchecked=True)


def test_headers_that_claim_billions_take_no_memory(coded):
    huge = {
        "w64": _with_length(coded["w64"], "w64", lambda _: 2**61),
        "caf": _with_length(coded["caf"], "caf", lambda _: 2**61),
        "rf64": _with_length(coded["rf64"], "rf64", lambda _: 2**61),
        "sphere": coded["sphere"].replace(b"-i 40001\n", b"-i 99999999999999999\n")[:1024],
        "id3": b"ID3\3\0\0\x7f\x7f\x7f\x7f" + coded["mp3"],
        "ape": coded["mp3"] + struct.pack("<8sIIII8x", b"APETAGEX", 2000, 2**32 - 1, 9, 0),
        "chunk": b"RIFF\xff\xff\xff\xffWAVEjunk\xff\xff\xff\xff" + coded["wav"][12:],
    }
    tracemalloc.start()
    for content in huge.values():
        with pytest.raises(InputError):
            _read(content)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


def test_streams_without_number_are_not_all_opened(coded):
    one = struct.pack(">4sIIIII", b".snd", 24, 2, 3, 16_000, 1) + b"\0\1"
    with pytest.raises(InputError, match="more than 1000 streams"):
        _read(one * 2000)


def _pages(content: bytes) -> list[bytes]:
    found = []
    while content:
        segments = content[27 : 27 + content[26]]
        length = 27 + len(segments) + sum(segments)
        found.append(content[:length])
        content = content[length:]
    return found


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_pages_of_ogg(kind, speech):
    *most, last = _pages(_coded(speech, kind))
    headers = next(i for i, page in enumerate(most) if any(page[6:14]))
    with pytest.raises(InputError, match="the page that ends an Ogg stream is not there"):
        _read(b"".join(most))
    with pytest.raises(InputError, match=f"samples found, {len(speech)} expected"):
        _read(b"".join([*most[:-2], most[-1], last]))
    # As it is recorded from a station: it begins where nobody counted from.
    found, _ = _read(b"".join([*most[:headers], *most[headers + 2 :], last]))
    skipped = int.from_bytes(most[headers + 1][6:14], "little") / (3 if kind == "opus" else 1)
    assert abs(found - (len(speech) - skipped)) < 1600
    video = most[0][:5] + b"\2" + most[0][6:14] + b"\7\7\7\7" + most[0][18:]
    with pytest.raises(InputError, match="an Ogg file of several streams at once"):
        _read(b"".join([most[0], video, *most[1:], last]))


@pytest.mark.parametrize("kind", ["Ogg Vorbis", "Ogg Opus"])
def test_last_pages_that_say_to_stop_early(kind):
    content, _ = audio_fuzz.coded(kind, np.random.default_rng(0))
    for share in (0, 0.5, 0.8, 1.5):
        with pytest.raises(InputError, match=r"\d+ samples found, \d+ expected|0 samples"):
            _read(audio_fuzz.with_length(kind, content, lambda n, share=share: int(n * share)))
