"""Packing and packed attention the obvious way: one example after the other."""

from collections.abc import Sequence

import torch


def plain_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Each example, the longest first, into the fullest row that holds it, looking at all rows."""
    rows: list[list[int]] = []
    room: list[int] = []
    last_use: list[int] = []
    for turn, example in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        fitting = [row for row in range(len(rows)) if room[row] >= lengths[example]]
        if fitting:
            row = min(fitting, key=lambda r: (room[r], -last_use[r]))
        else:
            row = len(rows)
            rows.append([])
            room.append(capacity)
            last_use.append(turn)
        rows[row].append(example)
        room[row] -= lengths[example]
        last_use[row] = turn
    return rows


def allowed(
    rows: Sequence[Sequence[int]], width: int, window: int | None = None
) -> list[list[list[bool]]]:
    """Whether position i of a row may see position j, for rows of examples and then padding."""
    answer = []
    for lengths in rows:
        example = [number for number, length in enumerate(lengths) for _ in range(length)]
        example += [-1] * (width - len(example))
        near = width if window is None else window
        answer.append(
            [
                [example[i] == example[j] and abs(i - j) <= near for j in range(width)]
                for i in range(width)
            ]
        )
    return answer


def attention_by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    lengths: Sequence[int],
    is_causal: bool = False,
    reach: int | None = None,
) -> torch.Tensor:
    """Softmax attention, a loop over segments and heads; [batch, heads, length, size] in."""
    batch, heads, width, size = query.shape
    outputs = torch.zeros(batch * width, heads, value.shape[3], dtype=query.dtype)
    first = 0
    for length in lengths:
        places = slice(first, first + length)
        for head in range(heads):
            q, k, v = (
                x.transpose(1, 2).reshape(-1, heads, x.shape[3])[places, head]
                for x in (query, key, value)
            )
            distance = torch.arange(length)[:, None] - torch.arange(length)
            hidden = torch.zeros(length, length, dtype=torch.bool)
            if is_causal:
                hidden |= distance < 0
            if reach is not None:
                hidden |= distance.abs() > reach
            scores = (q @ k.t() / size**0.5).masked_fill(hidden, -torch.inf)
            outputs[places, head] = torch.softmax(scores, dim=-1) @ v
        first += length
    return outputs.view(batch, width, heads, -1)
