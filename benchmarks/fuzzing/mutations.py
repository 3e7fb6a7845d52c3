"""Changes to valid files that keep enough of them for a parser to go far: by kind of content."""

import io
import json
import random as random_lib
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Random = random_lib.Random
_DEEP, _HUGE = "@deep@", "@huge@"  # written as text, for `json` itself cannot write them
_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 10**8, 2**31, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "x", "../x", "/etc/passwd", "\x1b[31mred", "\0", "a\nb"),
    *("\ud800", "é", "1", "nan", [], {}, [[]], [None], ["x"], [-1], {"x": {}}, "y" * 100_000),
    *(_DEEP, _HUGE),
)
_WORDS = (
    *("\t", "\n", "\r", "\r\n", "\n\n", ",", "|", '"', "'", "\0", "\ufeff", "\x1b[2J", "\u2028"),
    *("\ud7ff", " ", "../", "/", "//", ".", "..", "~", "nan", "inf", "-1", "1e999", "0", "9" * 400),
    *("text", "file", "speaker", "split", "train", "test", "file_name", "=", "{", "}", "[", "]"),
)
_LARGEST = 2**22  # bytes of a changed file; more would be the memory of the fuzzer itself
_NUMBERS = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**63 - 1,
    2**64 - 1,
)


def changed(content: bytes, random: Random, others: list[bytes]) -> bytes:
    """The content with one or more changes; `others` are contents to take pieces from."""
    for _ in range(1 + min(int(random.expovariate(0.7)), 12)):
        content = _once(content, random, others)[:_LARGEST]
    return content


def _once(content: bytes, random: Random, others: list[bytes]) -> bytes:
    if random.random() < 0.85:
        for opened in (_of_zip, _of_safetensors, _of_records, _of_npy):
            if (found := opened(content, random)) is not None:
                part, again = found
                return again(_once(part, random, others))
    if content[:1] in b"{[" and random.random() < 0.8:
        try:
            return _json(content, random)
        except (ValueError, RecursionError):
            pass
    if random.random() < 0.6:
        try:
            return _text(content.decode(), random).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            pass
    return _bytes(content, random, others)


_Opened = tuple[bytes, Callable[[bytes], bytes]] | None


def _of_zip(content: bytes, random: Random) -> _Opened:
    """A member of a zip archive, as NumPy and torch write them."""
    if not content.startswith(b"PK"):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:  # after an earlier change
        return None
    if not members:
        return None
    chosen = random.choice([m for m in members if m[0].filename.endswith(".pkl")] or members)
    if random.random() < 0.3:
        chosen = random.choice(members)

    def again(part: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for info, member in members:
                archive.writestr(info, part if info is chosen[0] else member)
        return stream.getvalue()

    return chosen[1], again


def _of_safetensors(content: bytes, random: Random) -> _Opened:
    """The header."""
    if content[8:9] != b"{" or len(content) < 16:
        return None
    size = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + size], content[8 + size :]
    return header, lambda part: len(part).to_bytes(8, "little") + part + rest


def _of_records(content: bytes, random: Random) -> _Opened:
    """One record of a TFRecord file, with its checksums made anew."""
    import google_crc32c

    def masked(part: bytes) -> bytes:
        crc = google_crc32c.value(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    begins, place = [], 0
    while place + 16 <= len(content) and content[place + 8 : place + 12] == masked(
        content[place : place + 8]
    ):
        begins.append(place)
        place += 16 + int.from_bytes(content[place : place + 8], "little")
    if not begins:
        return None
    begin = random.choice(begins)
    size = int.from_bytes(content[begin : begin + 8], "little")
    record = content[begin + 12 : begin + 12 + size]

    def again(part: bytes) -> bytes:
        length = struct.pack("<Q", len(part))
        framed = length + masked(length) + part + masked(part)
        return content[:begin] + framed + content[begin + 16 + size :]

    return record, again


def _of_npy(content: bytes, random: Random) -> _Opened:
    """The header."""
    if not content.startswith(b"\x93NUMPY\x01\x00") or random.random() < 0.3:
        return None
    size = int.from_bytes(content[8:10], "little")
    header, rest = content[10 : 10 + size], content[10 + size :]
    return (
        header,
        lambda part: content[:8] + (len(part) & 0xFFFF).to_bytes(2, "little") + part + rest,
    )


def _json(content: bytes, random: Random) -> bytes:
    value = json.loads(content)
    places = list(_places(value))
    holder, key = random.choice(places or [([value], 0)])
    kind = random.randrange(6)
    if kind <= 2 or not places:
        holder[key] = random.choice(_VALUES)
    elif kind == 3:
        other, name = random.choice(places)
        holder[key] = json.loads(json.dumps(other[name]))
    elif kind == 4:
        del holder[key]
    elif isinstance(holder, dict):
        holder[str(random.choice(_VALUES))[:100]] = holder[key]
    else:
        holder.extend([holder[key]] * random.choice([1, 2, 1000]))
    text = json.dumps(value)
    text = text.replace(f'"{_DEEP}"', "[" * 20_000 + "]" * 20_000)
    return text.replace(f'"{_HUGE}"', "9" * 6_000).encode()


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items) if isinstance(value, (dict, list)) else ():
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def _text(text: str, random: Random) -> str:
    kind = random.randrange(6)
    if kind == 0:  # lines
        lines = text.split("\n")
        one, other = random.randrange(len(lines)), random.randrange(len(lines))
        change = random.randrange(3)
        if change == 0:
            lines[one], lines[other] = lines[other], lines[one]
        elif change == 1:
            lines.insert(one, lines[other])
        else:
            del lines[one]
        return "\n".join(lines)
    if kind == 1:  # a number
        if numbers := list(re.finditer(r"-?\d+(\.\d+)?", text)):
            found = random.choice(numbers)
            value = str(random.choice([*_NUMBERS, -1, "nan", "inf", "1e400", "0x10", ""]))
            return text[: found.start()] + value + text[found.end() :]
    if kind == 2 and text:  # a word
        if words := list(re.finditer(r"[\w./-]+", text)):
            found = random.choice(words)
            value = random.choice([*_WORDS, random.choice(words)[0], found[0][:4000] * 1000])
            return text[: found.start()] + value + text[found.end() :]
    place = random.randrange(len(text) + 1)
    if kind == 3:
        return text[:place] + random.choice(_WORDS) * random.choice([1, 1, 2, 5000]) + text[place:]
    if kind == 4:
        return text[:place] + text[place + random.choice([1, 1, 5, 100]) :]
    return (
        text[:place]
        + chr(random.choice([*range(128), 0x301, 0x2019, 0xFFFF, 0x1F600]))
        + text[place:]
    )


def _bytes(content: bytes, random: Random, others: list[bytes]) -> bytes:
    data, size = bytearray(content), len(content)
    place = random.randrange(min(size, 256) if random.random() < 0.5 and size else size + 1)
    kind = random.randrange(8)
    if kind == 0 and place < size:
        data[place] ^= 1 << random.randrange(8)
    elif kind == 1 and place < size:
        data[place] = random.choice([0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)])
    elif kind == 2:
        form = random.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
        number = random.choice(_NUMBERS) % 256 ** struct.calcsize(form)
        data[place : place + struct.calcsize(form)] = struct.pack(form, number)
    elif kind == 3:
        del data[place : place + random.choice([1, 2, 4, 100, size])]
    elif kind == 4:
        data[place:place] = random.randbytes(random.choice([1, 2, 4, 100]))
    elif kind == 5:
        length = random.choice([1, 16, 1000])
        data[place : place + length] = bytes(min(length, max(0, size - place)))
    elif kind == 6:
        start = random.randrange(size + 1)
        data[place:place] = data[start : start + random.choice([4, 64, 5000])]
    else:
        other = random.choice(others)
        start = random.randrange(len(other) + 1)
        data[place : place + 64] = other[start : start + 64]
    return bytes(data)
