"""What files hold by their containers: a count of samples beside the decoder's own.

By the formats' definitions: RIFF and EBU Tech 3306 (WAV, RF64), AIFF-C, CAF, Wave64, AU, SPHERE,
RFC 9639 (FLAC), 3533, 7845 and Vorbis I (Ogg), ISO 11172-3 with the Xing, VBRI and LAME tags (MP3).
"""

import dataclasses
import functools
import io
import os
import re
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from hubert_jax.errors import InputError

FORMATS = "WAV, FLAC, Ogg Vorbis, Ogg Opus, MP3, AIFF, AU, CAF, W64 or SPHERE"
_MOST_STREAMS, _MOST_CHUNKS = 1000, 10_000
_BLOCK = 1 << 16
_LONGEST_ZEROS = 1 << 24  # between a tag and the audio


class _Edit(NamedTuple):
    """What is to be read in place of some bytes of a file."""

    place: int
    removed: int
    content: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """One stream of a file: its bytes, and how much audio these are.

    `held` and `claimed` are samples, `rate` of them a second; without a `rate`, bytes of audio.
    """

    start: int
    end: int
    held: int  # what is there
    claimed: int | None  # what the header says; None if it leaves that out
    rate: int | None = None
    edit: _Edit | None = None  # with which decoders read all of it

    def covers(self, size: int) -> bool:
        """Whether it is all of a file, as it is."""
        return (self.start, self.end, self.edit) == (0, size, None)

    def of(self, file: BinaryIO) -> BinaryIO:
        """A file of this stream alone, for decoders to read."""
        return io.BufferedReader(_Section(file, self), _BLOCK)


def scan(file: BinaryIO, size: int, name: str) -> tuple[list[Stream], int, bool]:
    """A file's streams, one behind the other, without tags, as far as its containers are known.

    Also the number of bytes behind them, and whether these are zeros only. No audio is decoded.
    Raises InputError, with `name`, for what is cut off, or mixed in a way that nobody reads.
    """
    data = _Bytes(file, _before_tags(file, size), name)
    streams: list[Stream] = []
    position = data.after_tags(0)
    while True:
        begin = data.after_tags(data.after_zeros(position))
        scanner = _scanner(data, begin)
        if scanner is None:
            left = data.size - position
            return streams, left, left > 0 and begin == data.size
        if len(streams) == _MOST_STREAMS:
            raise InputError(f"{name}: more than {_MOST_STREAMS} streams in one file")
        stream = scanner(data, begin)
        if stream.end <= begin:
            raise InputError(f"{name}: cut off or damaged in a header, at byte {begin}")
        streams.append(stream)
        position = data.after_tags(stream.end)


class _Bytes:
    """A file's bytes up to `size`; one block of them is held."""

    def __init__(self, file: BinaryIO, size: int, name: str):
        self.size, self.name = size, name
        self._file, self._start, self._block = file, 0, b""

    def at(self, position: int, count: int) -> bytes:
        """Up to `count` bytes, fewer at the end."""
        offset = position - self._start
        if offset < 0 or offset + count > len(self._block):
            self._file.seek(position)
            self._block = self._file.read(max(0, min(max(count, _BLOCK), self.size - position)))
            self._start, offset = position, 0
        return self._block[offset : offset + count]

    def find(self, pattern: re.Pattern[bytes], length: int, position: int) -> int:
        """The place of the first match, of `length` bytes, from `position` on, or the end."""
        while len(self.at(position, length)) == length:
            if found := pattern.search(self._block, position - self._start):
                return self._start + found.start()
            position = self._start + len(self._block) - length + 1
        return self.size

    def after_zeros(self, position: int) -> int:
        """The place of the next byte that is not zero, or the end."""
        for start in range(position, min(self.size, position + _LONGEST_ZEROS), _BLOCK):
            block = self.at(start, min(_BLOCK, self.size - start))
            if rest := block.lstrip(b"\0"):
                return start + len(block) - len(rest)
        return min(self.size, max(position, position + _LONGEST_ZEROS))

    def after_tags(self, position: int) -> int:
        """The place behind ID3 and APE tags that begin at `position`."""
        while True:
            head = self.at(position, 32)
            if head[:3] == b"ID3" and len(head) >= 10 and max(head[6:10]) < 128:
                length = functools.reduce(lambda value, byte: value << 7 | byte, head[6:10])
                length += 20 if head[5] & 0x10 else 10
            elif head[:3] == b"TAG" and self.size - position >= 128:
                length = 128
            elif head[:8] == b"APETAGEX" and len(head) == 32:
                length = 32 + int.from_bytes(head[12:16], "little")
            else:
                return position
            position = min(self.size, position + length)


def _before_tags(file: BinaryIO, size: int) -> int:
    """Where the ID3v1 and APE tags begin that end a file."""
    while True:
        file.seek(max(0, size - 128))
        tail = file.read(min(size, 128))
        foot = tail[-32:]
        if len(tail) == 128 and tail[:3] == b"TAG":
            size -= 128
        elif foot[:8] == b"APETAGEX":
            length, flags = struct.unpack("<I4xI", foot[12:24])
            size -= min(size, max(length, 32) + (32 if flags >> 31 else 0))
        else:
            return size


def _scanner(data: _Bytes, start: int) -> Callable[[_Bytes, int], Stream] | None:
    """What reads the container that begins there, if one does."""
    head = data.at(start, 16)
    for magic, form, scanner in _CONTAINERS:
        if head.startswith(magic) and head[8:12] in (form or (head[8:12],)):
            return scanner
    frame = _mp3_frame(head[:4])
    if frame is not None:  # one alone could be chance
        end = start + frame.bytes
        following = data.at(end, 4)
        alone = end <= data.size and (len(following) < 4 or data.after_tags(end) > end)
        if alone or _mp3_frame(following):
            return _mp3
    return None


class _Layout(NamedTuple):
    """How a container writes its chunks."""

    first: int  # bytes in front of them
    name: int  # bytes
    length: str
    counts_itself: int  # bytes of the chunk's own header that its length counts
    aligned: int
    audio: bytes  # the chunk's name
    lead: int  # bytes in front of the audio in it
    unknown: Callable[[int], bool]  # lengths that writers leave who cannot go back


def _unknown_32(length: int) -> bool:
    # The largest number, less a header; and sox's and arecord's, near the largest with a sign.
    return length >= 0xFFFFFF00 or 0x7FFFF000 <= length <= 0x80000000


def _unknown_64(length: int) -> bool:
    return not 0 <= length < 1 << 62


_WAVE = _Layout(12, 4, "<I", 0, 2, b"data", 0, _unknown_32)


def _chunked(layout: _Layout, data: _Bytes, start: int) -> Stream:
    head = layout.name + struct.calcsize(layout.length)
    position, end = start + layout.first, data.size
    claimed: int | None = 0
    held, found, edit, long = 0, False, None, None
    for _ in range(_MOST_CHUNKS):
        if position + head > end:
            break
        entry = data.at(position, head)
        name, body = entry[: layout.name], position + head
        (length,) = struct.unpack(layout.length, entry[layout.name :])
        length -= layout.counts_itself
        if (found and not _printable(name[:4])) or _scanner(data, position) is not None:
            break
        if name == b"ds64" and len(data.at(body, 16)) == 16:
            long = body + 8, int.from_bytes(data.at(body + 8, 8), "little")
        if name == layout.audio:
            found = True
            place, form = position + layout.name, layout.length
            if long is not None and length == 0xFFFFFFFF:
                (place, length), form = long, "<Q"
                length = 0 if _unknown_64(length) else length
            there = end - body
            nothing = length <= layout.lead < there and not _is_chunk(data, body + length, layout)
            if nothing or (form == layout.length and layout.unknown(length)):
                length, claimed = there, None
            elif claimed is not None:
                claimed += length - layout.lead
            held += max(0, min(length, there) - layout.lead)
            if claimed is None or length > there:
                filled = there + layout.counts_itself
                if form[-1] in "qQ" or filled < 1 << 32:
                    edit = _Edit(place, struct.calcsize(form), struct.pack(form, filled))
                position = end
                break
        elif not 0 <= length <= end - body:
            break
        position = body + length
        padding = -(length + layout.counts_itself) % layout.aligned
        if not any(data.at(position, padding)):  # some writers leave it out
            position = min(end, position + padding)
    if not found:
        raise InputError(f"{data.name}: cut off before its audio, or damaged in front of it")
    return Stream(start, position, held, claimed, edit=edit)


def _is_chunk(data: _Bytes, position: int, layout: _Layout) -> bool:
    head = layout.name + struct.calcsize(layout.length)
    entry = data.at(position, head)
    if len(entry) < head:
        return not any(entry)
    (length,) = struct.unpack(layout.length, entry[layout.name :])
    return _printable(entry[:4]) and 0 <= length <= data.size - position


def _printable(name: bytes) -> bool:
    return all(32 <= byte < 127 for byte in name)


def _au(data: _Bytes, start: int) -> Stream:
    offset, length = struct.unpack(">4xII", data.at(start, 12).ljust(12, b"\0"))
    stream = _plain(data, start, offset, None if _unknown_32(length) else length)
    unknown = _Edit(start + 8, 4, b"\xff" * 4) if stream.claimed is None else None
    return dataclasses.replace(stream, edit=unknown)


def _sphere(data: _Bytes, start: int) -> Stream:
    header = data.at(start, 1 << 16)
    offset = re.match(rb"NIST_1A\n *(\d{1,9})\n", header)
    if offset is None:
        raise InputError(f"{data.name}: its SPHERE header does not say its size")
    header = header[: int(offset[1])]
    claimed = None
    if re.search(rb"^\s*sample_count\b", header, re.MULTILINE):
        claimed = 1
        for name in ("sample_count", "channel_count", "sample_n_bytes"):
            # An integer, but libsndfile writes some as a string.
            pattern = rf"^\s*{name}[ \t]+-(?:i|r|s\d+)[ \t]+(\d{{1,18}})(?:\.0*)?\s*$"
            line = re.search(pattern.encode(), header, re.MULTILINE)
            if line is None:
                raise InputError(
                    f"{data.name}: no whole number is {name} in its SPHERE header; expected one, "
                    "for it states a sample_count"
                )
            claimed *= int(line[1])
    return _plain(data, start, int(offset[1]), claimed)


def _plain(data: _Bytes, start: int, offset: int, claimed: int | None) -> Stream:
    """A header, and audio behind it."""
    there = max(0, data.size - start - offset)
    claimed = claimed or None  # it may never have been filled in
    held = there if claimed is None else min(claimed, there)
    return Stream(start, min(data.size, start + offset + held), held, claimed)


_FLAC_START = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9]")


def _flac(data: _Bytes, start: int) -> Stream:
    info = data.at(start + 8, 34)
    if len(info) < 34:
        raise InputError(f"{data.name}: cut off in its header")
    _, longest, largest = struct.unpack(">HH3x3s", info[:10])
    packed = int.from_bytes(info[10:18])
    rate, channels, bits = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    claimed = packed & 2**36 - 1
    end = data.find(_FLAC_START, 8, start + 4)
    place, held = _flac_last_frame(data, start + 42, end, longest, channels)
    # What is far behind the last frame is not the stream's.
    room = int.from_bytes(largest) or longest * channels * (bits + 7) // 8 + 64
    return Stream(start, min(end, place + room), held, claimed or None, rate)


def _flac_last_frame(
    data: _Bytes, start: int, end: int, longest: int, channels: int
) -> tuple[int, int]:
    """(place, number of the sample behind it) of a FLAC stream's last frame."""
    while end > start:
        begin = max(start, end - _BLOCK // 4)
        block = data.at(begin, end - begin + 16)  # headers are up to 16 bytes long
        for found in reversed([match.start() for match in _FLAC_FRAME.finditer(block)]):
            samples = _flac_samples(block[found : found + 16], longest, channels)
            if samples is not None:
                return begin + found, samples
        end = begin
    raise InputError(f"{data.name}: corrupt or cut off, no frame of FLAC is in it")


def _flac_samples(head: bytes, longest: int, channels: int) -> int | None:
    """The number of the sample behind the frame that has this header; None if it is none."""
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8 or head[3] & 1:
        return None
    kind, rate, assigned = head[2] >> 4, head[2] & 15, head[3] >> 4
    if (assigned + 1 if assigned < 8 else 2) != channels or kind == 0 or rate == 15:
        return None
    coded = 8 - (head[4] ^ 0xFF).bit_length()  # as UTF-8 would be: bytes, 0 for one below 128
    if coded in (1, 8):
        return None
    number = head[4] & 0x7F >> coded
    at = 4 + max(1, coded)
    for byte in head[5:at]:
        number = number << 6 | byte & 0x3F
    size_bytes = {6: 1, 7: 2}.get(kind, 0)
    check = at + size_bytes + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if len(head) <= check or _crc8(head[:check]) != head[check]:
        return None
    if size_bytes:
        size = int.from_bytes(head[at : at + size_bytes]) + 1
    else:
        size = 192 if kind == 1 else 576 << kind - 2 if kind < 6 else 256 << kind - 8
    if size > longest:
        return None
    return (number if head[1] & 1 else number * longest) + size


def _crc8(content: bytes) -> int:
    value = 0
    for byte in content:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ (0x107 if value & 0x80 else 0)) & 0xFF
    return value


_OPUS_BLOCKS = 0, 5760  # the most samples of a packet


def _ogg(data: _Bytes, start: int) -> Stream:
    """A link of a chain: pages up to the next one that begins a stream."""
    position, unit, skipped, blocks, first, ended = start, 0, 0, (0, 0), None, False
    held = last = 0
    while True:
        head = data.at(position, 27 + 255)
        table = head[27 : 27 + head[26]] if len(head) >= 27 and head[:4] == b"OggS" else b""
        length = 27 + len(table) + sum(table)
        if not table or len(table) < head[26] or position + length > data.size:
            break
        begins, granule = head[5] & 2, int.from_bytes(head[6:14], "little", signed=True)
        if begins and position > start:
            if first is not None or ended:
                break
            raise InputError(
                f"{data.name}: an Ogg file of several streams at once; expected one of Vorbis or "
                "Opus"
            )
        if begins:
            body = data.at(position + 27 + len(table), 30)
            if body[:7] == b"\x01vorbis" and len(body) == 30:
                unit = int.from_bytes(body[12:16], "little")
                blocks = 1 << (body[28] & 15), 1 << (body[28] >> 4)
            elif body[:8] == b"OpusHead":
                unit, skipped = 48_000, int.from_bytes(body[10:12], "little")
                blocks = _OPUS_BLOCKS
        elif granule > 0 or (granule == 0 and first is not None):
            samples = _ogg_samples(data, position, table, bool(head[5] & 1), blocks)
            if first is None:
                # A recording of what was being sent does not begin at 0.
                packets = len(table) - table.count(255)
                most = packets * blocks[1] if blocks[0] else samples
                first = 0 if granule <= most + blocks[1] else granule - samples
            # The last page may say to stop early, but by one packet at most.
            there = last + samples
            held = there if there - granule > blocks[1] else granule
            last = granule
        ended = bool(head[5] & 4)
        position += length
    if not unit:
        raise InputError(f"{data.name}: an Ogg stream of another kind; expected Vorbis or Opus")
    if not ended:
        raise InputError(
            f"{data.name}: cut off or damaged, the page that ends an Ogg stream is not there; "
            "copy the file again"
        )
    before = (first or 0) + skipped
    return Stream(start, position, max(0, held - before), max(0, last - before), unit)


def _ogg_samples(data: _Bytes, page: int, table: bytes, continues: bool, blocks: tuple) -> int:
    """The samples of the packets that lie in a page, as encoders in use make them."""
    samples, place, began, before = 0, page + 27 + len(table), None, None
    for length in table:
        began = place if began is None else began
        place += length
        if length == 255:
            continue
        head = data.at(began, 2).ljust(2, b"\0")
        if continues:  # it began in another page
            continues = False
        elif blocks == _OPUS_BLOCKS:
            mode, count = head[0] >> 3, (1, 2, 2, head[1] & 63)[head[0] & 3]
            frames = (480, 960, 1920, 2880) if mode < 12 else (480, 960) * 2
            frames = (120, 240, 480, 960) if mode > 15 else frames
            samples += min(count * frames[mode & 3], blocks[1])
        else:  # of Vorbis: a quarter of the block before and of this one, short or long
            block = blocks[head[0] >> 1 & 1]
            samples += ((before or block) + block) // 4
            before = block
        began = None
    return samples


class _Frame(NamedTuple):
    """An MP3 frame."""

    bytes: int
    samples: int
    rate: int
    tag: int  # where an encoder's tag would begin in it


_DECODER_DELAY = 529  # samples that decoders leave out who find an encoder's tag
_BITRATES = (  # kbit/s, of MPEG-1, and of 2 and 2.5
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)


@functools.lru_cache(maxsize=4096)
def _mp3_frame(head: bytes) -> _Frame | None:
    """What a frame's header says; None if it is none of layer III."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:
        return None
    version, bitrate, rate = head[1] >> 3 & 3, head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or bitrate in (0, 15) or rate == 3:
        return None
    first = version == 3
    hertz = (44_100, 48_000, 32_000)[rate] >> (0, 1, 2)[0 if first else 1 if version == 2 else 2]
    samples = 1152 if first else 576
    length = samples // 8 * _BITRATES[not first][bitrate] * 1000 // hertz + (head[2] >> 1 & 1)
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Frame(length, samples, hertz, 4 + side)


def _mp3(data: _Bytes, start: int) -> Stream:
    """Frames up to the next tag; the encoder's own counts them."""
    opening = data.at(start, 4)
    first = _mp3_frame(opening)
    assert first is not None
    position, frames, trimmed, claimed, size_place = start, 0, 0, None, 0
    tagged = data.at(start, min(first.bytes, 200))
    xing = tagged[first.tag :]
    if xing[:4] in (b"Xing", b"Info"):
        flags, place = int.from_bytes(xing[4:8]), 8
        if flags & 1:
            claimed = int.from_bytes(xing[8:12])
            size_place = start + first.tag + 12 if flags & 2 else 0
        place += sum(size for bit, size in ((1, 4), (2, 4), (4, 100), (8, 4)) if flags & bit)
        gaps = int.from_bytes(data.at(start + first.tag + place + 21, 3))
        trimmed = (gaps >> 12) + (gaps & 0xFFF) or _DECODER_DELAY
    elif tagged[36:40] == b"VBRI":
        claimed = int.from_bytes(tagged[50:54])
    if claimed is not None or xing[:4] in (b"Xing", b"Info"):
        position += first.bytes  # it holds no audio
    while True:
        head = data.at(position, 4)
        frame = _mp3_frame(head + opening[len(head) :])  # itself it may be cut off
        if frame is None or frame.rate != first.rate or not head:
            break
        if (there := data.size - position) < frame.bytes:
            if claimed is not None:  # the counts tell
                break
            raise InputError(
                f"{data.name}: cut off, its last frame has {there} bytes of {frame.bytes}; copy "
                "the file again"
            )
        if data.at(position + frame.tag, 4) in (b"Xing", b"Info"):
            break
        position, frames = position + frame.bytes, frames + 1
    edit = None
    if claimed is None:  # decoders would guess the length by the first frame's size
        sync, kind, rates, mode = opening
        head = bytes([sync, kind | 1, rates & 0x0D | 0xE0, mode])  # room, no checksum
        tag = b"Info" + (1).to_bytes(4) + frames.to_bytes(4)
        told = _mp3_frame(head)
        assert told is not None
        trimmed = _DECODER_DELAY
        edit = _Edit(start, 0, (head.ljust(told.tag, b"\0") + tag).ljust(told.bytes, b"\0"))
    else:
        claimed = max(0, claimed * first.samples - trimmed)
        size = min(position - start, 2**32 - 1).to_bytes(4)
        if size_place and data.at(size_place, 4) != size:  # the decoder would print a warning
            edit = _Edit(size_place, 4, size)
    held = max(0, frames * first.samples - trimmed)
    return Stream(start, position, held, claimed, first.rate, edit)


def _by_chunks(**layout: Any) -> Callable[[_Bytes, int], Stream]:
    return functools.partial(_chunked, _WAVE._replace(**layout))


_CONTAINERS: tuple[tuple[bytes, tuple[bytes, ...], Callable[[_Bytes, int], Stream]], ...] = (
    (b"RIFF", (b"WAVE",), _by_chunks()),
    (b"RF64", (b"WAVE",), _by_chunks()),
    (b"BW64", (b"WAVE",), _by_chunks()),
    (b"RIFX", (b"WAVE",), _by_chunks(length=">I")),
    (b"FORM", (b"AIFF", b"AIFC"), _by_chunks(length=">I", audio=b"SSND", lead=8)),
    (b"caff", (), _by_chunks(first=8, length=">q", lead=4, unknown=_unknown_64)),
    (
        b"riff\x2e\x91\xcf\x11",
        (),
        _by_chunks(
            first=40,
            name=16,
            length="<Q",
            counts_itself=24,
            aligned=8,
            audio=b"data" + bytes.fromhex("f3acd3118cd100c04f8edb8a"),
            unknown=_unknown_64,
        ),
    ),
    (b".snd", (), _au),
    (b"NIST_1A\n", (), _sphere),
    (b"fLaC", (), _flac),
    (b"OggS", (), _ogg),
)


class _Section(io.RawIOBase):
    """A stream of a file as a file of its own, edited."""

    def __init__(self, file: BinaryIO, stream: Stream):
        start, edit = stream.start, stream.edit or _Edit(stream.start, 0, b"")
        self._file, self._position, self._edit = file, 0, edit.content
        self._start, self._insert = start, edit.place - start
        self._rest = self._insert + len(edit.content)
        self._moved = edit.place + edit.removed - self._rest
        self._size = stream.end - self._moved

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        at, wanted = self._position, len(buffer)
        if self._insert <= at < self._rest:
            piece = self._edit[at - self._insert :][:wanted]
        else:
            before = at < self._insert
            self._file.seek(at + (self._start if before else self._moved))
            last = self._insert if before else self._size
            piece = self._file.read(max(0, min(wanted, last - at)))
        buffer[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)
