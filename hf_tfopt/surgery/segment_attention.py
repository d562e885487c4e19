"""Attention within each of many segments, a few calls for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# On a CPU torch's fused kernel is slow backwards below 32 bits, and has no dropout: there explicit
# weights are faster, up to this length (torch 2.13, measured on segments of 8 to 2048 tokens).
_LONGEST_WEIGHTED = 1024


def segment_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: tuple[int, ...],
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool = False,
    reach: int | None = None,
) -> Tensor:
    """Attention within each segment of a batch that is seen as one row.

    One segment after the other by `scaled_dot_product_attention`; or, where that is slow (training
    on a CPU in bf16 or with dropout), segments of similar length side by side in one call.

    Args:
        query: `[batch, heads, length, size]`, like `key` and `value`.
        key: see `query`.
        value: see `query`.
        lengths: of the segments; they sum to batch * length.
        dropout: of the attention weights.
        scaling: of the scores; None: 1 / sqrt(size).
        is_causal: a position sees none behind it.
        reach: a position sees none further away.

    Returns:
        `[batch, length, heads, size]`.
    """
    batch, heads, width, size = query.shape
    scale = size**-0.5 if scaling is None else scaling
    if reach is not None and reach >= max(lengths) - 1:
        reach = None
    attend = _side_by_side if _is_weighted(query, key, value, dropout) else _one_by_one
    # [batch * length, heads, size]: views, since layers keep heads last but one
    states = [x.transpose(1, 2).flatten(0, 1) for x in (query, key, value)]
    attended = attend(states, lengths, dropout, scale, is_causal, reach)
    return attended.view(batch, width, heads, value.shape[3])


def _is_weighted(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> bool:
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    # Dropout decides by itself: a recomputed forward pass must draw as the first one did.
    return query.device.type == "cpu" and (dropout > 0 or (trains and query.dtype.itemsize == 2))


def _one_by_one(
    states: list[Tensor],
    lengths: tuple[int, ...],
    dropout: float,
    scale: float,
    is_causal: bool,
    reach: int | None,
) -> Tensor:
    """The fused kernel on views of each segment; neighbours of equal length share a call."""
    runs = [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]
    parts = [x.split([length * count for length, count in runs]) for x in states]
    outputs: list[Tensor] = []
    for *rows, (length, _) in zip(*parts, runs, strict=True):
        q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in rows)
        seen = None
        if reach is not None and reach < length - 1:
            blocked = _blocked(np.ones((1, length), dtype=bool), is_causal, reach)
            seen = ~torch.from_numpy(blocked).to(q.device)
        attended = F.scaled_dot_product_attention(
            q, k, v, seen, dropout, is_causal=is_causal and seen is None, scale=scale
        )
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _side_by_side(
    states: list[Tensor],
    lengths: tuple[int, ...],
    dropout: float,
    scale: float,
    is_causal: bool,
    reach: int | None,
) -> Tensor:
    """Segments of similar length as one padded batch, with explicit weights if not too long."""
    heads = states[0].shape[1]
    plan = _plan(lengths, heads, is_causal, reach, states[0].device)
    sizes = [bucket.num_segments * heads * bucket.length for bucket in plan.buckets]
    parts = [cast(Tensor, _Spread.apply(x.flatten(0, 1), plan)).split(sizes) for x in states]
    outputs: list[Tensor] = []
    for *rows, bucket in zip(*parts, plan.buckets, strict=True):
        q, k, v = (x.view(bucket.num_segments, heads, bucket.length, x.shape[1]) for x in rows)
        attend = _weighted if bucket.length <= _LONGEST_WEIGHTED else _fused
        outputs.append(attend(q, k, v, bucket.blocked, dropout, scale).reshape(-1, v.shape[3]))
    return cast(Tensor, _Collect.apply(torch.cat(outputs), plan))


def _fused(
    q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, dropout: float, scale: float
) -> Tensor:
    seen = None if blocked is None else ~blocked
    return F.scaled_dot_product_attention(q, k, v, seen, dropout, scale=scale)


def _weighted(
    q: Tensor, k: Tensor, v: Tensor, blocked: Tensor | None, dropout: float, scale: float
) -> Tensor:
    """`dropout(softmax(q @ k.T * scale)) @ v`."""
    count, heads = q.shape[:2]
    scores = torch.bmm(q.flatten(0, 1) * scale, k.flatten(0, 1).transpose(1, 2))
    if blocked is not None:
        with torch.no_grad():  # in place and unrecorded: the gradient is 0 there by the softmax
            scores.unflatten(0, (count, heads)).masked_fill_(blocked, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return torch.bmm(weights, v.flatten(0, 1))


@dataclass(frozen=True)
class _Bucket:
    """Segments that share a call: how many, as long as the longest, and what may not be seen."""

    num_segments: int
    length: int
    blocked: Tensor | None  # True: not seen; broadcasts to [num_segments, heads, length, length]


@dataclass(frozen=True)
class _Plan:
    """Where rows (token, head) go when buckets are laid out as [num_segments, heads, length]."""

    index: Tensor  # the row at each place; at padding any
    inverse: Tensor  # the place of each row
    padding: Tensor  # the places that are padding
    buckets: list[_Bucket]


class _Spread(torch.autograd.Function):
    """Rows to their places, zeros in padding; the adjoint of `_Collect`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: _Plan) -> Tensor:
        ctx.plan = plan
        places = rows.index_select(0, plan.index)
        return places.index_fill_(0, plan.padding, 0) if len(plan.padding) else places

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _Collect.apply(gradients[0], ctx.plan)), None


class _Collect(torch.autograd.Function):
    """Rows back from their places, padding left out; the adjoint of `_Spread`."""

    @staticmethod
    def forward(ctx: Any, places: Tensor, plan: _Plan) -> Tensor:
        ctx.plan = plan
        return places.index_select(0, plan.inverse)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return cast(Tensor, _Spread.apply(gradients[0], ctx.plan)), None


@lru_cache(maxsize=4)  # the layers of a step all ask for one plan, or two where layers differ
def _plan(
    lengths: tuple[int, ...],
    heads: int,
    is_causal: bool,
    reach: int | None,
    device: torch.device,
) -> _Plan:
    """Group segments by length and say where each of their rows goes."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(-sizes, kind="stable")
    sizes, starts = sizes[order], starts[order]
    indices: list[NDArray[np.int64]] = []
    real: list[NDArray[np.bool_]] = []
    buckets: list[_Bucket] = []
    for first, end in _groups(sizes):
        length = int(sizes[first])
        within = np.arange(length) < sizes[first:end, None]
        tokens = starts[first:end, None] + np.where(within, np.arange(length), 0)
        shape = (end - first, heads, length)
        indices.append((tokens[:, None] * heads + np.arange(heads)[:, None]).ravel())
        real.append(np.broadcast_to(within[:, None], shape).ravel())
        blocked = _blocked(within, is_causal, reach)
        moved = torch.from_numpy(blocked).to(device) if blocked.any() else None
        buckets.append(_Bucket(end - first, length, moved))
    index, is_real = np.concatenate(indices), np.concatenate(real)
    inverse = np.empty(int(is_real.sum()), dtype=np.int64)
    inverse[index[is_real]] = np.flatnonzero(is_real)
    places = (torch.from_numpy(x).to(device) for x in (index, inverse, np.flatnonzero(~is_real)))
    return _Plan(*places, buckets=buckets)


def _groups(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of the falling `sizes` that share a call: one costs more than some padding."""
    first = 0
    while first < len(sizes):
        length = int(sizes[first])
        end = first + int((sizes[first:] >= length - max(8, length // 8)).sum())
        yield first, end
        first = end


def _blocked(within: NDArray[np.bool_], is_causal: bool, reach: int | None) -> NDArray[np.bool_]:
    """What may not be seen: `[num_segments or 1, 1, length, length]`.

    Padding sees itself: a row with nothing to see would be NaN.
    """
    place = np.arange(within.shape[1])
    ahead = place - place[:, None]
    blocked = np.zeros((1, 1, *ahead.shape), dtype=bool)
    if is_causal:
        blocked = blocked | (ahead > 0)
    if reach is not None:
        blocked = blocked | (abs(ahead) > reach)
    if not within.all():
        blocked = blocked | (~within[:, None, None] & (ahead != 0))
    return blocked
