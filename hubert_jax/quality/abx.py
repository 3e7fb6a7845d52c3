"""ABX: how often a sound X lies nearer to B, another sound, than to A, of the same phone.

Triphones that differ in their middle phone (Schatz et al. 2013), with the figures of libri-light's
eval_ABX, which ZeroSpeech 2021 uses: frames, distances, ties and the order of averages are its own.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hubert_jax import storage
from hubert_jax.errors import InputError
from hubert_jax.units.alignments import SILENCE, Alignment

_SILENCES = {SILENCE, "sil", "sp", "spn", "SPN"}
_PAIRS = 2**18  # whose distances are held together, about
_NUMBERS = 2**24  # of frames, or distances, on the device together
_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128)  # frames; one program each


@dataclasses.dataclass(frozen=True)
class AbxConfig:
    """ABX error of units or features, within and across speakers."""

    units: bool = False  # scores units, each as far from any other
    features: bool = False  # scores what units are made from: MFCC, layers
    max_items: int = 10  # of one phone, context and speaker, drawn by the seed; 0: all
    max_speakers: int = 5  # of X for each A and B, across speakers; 0: all

    def __post_init__(self) -> None:
        for key in ("max_items", "max_speakers"):
            if getattr(self, key) < 0:
                raise InputError(f"config.abx.{key}={getattr(self, key)}: expected 0 or more")


@dataclasses.dataclass(frozen=True)
class Item:
    """A triphone, from `onset` to `offset` seconds; its `context` is both neighbours."""

    utterance: str
    onset: float
    offset: float
    phone: str
    context: tuple[str, str]
    speaker: str


def triphones(alignments: Mapping[str, Alignment], speakers: Mapping[str, str]) -> list[Item]:
    """Every phone of the alignments that has two neighbours, none of the three silent."""
    found = []
    for name, alignment in alignments.items():
        phones = alignment.phones.tolist()
        for i in range(1, len(phones) - 1):
            before, phone, after = phones[i - 1 : i + 2]
            if not _SILENCES & {before, phone, after}:
                times = float(alignment.starts[i - 1]), float(alignment.ends[i + 1])
                found.append(Item(name, *times, phone, (before, after), speakers[name]))
    return found


def read_items(path: str) -> list[Item]:
    """The items of a ZeroSpeech file, with a line of titles; InputError where it is none."""
    try:
        with open(storage.path(path), encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: items cannot be read ({error})") from None
    found = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            name, onset, offset, phone, before, after, speaker = line.split()
            found.append(Item(name, float(onset), float(offset), phone, (before, after), speaker))
        except ValueError:
            raise InputError(
                f"{path}, line {number}: found {line[:80]!r}, expected '#file onset offset #phone "
                "prev-phone next-phone speaker'"
            ) from None
    return found


def abx(
    items: Sequence[Item],
    utterances: Iterable[tuple[str, np.ndarray]],
    rate: int,
    config: AbxConfig,
    seed: int = 0,
) -> dict[str, float | None]:
    """ABX error `within` and `across` speakers; chance is 0.5, None where there is no triple.

    `utterances` are (id, float (T, D)) of `rate` Hz, or units, int (T,). Distances of frames are
    angles over pi, averaged along the cheapest path (DTW); units are at right angles.
    """
    of_utterance: dict[str, list[Item]] = {}
    for item in items:
        of_utterance.setdefault(item.utterance, []).append(item)
    kept: list[Item] = []
    read: list[np.ndarray] = []
    places: list[tuple[int, int]] = []  # of items: first frame and length
    total = 0
    for name, frames in utterances:
        for item in of_utterance.get(name, ()):
            begin = max(0, math.ceil(rate * item.onset - 0.5))
            length = min(len(frames), math.floor(rate * item.offset - 0.5)) - begin
            if length > 0:
                kept.append(item)
                places.append((total + begin, length))
        if name in of_utterance:
            read.append(frames)
            total += len(frames)
    if not kept:
        return {"within": None, "across": None}
    distances = _Distances(np.concatenate(read), np.array(places))
    groups = _groups(kept, config.max_items, seed)
    return {
        "within": _error(_within(groups), distances),
        "across": _error(_across(groups, config.max_speakers, seed), distances),
    }


_Groups = dict[tuple[str, str], dict[str, dict[str, np.ndarray]]]  # by context, speaker, phone
_Cell = tuple[tuple[str, str, str], np.ndarray, np.ndarray, np.ndarray]  # and items A, B and X


def _groups(items: Sequence[Item], most: int, seed: int) -> _Groups:
    """Numbers of the items, at most so many of a group."""
    listed: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = {}
    for number, item in enumerate(items):
        of_context = listed.setdefault(item.context, {})
        of_context.setdefault(item.speaker, {}).setdefault(item.phone, []).append(number)
    draw = np.random.default_rng(seed)

    def chosen(numbers: list[int]) -> np.ndarray:
        if not 0 < most < len(numbers):
            return np.array(numbers)
        return np.sort(draw.choice(numbers, most, replace=False))

    return {
        context: {
            speaker: {phone: chosen(numbers) for phone, numbers in of_speaker.items()}
            for speaker, of_speaker in of_context.items()
        }
        for context, of_context in listed.items()
    }


def _within(groups: _Groups) -> Iterator[_Cell]:
    for of_context in groups.values():
        for speaker, of_speaker in of_context.items():
            for (phone, a), (other, b) in itertools.permutations(of_speaker.items(), 2):
                if len(a) > 1:
                    yield (speaker, phone, other), a, b, a


def _across(groups: _Groups, most: int, seed: int) -> Iterator[_Cell]:
    draw = np.random.default_rng(seed)
    for of_context in groups.values():
        for speaker, of_speaker in of_context.items():
            if len(of_speaker) < 2:
                continue
            for phone, a in of_speaker.items():
                others = [
                    found[phone]
                    for name, found in of_context.items()
                    if name != speaker and phone in found
                ]
                if 0 < most < len(others):
                    others = [others[i] for i in draw.choice(len(others), most, replace=False)]
                for x, (other, b) in itertools.product(others, of_speaker.items()):
                    if other != phone:
                        yield (speaker, phone, other), a, b, x


def _error(cells: Iterator[_Cell], distances: "_Distances") -> float | None:
    """Mean over contexts (and speakers of X), then over speakers, then over pairs of phones."""
    found: dict[tuple[str, str, str], list[float]] = {}
    while block := _block(cells):
        near = distances.of(np.concatenate([_pairs(x, a) for _, a, _, x in block]))
        far = distances.of(np.concatenate([_pairs(x, b) for _, _, b, x in block]))
        at, to = 0, 0
        for key, a, b, x in block:
            same = near[at : at + len(x) * len(a)].reshape(len(x), len(a), 1)
            other = far[to : to + len(x) * len(b)].reshape(len(x), 1, len(b))
            at, to = at + same.size, to + other.size
            won = (same < other) + 0.5 * (same == other)
            triples = won.size
            if a is x:  # an item is not compared with itself
                itself = np.arange(len(a))
                won[itself, itself] = 0
                triples -= len(a) * len(b)
            found.setdefault(key, []).append(1 - won.sum() / triples)
    by_phones: dict[tuple[str, str], list[float]] = {}
    for (_, phone, other_phone), errors in found.items():
        by_phones.setdefault((phone, other_phone), []).append(float(np.mean(errors)))
    return float(np.mean([np.mean(errors) for errors in by_phones.values()])) if found else None


def _block(cells: Iterator[_Cell]) -> list[_Cell]:
    block, pairs = [], 0
    for cell in cells:
        block.append(cell)
        pairs += len(cell[3]) * (len(cell[1]) + len(cell[2]))
        if pairs >= _PAIRS:
            break
    return block


def _pairs(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Each of X with each of the others, int64 (n, 2), the earlier first where these are X."""
    pairs = np.stack(np.meshgrid(x, others, indexing="ij"), axis=-1).reshape(-1, 2)
    return np.sort(pairs, axis=1) if x is others else pairs


_Paths = tuple[jax.Array, jax.Array]  # costs and steps


class _Distances:
    """Distances of items, whose frames are on the device; `places`, (n, 2), are as in `abx`."""

    def __init__(self, frames: np.ndarray, places: np.ndarray) -> None:
        self._begins, self._lengths = places.T
        if frames.ndim == 1:
            self._frames = jnp.asarray(frames, jnp.int32)
        else:
            norms = np.linalg.norm(frames, axis=1, keepdims=True)
            self._frames = jnp.asarray(frames / np.maximum(norms, 1e-30), jnp.float32)

    def of(self, pairs: np.ndarray) -> np.ndarray:
        """Of pairs of items, int64 (n, 2): float32 (n,)."""
        keys, back = np.unique(pairs @ [len(self._lengths), 1], return_inverse=True)
        pairs = np.stack(np.divmod(keys, len(self._lengths)), axis=1)
        longest = self._lengths[pairs].max(axis=1)
        found = np.zeros(len(pairs), np.float32)
        below = 0
        for width in (*_WIDTHS, int(longest.max())):
            (chosen,) = np.nonzero((below < longest) & (longest <= width))
            below = max(below, width)
            rows = max(1, _NUMBERS // (width * max(width, self._frames[0].size)))
            while rows // 8 >= len(chosen) > 0:  # few shapes, each of which is compiled
                rows //= 8
            for first in range(0, len(chosen), rows):
                part = chosen[first : first + rows]
                filled = np.resize(pairs[part], (rows, 2))  # one shape for all
                places = self._begins[filled], self._lengths[filled]
                found[part] = np.asarray(_path_means(self._frames, *places, width))[: len(part)]
        return found[back]


@functools.partial(jax.jit, static_argnames="width")
def _path_means(frames: jax.Array, begins: jax.Array, lengths: jax.Array, width: int) -> jax.Array:
    """Mean distance along the cheapest path of items of (B, 2) `begins` and `lengths`: (B,).

    `frames` are float32 (F, D), of length 1 or 0, or units, int32 (F,). All cells of an
    antidiagonal are computed together.
    """
    places = jnp.minimum(begins[..., None] + jnp.arange(width), len(frames) - 1)
    x, y = frames[places].swapaxes(0, 1)  # (B, width, D) or (B, width)
    distances = _angles(x, y) if frames.ndim == 2 else 0.5 * (x[:, :, None] != y[:, None])
    # Row i of (width, width, B) moves i to the right, so that antidiagonals become columns.
    padded = ((0, 0), (0, width), (0, 0))
    cells = jnp.pad(distances.transpose(1, 2, 0), padded, constant_values=jnp.inf)
    count = cells.shape[2]
    cells = cells.reshape(-1, count)[:-width].reshape(width, -1, count).swapaxes(0, 1)
    last_row, last_column = lengths.T - 1

    def step(
        before: tuple[_Paths, _Paths], given: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[_Paths, _Paths], jax.Array]:
        """From the two antidiagonals before: the diagonal's path if none is cheaper, then left."""
        (left, corner), (number, distance) = before, given
        above = _moved(left, jnp.inf)
        diagonal = _moved(corner, jnp.where(number == 0, 0.0, jnp.inf))
        straight = (diagonal[0] <= left[0]) & (diagonal[0] <= above[0])
        aside = (jnp.where(left[0] <= above[0], *each) for each in zip(left, above, strict=True))
        cost, steps = (jnp.where(straight, *each) for each in zip(diagonal, aside, strict=True))
        cost, steps = cost + distance, steps + 1
        means = jnp.take_along_axis(cost / steps, last_row[None], axis=0)[0]
        return ((cost, steps), left), jnp.where(number == last_row + last_column, means, 0.0)

    nothing = jnp.full((width, count), jnp.inf), jnp.zeros((width, count))
    numbers = jnp.arange(2 * width - 1)
    return lax.scan(step, (nothing, nothing), (numbers, cells))[1].sum(axis=0)


def _moved(paths: _Paths, first: jax.Array | float) -> _Paths:
    """Paths that end a row further up, of which the first row has none, or one at cost 0."""
    cost, steps = (jnp.roll(each, 1, axis=0) for each in paths)
    return cost.at[0].set(first), steps.at[0].set(0.0)


def _angles(x: jax.Array, y: jax.Array) -> jax.Array:
    """Angles over pi of frames (B, T, D): float32 (B, T, T)."""
    cosines = jnp.einsum("bid,bjd->bij", x, y, precision=lax.Precision.HIGHEST)
    # A frame of zeros has no direction: it is as far as can be from all but its like.
    no_x, no_y = ~x.any(axis=-1)[:, :, None], ~y.any(axis=-1)[:, None]
    cosines = jnp.where(no_x | no_y, jnp.where(no_x & no_y, 1.0, -1.0), cosines)
    return jnp.arccos(jnp.clip(cosines, -1.0, 1.0)) / jnp.float32(np.pi)
