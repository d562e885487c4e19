"""Competence, difficulty and the drawing of a curriculum the obvious way: one row at a time."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def plain_competence(step: int, num_steps: int, start: float, pace: str) -> float:
    if pace == "linear":
        return min(1.0, step * (1 - start) / num_steps + start)
    return min(1.0, math.sqrt(step * (1 - start**2) / num_steps + start**2))


def plain_lengths(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    return [sum(row.get("attention_mask", [1] * len(row["input_ids"]))) for row in rows]


def plain_rarity(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    texts = [
        [t for t, kept in zip(r["input_ids"], r["attention_mask"], strict=True) if kept]
        for r in rows
    ]
    counts = Counter(token for text in texts for token in text)
    total = sum(counts.values())
    return [-sum(math.log(counts[token] / total) for token in text) for text in texts]


def refused_draws(
    steps: Sequence[Sequence[int]], eligible: Sequence[set[int]]
) -> Iterator[tuple[int, int]]:
    """The (step, row) that the rule of passes does not allow, in what was drawn until all was free.

    A row must be eligible, not be in its step twice, and not come again in a pass while another
    eligible row waits.
    """
    had: set[int] = set()
    for number, (rows, free) in enumerate(zip(steps, eligible, strict=True)):
        drawn: set[int] = set()
        for row in rows:
            if not free - had:
                had = set()
            if row not in free or row in drawn or row in had:
                yield number, row
            had.add(row)
            drawn.add(row)
