"""Attention within each of many segments, a few calls for all of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

# On a CPU these are faster with explicit weights than with torch's fused kernel, which wins for
# longer segments: its backward is slow below 32 bits, and it has no dropout (torch 2.13; see
# scripts/benchmarks/packing.py).
_LONGEST_WEIGHTED, _LONGEST_WEIGHTED_FP32 = 1024, 128
# Segments up to this length share a call with slightly longer ones: a call costs more than padding.
_LONGEST_MERGED = 128


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

    Segments of equal length, or nearly so, are laid side by side and share one call.

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
    trains = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    weighted = query.device.type == "cpu" and (trains or dropout > 0)
    longest = _LONGEST_WEIGHTED
    if query.dtype == torch.float32 and not dropout:
        longest = _LONGEST_WEIGHTED_FP32
    if reach is not None and reach >= max(lengths) - 1:
        reach = None
    plan = _plan(lengths, heads, weighted, is_causal, reach, query.device)
    sizes = [bucket.num_segments * heads * bucket.length for bucket in plan.buckets]
    parts = [
        cast(Tensor, _Spread.apply(x.transpose(1, 2).reshape(-1, x.shape[3]), plan)).split(sizes)
        for x in (query, key, value)
    ]
    outputs: list[Tensor] = []
    for *states, bucket in zip(*parts, plan.buckets, strict=True):
        q, k, v = (x.view(bucket.num_segments, heads, bucket.length, x.shape[1]) for x in states)
        attend = _weighted if weighted and bucket.length <= longest else _fused
        outputs.append(attend(q, k, v, bucket.blocked, dropout, scale).reshape(-1, v.shape[3]))
    collected = cast(Tensor, _Collect.apply(torch.cat(outputs), plan))
    return collected.view(batch, width, heads, value.shape[3])


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
    merges: bool,
    is_causal: bool,
    reach: int | None,
    device: torch.device,
) -> _Plan:
    """Group segments by length; with `merges` the short ones also with slightly longer ones."""
    sizes = np.asarray(lengths)
    starts = np.cumsum(sizes) - sizes
    order = np.argsort(-sizes, kind="stable")
    sizes, starts = sizes[order], starts[order]
    indices: list[NDArray[np.int64]] = []
    real: list[NDArray[np.bool_]] = []
    buckets: list[_Bucket] = []
    for first, end in _groups(sizes, merges):
        length = int(sizes[first])
        within = np.arange(length) < sizes[first:end, None]
        tokens = starts[first:end, None] + np.where(within, np.arange(length), 0)
        shape = (end - first, heads, length)
        indices.append((tokens[:, None] * heads + np.arange(heads)[:, None]).ravel())
        real.append(np.broadcast_to(within[:, None], shape).ravel())
        blocked = _blocked(within, is_causal, reach)
        moved = None if blocked is None else torch.from_numpy(blocked).to(device)
        buckets.append(_Bucket(end - first, length, moved))
    index, is_real = np.concatenate(indices), np.concatenate(real)
    inverse = np.empty(int(is_real.sum()), dtype=np.int64)
    inverse[index[is_real]] = np.flatnonzero(is_real)
    places = (torch.from_numpy(x).to(device) for x in (index, inverse, np.flatnonzero(~is_real)))
    return _Plan(*places, buckets=buckets)


def _groups(sizes: NDArray[np.int64], merges: bool) -> Iterator[tuple[int, int]]:
    """Ranges of the falling `sizes` that share a call."""
    first = 0
    while first < len(sizes):
        length = int(sizes[first])
        slack = max(8, length // 8) if merges and length <= _LONGEST_MERGED else 0
        end = first + int((sizes[first:] >= length - slack).sum())
        yield first, end
        first = end


def _blocked(
    within: NDArray[np.bool_], is_causal: bool, reach: int | None
) -> NDArray[np.bool_] | None:
    """What may not be seen, `[num_segments, 1, length, length]`, or None if all may be.

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
    return blocked if blocked.any() else None
