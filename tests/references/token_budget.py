"""Length buckets, batches within a budget and growing batches the obvious way."""

from collections.abc import Sequence
from itertools import combinations


def plain_borders(
    kinds: Sequence[int], counts: Sequence[int], least: Sequence[int]
) -> tuple[int, list[int]]:
    """The fewest positions, and the last kind of each bucket, of all ways to cut the kinds."""
    size = len(kinds)
    best = (kinds[-1] * sum(counts), [size - 1])
    for num_borders in range(size):
        for inner in combinations(range(size - 1), num_borders):
            lasts = [*inner, size - 1]
            firsts = [0, *(last + 1 for last in inner)]
            buckets = [range(a, b + 1) for a, b in zip(firsts, lasts, strict=True)]
            rows = [sum(counts[kind] for kind in bucket) for bucket in buckets]
            if all(n >= least[last] for n, last in zip(rows, lasts, strict=True)):
                cost = sum(kinds[last] * n for n, last in zip(rows, lasts, strict=True))
                best = min(best, (cost, lasts), key=lambda found: found[0])
    return best


def plain_cut(widths: Sequence[int], budget: int, max_rows: int, first: int = 0) -> list[int]:
    """Row after row, whose widths do not fall, a new batch where one more would be too much."""
    ends: list[int] = []
    size = 0
    for row, width in enumerate(widths):
        is_full = (size + 1) * width > budget or size == max_rows
        if size and (is_full or (not ends and size == first)):
            ends.append(row)
            size = 0
        size += 1
    return [*ends, len(widths)]


def plain_halves(sizes: Sequence[int], widths: Sequence[int], wanted: int) -> list[int]:
    """The sizes of batches after the one with the most positions was halved again and again."""
    batches = list(zip(sizes, widths, strict=True))
    while len(batches) < wanted:
        able = [i for i, (size, _) in enumerate(batches) if size > 1]
        largest = max(able, key=lambda i: batches[i][0] * batches[i][1])
        size, width = batches[largest]
        batches[largest : largest + 1] = [(size - size // 2, width), (size // 2, width)]
    return [size for size, _ in batches]


def plain_growth(step: int, num_warm: int, start: int, full: int, growth: str) -> int:
    """The rows of one step of a batch-size warm-up."""
    if step >= num_warm:
        return full
    share = step / num_warm
    exact = start * (full / start) ** share if growth == "exponential" else None
    return int((start + (full - start) * share if exact is None else exact) + 1e-9)
