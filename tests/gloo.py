"""What a process says beside the greetings of the library of CPU collectives."""

import re

# Its threads write them in pieces, one into another's line.
_PIECES = (
    r"\[Gloo\] Rank | is connected to | peer ranks\. Expected number of connected peer ranks is : "
)


def without_greetings(text: str) -> str:
    """`text` without Gloo's greetings, and without digits and spaces, which are in them."""
    return re.sub(rf"{_PIECES}|[\d\s]", "", text)
