"""A group of examples -> an Arrow table of packed rows."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from hf_tfopt.data.columns import ATTENTION_MASK, INPUT_IDS, NO_WORD, WORD_IDS

POSITION_IDS = "position_ids"
LEAVE_BEHIND = "columns=[...] names those to take along, all others are left behind"


def refuse_packed(names: Sequence[str]) -> None:
    """Raise ValueError for rows with position_ids, whose examples would become one."""
    if POSITION_IDS in names:
        raise ValueError(
            "the examples are packed already (they have position_ids), and those of a row would "
            "become one: pack what was packed, or take the column out"
        )


def list_lengths(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """`[len(value or ()) for value in column]`, from Arrow's offsets alone."""
    compute: Any = pc  # its functions are made at run time
    parts = [
        compute.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
        for chunk in column.chunks
    ]
    return np.concatenate(parts, dtype=np.int64)


def packed_features(dataset: datasets.Dataset, names: Sequence[str]) -> datasets.Features:
    """Of packed rows: lists of what the columns of these names are lists of, and positions.

    Raises:
        ValueError: a column of something other than lists of numbers, or ids that are not whole.
    """
    kinds = {name: _value_kind(dataset, name) for name in names}
    if not pa.types.is_integer(kinds[INPUT_IDS]):
        raise ValueError(
            f"column 'input_ids' holds lists of {kinds[INPUT_IDS]}, not of token ids (integers)"
        )
    kinds = {INPUT_IDS: kinds.pop(INPUT_IDS), POSITION_IDS: pa.int32(), **kinds}
    schema = pa.schema([(name, pa.list_(kind)) for name, kind in kinds.items()])
    return datasets.Features.from_arrow_schema(schema)


def _value_kind(dataset: datasets.Dataset, name: str) -> pa.DataType:
    kind: Any = dataset.data.schema.field(name).type
    nested = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    is_lists = any(check(kind) for check in nested)
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    if not is_lists or not any(check(kind.value_type) for check in numbers):
        raise ValueError(f"column {name!r} holds {kind}, not lists of numbers")
    return kind.value_type


def read_examples(
    dataset: datasets.Dataset, start: int, end: int
) -> tuple[pa.Table, NDArray[np.int64]]:
    """Rows `start` to `end` of a dataset, and the number of each; in the order they have on disk.

    A selection or a shuffle is read from each piece of the file at once, not row by row.
    """
    given: Any = dataset  # the indices of a selection are not public
    table: pa.Table = given.data.table
    if given._indices is None:
        return table.slice(start, end - start), np.arange(start, end)
    places = given._indices.table.slice(start, end - start).column(0).to_numpy().astype(np.int64)
    order = np.argsort(places, kind="stable")
    places = places[order]
    pieces = table.to_batches()
    ends = np.cumsum([piece.num_rows for piece in pieces])
    piece_of = np.searchsorted(ends, places, "right")
    found, begins = np.unique(piece_of, return_index=True)
    taken = [
        pieces[piece].take(pa.array(inside - (ends[piece] - pieces[piece].num_rows)))
        for piece, inside in zip(found, np.split(places, begins[1:]), strict=True)
    ]
    return pa.Table.from_batches(taken), order + start


def packed_table(
    examples: pa.Table, rows: Sequence[NDArray[np.int64]], numbers: NDArray[np.int64]
) -> pa.Table:
    """The rows as Arrow lists, each the concatenation of its examples; `position_ids` in front.

    Args:
        examples: columns of lists, equally long in every column; an `attention_mask` is checked to
            be all ones and left behind.
        rows: the numbers of the examples in each row; every example is in one row.
        numbers: of the examples in their dataset, for messages.

    Raises:
        ValueError: a missing or a negative value, padding, or lists of different lengths.
    """
    columns = {name: _lists(examples, name, numbers) for name in examples.column_names}
    lengths = np.diff(columns[INPUT_IDS].offsets.to_numpy())
    _check_values(columns, lengths, numbers)
    order = np.concatenate(rows)
    ends = np.cumsum(lengths[order], dtype=np.int32)
    positions = np.arange(ends[-1], dtype=np.int32)
    positions -= np.repeat(ends - lengths[order], lengths[order])
    last_of_row = np.cumsum([len(row) for row in rows]) - 1
    offsets = pa.array(np.concatenate([[0], ends[last_of_row]]), pa.int32())
    taken: dict[str, Any] = {
        name: column.take(pa.array(order)).flatten()
        for name, column in columns.items()
        if name != ATTENTION_MASK
    }
    values = {INPUT_IDS: taken.pop(INPUT_IDS), POSITION_IDS: pa.array(positions), **taken}
    return pa.table({n: pa.ListArray.from_arrays(offsets, v) for n, v in values.items()})


def _lists(examples: pa.Table, name: str, numbers: NDArray[np.int64]) -> Any:
    """A column as one array of lists, offsets from 0; raises ValueError for missing values."""
    column: Any = examples.column(name)
    column = column.cast(pa.list_(column.type.value_type)).combine_chunks()
    compute: Any = pc
    if column.null_count:
        row = numbers[compute.index(column.is_null(), True).as_py()]
        raise ValueError(f"column {name!r} has missing values (the first is row {row})")
    values, offsets = column.flatten(), column.offsets.to_numpy()
    if values.null_count and name == WORD_IDS:
        values = values.fill_null(NO_WORD)
    if values.null_count:
        row = numbers[_row_of(compute.index(values.is_null(), True).as_py(), offsets)]
        raise ValueError(f"column {name!r} has missing values inside its lists (row {row})")
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), values)


def _row_of(place: int, offsets: NDArray[Any]) -> int:
    return int(np.searchsorted(offsets - offsets[0], place, "right")) - 1


def _check_values(columns: dict[str, Any], lengths: NDArray[Any], numbers: NDArray[Any]) -> None:
    offsets = columns[INPUT_IDS].offsets.to_numpy()
    for name, column in columns.items():
        differs = np.flatnonzero(np.diff(column.offsets.to_numpy()) != lengths)
        if len(differs):
            raise ValueError(
                f"column {name!r} has not one value per token of 'input_ids' "
                f"(example {numbers[differs[0]]}); {LEAVE_BEHIND}"
            )
    ids = columns[INPUT_IDS].values.to_numpy()
    if len(ids) and ids.min() < 0:
        place = int(np.argmax(ids < 0))
        raise ValueError(
            f"example {numbers[_row_of(place, offsets)]} has the token id {ids[place]}: ids are 0 "
            "or more (is it a column of labels?)"
        )
    if ATTENTION_MASK in columns:
        mask = columns[ATTENTION_MASK].values.to_numpy(zero_copy_only=False)
        if not mask.all():
            row = numbers[_row_of(int(np.argmin(mask)), offsets)]
            raise ValueError(
                "the examples are padded (zeros in 'attention_mask', the first in example "
                f"{row}): tokenize with padding=False"
            )
