"""Rows of similar length, so that batches of them need little padding and still mix."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.keyed_bits import Integers

# More kinds of lengths than this are looked at in groups: the search is quadratic in them.
_MAX_KINDS = 512


class LengthBuckets(NamedTuple):
    """Rows by length: bucket b has those above `widths[b - 1]` and up to `widths[b]`.

    Args:
        widths: to which the rows of a bucket are padded at most, ascending.
        ends: the number of rows of this bucket and those before it.
        bucket_of_row: the bucket of each row.
    """

    widths: Integers
    ends: Integers
    bucket_of_row: NDArray[np.unsignedinteger[Any]]

    def fitting(self, max_tokens: int, max_rows: int | None = None) -> Integers:
        """How many rows of each bucket fit into a batch."""
        fitting = max_tokens // self.widths
        return fitting if max_rows is None else np.minimum(fitting, max_rows)


def cut(ends: Integers, fitting: Integers, first: int | None = None) -> Integers:
    """Cut rows in the order of their buckets into the fewest batches; returns their ends.

    Each batch has as many of the rows that are left as fit: what is left of a bucket goes with rows
    of the next one. A batch that ends in bucket b has at most `fitting[b]` rows.

    Args:
        ends: of the buckets, in rows.
        fitting: how many rows of each bucket fit a batch; it does not increase.
        first: rows of the first batch, if there are to be fewer than fit.
    """
    start, found = 0, [np.empty(0, dtype=np.int64)]
    if first is not None:
        start = first
        found.append(np.array([first]))
    for bucket, (end, size) in enumerate(zip(ends.tolist(), fitting.tolist(), strict=True)):
        num_whole = max(0, end - start) // size
        found.append(start + size * np.arange(1, num_whole + 1))
        start += num_whole * size
        if start < end:
            start += int(np.minimum(fitting[bucket:], ends[bucket:] - start).max())
            found.append(np.array([start]))
    return np.concatenate(found)


def padded_size(widths: Integers, ends: Integers, batch_ends: Integers) -> int:
    """The positions of all batches, each as wide as the bucket that it ends in."""
    sizes = np.diff(batch_ends, prepend=0)
    return int((sizes * widths[ends.searchsorted(batch_ends, "left")]).sum())


def length_buckets(
    lengths: Integers,
    max_tokens: int,
    *,
    max_padding: float,
    max_rows: int | None = None,
) -> LengthBuckets:
    """The largest buckets with which batches need no more padding than this.

    For M = ..., 4, 2, 1 in turn: of all borders with which each bucket fills at least M batches,
    those with the fewest positions (`borders`); the first whose batches are padded enough little.
    If none is, a bucket for each length: no order of the rows needs less.

    Args:
        lengths: of each row, 1 to `max_tokens`.
        max_tokens: of a batch: rows times the longest.
        max_padding: the share of a batch's positions that hold no token, over all batches.
        max_rows: of a batch.
    """
    kinds, bounds = _kinds(lengths)
    counts = np.diff(bounds, prepend=0)
    allowed = lengths.sum() / (1 - max_padding)
    fitting = max_tokens // kinds if max_rows is None else np.minimum(max_tokens // kinds, max_rows)
    num_batches = 1 << (len(cut(bounds, fitting)).bit_length() - 1)
    while num_batches:
        chosen = borders(kinds, counts, num_batches * fitting)
        widths, ends = kinds[chosen], bounds[chosen]
        if padded_size(widths, ends, cut(ends, fitting[chosen])) <= allowed:
            break
        num_batches //= 2
    else:
        widths, ends = np.unique(lengths, return_counts=True)
        ends = ends.cumsum()
    bucket_of_row = widths.searchsorted(lengths, "left")
    # numbers of 16 bits are sorted much faster
    return LengthBuckets(widths, ends, bucket_of_row.astype(np.min_scalar_type(len(widths))))


def borders(kinds: Integers, counts: Integers, least: Integers) -> Integers:
    """The last kind of each bucket, so that rows padded to their bucket's longest cost least.

    The minimum of `sum_b kinds[last_b] * (rows of b)` over all ways to cut the kinds into buckets
    of at least `least[last_b]` rows each; one bucket for all if there is no such way.

    Args:
        kinds: the lengths that there are, ascending.
        counts: the rows of each.
        least: the rows that a bucket must have, by its last kind.
    """
    num_kinds, before = len(kinds), np.concatenate([[0], counts.cumsum()])
    cost = np.full(num_kinds + 1, np.inf)  # of the first kinds, cut at best
    cost[0] = 0
    previous = np.zeros(num_kinds + 1, dtype=np.int64)
    for last in range(num_kinds):
        num_rows = before[last + 1] - before[: last + 1]
        total = cost[: last + 1] + kinds[last] * num_rows
        total[num_rows < least[last]] = np.inf
        previous[last + 1] = total.argmin()
        cost[last + 1] = total.min()
    if np.isinf(cost[num_kinds]):
        return np.array([num_kinds - 1])
    found, end = list[int](), num_kinds
    while end:
        found.append(end - 1)
        end = int(previous[end])
    return np.array(found[::-1])


def _kinds(lengths: Integers) -> tuple[Integers, Integers]:
    """The lengths that there are, some of them left out if there are many; rows up to each."""
    kinds, counts = np.unique(lengths, return_counts=True)
    bounds = counts.cumsum()
    if len(kinds) <= _MAX_KINDS:
        return kinds, bounds
    kept = np.unique(np.linspace(0, len(kinds) - 1, _MAX_KINDS).round().astype(np.int64))
    return kinds[kept], bounds[kept]
