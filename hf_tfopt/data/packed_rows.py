"""The examples of a batch, several to a row, and where each begins."""

import numpy as np

from hf_tfopt.data.flat_batch import FlatBatch
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.packing import best_fit


def share_rows(batch: FlatBatch, capacity: int) -> tuple[FlatBatch, Integers, Integers]:
    """The examples in as few rows of `capacity` tokens as best fit finds.

    Args:
        batch: each example in a row of its own.
        capacity: tokens of a row, at least those of the longest example.

    Returns:
        The batch with its tokens in the new order; the examples in that order, by their old
        numbers; and the old place of each token.
    """
    lengths = np.diff(batch.examples)
    rows = best_fit(lengths, capacity)
    order = np.concatenate(rows)
    bounds = np.concatenate([[0], np.cumsum(lengths[order])])
    skipped = batch.examples[order] - bounds[:-1]
    places = np.arange(bounds[-1]) + np.repeat(skipped, lengths[order])
    ends = np.cumsum([len(row) for row in rows])
    shared = FlatBatch(
        batch.ids[places],
        bounds[np.concatenate([[0], ends])],
        bounds,
        None if batch.token_types is None else batch.token_types[places],
    )
    return shared, order, places


def example_starts(batch: FlatBatch, order: Integers, width: int) -> Integers:
    """Where the examples begin among the places of the batch, rows * width.

    Args:
        batch: as `share_rows` gives it, or with all examples in one row.
        order: which example each is.
        width: of a row with its padding.

    Returns:
        A place for each example, in the order of their numbers.
    """
    firsts = batch.examples[:-1]
    rows = np.searchsorted(batch.rows, firsts, side="right") - 1
    starts = np.empty(len(order), dtype=np.int64)
    starts[order] = rows * width + firsts - batch.rows[rows]
    return starts
