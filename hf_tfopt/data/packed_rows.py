"""The examples of a batch, one or several to a row: their tensors, and where each begins."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hf_tfopt.data.flat_batch import FlatBatch
from hf_tfopt.data.keyed_bits import Flags, Integers
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.data.packing import best_fit
from hf_tfopt.data.segments import attention_inputs


def share_rows(batch: FlatBatch, capacity: int) -> tuple[FlatBatch, Integers, Integers]:
    """The examples in as few rows of `capacity` tokens as best fit finds.

    Args:
        batch: each example in a row of its own.
        capacity: tokens of a row, at least those of the longest example.

    Returns:
        The batch with its tokens in the new order; the examples in that order, by their old
        numbers; and the old place of each token. Rows stand as their first examples did.
    """
    lengths = np.diff(batch.examples)
    rows = sorted((np.sort(row) for row in best_fit(lengths, capacity)), key=lambda row: row[0])
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


def row_inputs(
    batch: FlatBatch, model: ModelFacts | None, is_apart: bool, pad_id: int, width: int
) -> dict[str, Any]:
    """The arguments of the model's forward, without labels.

    Args:
        batch: rows of examples.
        model: the facts of the model; None: any, and each example has a row of its own.
        is_apart: examples are kept apart by position ids that restart with each, and by what the
            attention needs (`segments.attention_inputs`); else by a 2-D attention mask.
        pad_id: the token id in padding.
        width: of the batch.
    """
    is_token = in_rows(batch, width)
    inputs: dict[str, Any] = {"input_ids": placed(batch.ids, is_token, pad_id)}
    if batch.token_types is not None and (model is None or "token_type_ids" in model.arguments):
        inputs["token_type_ids"] = placed(batch.token_types, is_token, 0)
    if not is_apart:
        return inputs | {"attention_mask": torch.from_numpy(is_token.astype(np.int64))}
    assert model is not None
    lengths = np.diff(batch.examples)
    counts = np.arange(len(batch.ids)) - np.repeat(batch.examples[:-1], lengths)
    inputs["position_ids"] = placed(counts + model.first_position, is_token, model.first_position)
    return inputs | attention_inputs(
        np.split(lengths, batch.examples.searchsorted(batch.rows[1:-1])),
        width,
        model.implementation,
        layer_windows=model.layer_windows,
        dtype=model.dtype,
    )


def in_rows(batch: FlatBatch, width: int) -> Flags:
    """Which places of rows this wide have a token."""
    return np.arange(width) < np.diff(batch.rows)[:, None]


def placed(values: NDArray[Any], is_token: Flags, fill: int) -> torch.Tensor:
    """The values of the tokens where they are, `fill` in padding."""
    if values.size == is_token.size:
        return torch.from_numpy(values.reshape(is_token.shape))
    found = np.full(is_token.shape, fill, dtype=values.dtype)
    found[is_token] = values
    return torch.from_numpy(found)
