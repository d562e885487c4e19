"""Packing: whole examples into full rows, and what keeps the examples of a row apart.

`best_fit` chooses the rows and `pack` builds them from Arrow's buffers; `segment_lengths` finds the
examples of a row again and `attention_inputs` keeps them apart (both are in `data/segments.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable
from numpy.typing import NDArray

from hf_tfopt.data.columns import NO_WORD, WORD_IDS
from hf_tfopt.data.segments import attention_inputs, segment_lengths
from hf_tfopt.registry import nearest

__all__ = ["attention_inputs", "best_fit", "fullness", "pack", "segment_lengths"]

# Tokens gathered at a time: bounds the int64 index, and keeps Arrow's 32-bit list offsets in range.
_TOKENS_PER_CHUNK = 1 << 24


def best_fit(lengths: NDArray[Any], capacity: int) -> list[NDArray[np.int64]]:
    """Put examples into rows by best fit decreasing.

    The longest example first, each into the row with the least room that still holds it, a new row
    if none does; of two rows with equal room the one used last.

    Args:
        lengths: tokens of each example, at least 1.
        capacity: tokens that a row holds.

    Returns:
        The indices of the examples in each row, in the order they were put there.

    Raises:
        ValueError: an example is empty or longer than `capacity`.

    Paper: Krell et al. 2021, https://arxiv.org/abs/2107.02027, section 3 (packing by a histogram of
    lengths). Differs: examples are placed one by one; the room to take is looked up in a bit set.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths, capacity)
    order = np.argsort(-lengths, kind="stable")
    row_of = _rows_of(lengths[order].tolist(), capacity)
    ends = np.cumsum(np.bincount(row_of))
    return np.split(order[np.argsort(row_of, kind="stable")], ends[:-1]) if len(ends) else []


def _rows_of(lengths: list[int], capacity: int) -> NDArray[np.int64]:
    """The row of each example, for lengths that do not increase."""
    row_of = np.empty(len(lengths), dtype=np.int64)
    with_room: dict[int, list[int]] = {}  # room -> rows, the one used last at the end
    occupied, num_rows = 0, 0  # bit r of occupied: some row has room for r tokens
    for example, length in enumerate(lengths):
        fitting = occupied >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                occupied ^= 1 << room
        else:
            room, row = capacity, num_rows
            num_rows += 1
        row_of[example] = row
        if room > length:
            with_room.setdefault(room - length, []).append(row)
            occupied |= 1 << (room - length)
    return row_of


def _check_lengths(lengths: NDArray[np.int64], capacity: int) -> None:
    if capacity < 1:
        raise ValueError(f"a row must hold at least 1 token, not {capacity}")
    too_long = np.flatnonzero(lengths > capacity)
    if len(too_long):
        raise ValueError(
            f"{len(too_long)} of {len(lengths)} examples do not fit a row of {capacity} tokens "
            f"(the first is example {too_long[0]} with {lengths[too_long[0]]}): "
            f"tokenize with max_length={capacity}"
        )
    empty = np.flatnonzero(lengths < 1)
    if len(empty):
        raise ValueError(
            f"{len(empty)} of {len(lengths)} examples have no tokens (the first is example "
            f"{empty[0]}): leave them out"
        )


def pack(
    dataset: datasets.Dataset,
    max_length: int,
    *,
    seed: int = 0,
    columns: Sequence[str] = ("token_type_ids", WORD_IDS),
) -> datasets.Dataset:
    """Put whole examples into rows of up to `max_length` tokens.

    A row is the concatenation of its examples; its `position_ids` restart at 0 with each of them,
    which is all that `segment_lengths` needs to find them again. The order of the rows is random
    but fixed by `seed`, since the order of packing goes with length.

    Args:
        dataset: tokenized examples: a column `input_ids` of lists.
        max_length: tokens of a row, at least the length of the longest example.
        seed: of the order of the rows.
        columns: further columns with one number per token to take along, where the dataset has
            them; all others are left behind.

    Returns:
        A dataset in memory with `input_ids`, `position_ids` (int32) and `columns`.

    Raises:
        ValueError: no examples, no column `input_ids`, something other than lists of whole numbers
            in it, an example that is empty, padded or longer than `max_length`.

    Paper: Krell et al. 2021, https://arxiv.org/abs/2107.02027. Differs: see `best_fit`.
    """
    _check_dataset(dataset)
    ids, starts, lengths = _token_lists(dataset, "input_ids")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"column 'input_ids' holds lists of {ids.dtype}, not of token ids")
    sources = {"input_ids": (ids, starts)}
    for name in [name for name in columns if name in dataset.column_names]:
        values, column_starts, column_lengths = _token_lists(dataset, name)
        if not np.array_equal(column_lengths, lengths):
            raise ValueError(f"column {name!r} has not one value per token of 'input_ids'")
        sources[name] = (values, column_starts)
    rows = best_fit(lengths, max_length)
    rows = [rows[row] for row in np.random.default_rng(seed).permutation(len(rows))]
    batches = [_arrow_rows(chunk, sources, lengths) for chunk in _chunks(rows, max_length)]
    given: Any = dataset  # what datasets keeps of a dataset's origin is not public
    origin = Hasher.hash(("pack", given._fingerprint, max_length, seed, tuple(sources)))
    table = InMemoryTable(pa.Table.from_batches(batches))
    return datasets.Dataset(table, split=dataset.split, fingerprint=origin)


def _check_dataset(dataset: Any) -> None:
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"pack takes one datasets.Dataset, not a {type(dataset).__name__}: "
            "pack each split by itself, for instance pack(splits['train'], max_length)"
        )
    if "input_ids" not in dataset.column_names:
        raise ValueError(
            f"there is no column 'input_ids'{nearest('input_ids', dataset.column_names)}: tokenize "
            f"before packing; columns: {', '.join(dataset.column_names)}"
        )
    if not len(dataset):
        raise ValueError("there is nothing to pack: the dataset has no examples")
    if "attention_mask" in dataset.column_names:
        mask, starts, lengths = _token_lists(dataset, "attention_mask")
        if not _gather(mask, starts, lengths).all():
            raise ValueError(
                "the examples are padded (zeros in 'attention_mask'): tokenize with padding=False"
            )


def _token_lists(
    dataset: datasets.Dataset, name: str
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64]]:
    """A column of lists as (all values, where each example starts, its length), without a copy.

    Only the joining of several chunks copies; a selection or a shuffle chooses among the starts.
    """
    parts = [_chunk_lists(name, chunk) for chunk in dataset.data.column(name).chunks if len(chunk)]
    values = [part for part, _ in parts]
    begins = np.cumsum([0, *(len(part) for part in values)])
    starts = np.concatenate([e[:-1] + b for (_, e), b in zip(parts, begins, strict=False)])
    lengths = np.concatenate([np.diff(ends) for _, ends in parts])
    given: Any = dataset  # the indices of a selection are not public
    if given._indices is not None:
        chosen = given._indices.column(0).to_numpy()
        starts, lengths = starts[chosen], lengths[chosen]
    return values[0] if len(values) == 1 else np.concatenate(values), starts, lengths


def _chunk_lists(name: str, chunk: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of one Arrow array of lists, and the n + 1 ends of its n lists among them."""
    kind = chunk.type
    if pa.types.is_fixed_size_list(kind):
        chunk = chunk.cast(pa.large_list(kind.value_type))
    elif not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise ValueError(f"column {name!r} holds {kind}, not lists of numbers")
    ends = chunk.offsets.to_numpy().astype(np.int64)
    values = chunk.values.slice(ends[0], ends[-1] - ends[0])
    if name == WORD_IDS and values.null_count:
        values = values.fill_null(NO_WORD)
    if chunk.null_count or values.null_count:
        raise ValueError(f"column {name!r} has missing values")
    return cast(NDArray[Any], values.to_numpy(zero_copy_only=True)), ends - ends[0]


def _chunks(rows: list[NDArray[np.int64]], max_length: int) -> Iterator[list[NDArray[np.int64]]]:
    step = max(1, _TOKENS_PER_CHUNK // max_length)
    for first in range(0, len(rows), step):
        yield rows[first : first + step]


def _arrow_rows(
    rows: list[NDArray[np.int64]],
    sources: Mapping[str, tuple[NDArray[Any], NDArray[np.int64]]],
    lengths: NDArray[np.int64],
) -> pa.RecordBatch:
    """The rows as Arrow lists made of offsets and values; `lengths` is of all examples."""
    examples = np.concatenate(rows)
    lengths = lengths[examples]
    ends = np.cumsum(lengths)
    last_of_row = np.cumsum([len(row) for row in rows]) - 1
    offsets = pa.array(np.concatenate([[0], ends[last_of_row]]), pa.int32())
    positions = (np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)).astype(np.int32)
    columns = {name: _gather(v, starts[examples], lengths) for name, (v, starts) in sources.items()}
    columns = {"input_ids": columns.pop("input_ids"), "position_ids": positions, **columns}
    arrays = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in columns.values()]
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _gather(
    values: NDArray[Any], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[Any]:
    """`concatenate([values[s : s + n] for s, n in zip(starts, lengths)])`."""
    ends = np.cumsum(lengths)
    return values[np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)]


def fullness(dataset: datasets.Dataset, max_length: int) -> float:
    """The share of the places in rows of `max_length` that hold a token.

    Args:
        dataset: rows with a column `input_ids`, packed or not.
        max_length: tokens that a row could hold.
    """
    _check_dataset(dataset)
    _, _, lengths = _token_lists(dataset, "input_ids")
    return float(lengths.sum() / (len(lengths) * max_length))
