"""A length curriculum the obvious way: one row after the other, as Python lists."""

import math
from collections.abc import Sequence


def plain_length(step: int, start: int, end: int, num_steps: int, multiple: int) -> int:
    """Li et al. 2022: linear, then down to a multiple; not below the start."""
    if step >= num_steps:
        return end
    length = int(start + (end - start) * step / num_steps + 1e-9)
    return max(start, length - length % multiple)


def plain_pieces(
    row: Sequence[int],
    length: int,
    is_reshaped: bool,
    closing: Sequence[int] = (),
    multiple: int = 1,
) -> list[list[tuple[int, int]]]:
    """The pieces of a row's tokens, each a list of (place of the token, place of its position)."""
    places = list(range(len(row)))
    if is_reshaped:
        count = math.ceil(len(row) / length)
        size = min(length, math.ceil(math.ceil(len(row) / count) / multiple) * multiple)
        return [
            list(zip(places[first : first + size], places, strict=False))
            for first in range(0, len(row), size)
        ]
    kept = places[:length]
    if len(row) > length and row[-1] in closing:
        kept[-1] = places[-1]
    return [list(zip(kept, places, strict=False))]
