"""Phones in an order that puts like beside like, and colours that follow it."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable

# CMUdict's phones by manner of articulation, then place from the lips backwards; vowels from front
# to back, then the central ones and the diphthongs.
GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("silence", ("SIL", "SP", "SPN", "NSN")),
    ("stops", ("P", "B", "T", "D", "K", "G")),
    ("affricates", ("CH", "JH")),
    ("fricatives", ("F", "V", "TH", "DH", "S", "Z", "SH", "ZH", "HH")),
    ("nasals", ("M", "N", "NG")),
    ("approximants", ("L", "R", "W", "Y")),
    ("vowels", ("IY", "IH", "EY", "EH", "AE", "AA", "AO", "OW", "UH", "UW", "AH", "ER")),
    ("diphthongs", ("AY", "AW", "OY")),
)
OTHER = "others"
_RANK = {
    phone: (rank, place)
    for rank, (_, phones) in enumerate(GROUPS)
    for place, phone in enumerate(phones)
}
_SILENCE_GREY = "#8c8c8c"


def _known(phone: str) -> str:
    return phone.upper().rstrip("012")


def articulatory_order(phones: Iterable[str]) -> list[str]:
    """`phones` without repeats in the order of `GROUPS`; unknown names last, by alphabet.

    Upper and lower case and stress digits make no difference to the place.
    """
    last = (len(GROUPS), 0)
    return sorted(set(phones), key=lambda phone: (_RANK.get(_known(phone), last), phone))


def group(phone: str) -> str:
    """Name of the group that `phone` is in, or `OTHER`."""
    rank = _RANK.get(_known(phone))
    return OTHER if rank is None else GROUPS[rank[0]][0]


def colours(phones: Iterable[str]) -> dict[str, str]:
    """A colour (#rrggbb) for each phone: hue follows the articulatory order, silence is grey.

    Neighbours differ in lightness, so that they can be told apart where their hues are close.
    """
    ordered = articulatory_order(phones)
    voiced = [phone for phone in ordered if group(phone) != "silence"]
    found = dict.fromkeys(ordered, _SILENCE_GREY)
    for i, phone in enumerate(voiced):
        found[phone] = spectrum(i / max(len(voiced), 1), light=bool(i % 2))
    return found


def spectrum(position: float, light: bool = False) -> str:
    """The colour (#rrggbb) at `position` in [0, 1) of a wheel that does not close."""
    rgb = colorsys.hls_to_rgb(0.9 * position, 0.64 if light else 0.46, 0.62)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)
