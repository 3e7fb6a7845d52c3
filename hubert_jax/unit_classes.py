"""What the classes of a pre-training head stand for, as `vocabulary` has those of a CTC head."""

import dataclasses
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from hubert_jax.errors import InputError

FAIRSEQ_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")


@dataclasses.dataclass(frozen=True)
class Units:
    """What the classes of a pre-training head stand for."""

    symbols: tuple[tuple[str, ...], ...]  # of each codebook: units, after fairseq's specials
    rate_hz: float = 50.0  # of labels
    codebook_digests: tuple[str, ...] = ()  # empty: not known
    # False: nothing says what the classes are, and they are taken to be in order.
    known: bool = dataclasses.field(default=True, compare=False)

    @classmethod
    def numbered(
        cls, codebook_sizes: Sequence[int], num_units: Sequence[int] | None = None, **fields: Any
    ) -> "Units":
        """The last `num_units` classes, by default all, are units 0, 1, ...; before them specials.

        Raises InputError for another number of specials than fairseq has.
        """
        symbols = []
        for size, units in zip(codebook_sizes, num_units or codebook_sizes, strict=True):
            if size - units not in (0, len(FAIRSEQ_SPECIALS)):
                raise InputError(
                    f"a head of {size} classes for {units} units, expected {units} or, with "
                    f"fairseq's special symbols, {units + len(FAIRSEQ_SPECIALS)}"
                )
            symbols.append((*FAIRSEQ_SPECIALS[: size - units], *map(str, range(units))))
        return cls(tuple(symbols), **fields)

    @property
    def offset(self) -> int:
        """First class of a unit in the first codebook: 4 after fairseq's specials, else 0."""
        symbols = self.symbols[0]
        units = (i for i, symbol in enumerate(symbols) if symbol not in FAIRSEQ_SPECIALS)
        return next(units, len(symbols))

    @classmethod
    def from_dict(
        cls, values: Mapping[str, Any], codebook_sizes: Sequence[int], where: str
    ) -> "Units":
        """From JSON; raises InputError for anything else, and for other `codebook_sizes`."""
        try:
            units = cls(
                tuple(tuple(str(symbol) for symbol in symbols) for symbols in values["symbols"]),
                float(values["rate_hz"]),
                tuple(str(digest) for digest in values["codebook_digests"]),
                values.get("known") is not False,
            )
            if not 0 < units.rate_hz < math.inf:
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):
            found = reprlib.repr(values)  # hundreds of symbols are no message
            raise InputError(f"{where}: expected the units of a head, found {found}") from None
        return units.fitting(codebook_sizes, where)

    def fitting(self, codebook_sizes: Sequence[int], where: str) -> "Units":
        """Itself; raises InputError where its class counts are not `codebook_sizes`."""
        counts = [len(symbols) for symbols in self.symbols]
        if counts != list(codebook_sizes):
            raise InputError(
                f"{where}: dictionaries of {counts} symbols for a head of "
                f"{list(codebook_sizes)} classes"
            )
        return self
