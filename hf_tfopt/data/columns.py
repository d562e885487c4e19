"""Columns of an Arrow table, read by row number, with no Python list on the way."""

import ctypes
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol, Self, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from hf_tfopt.native.build import address, library

INPUT_IDS, ATTENTION_MASK = "input_ids", "attention_mask"
# The one column with holes: what `tokenizer(...).word_ids()` gives special tokens is None.
WORD_IDS, NO_WORD = "word_ids", -1
# Columns beside the tokens' ids that, as lists, have one value for each.
PER_TOKEN = ("token_type_ids", WORD_IDS, "labels")


class Column(Protocol):
    """The values of one column."""

    def __getitem__(self, row: int) -> Any: ...


class Values(Column):
    """A column of anything: numbers as numpy scalars, the rest as Python objects."""

    def __init__(self, chunks: Sequence[Any]):
        numbers = bool(chunks) and _is_number(chunks[0].type)
        self.chunks = [chunk.to_numpy() for chunk in chunks] if numbers else chunks
        self.begins = _begins(chunks)

    def take(self, rows: Sequence[int]) -> NDArray[Any]:
        """The values of these rows."""
        if len(self.chunks) == 1 and isinstance(values := self.chunks[0], np.ndarray):
            return values[np.asarray(rows)]
        return np.array([self[row] for row in rows])

    def __getitem__(self, row: int) -> Any:
        chunk, inside = _place(self.begins, row)
        value = self.chunks[chunk][inside]
        return value if isinstance(value, np.generic) else value.as_py()


class _Chunk(ctypes.Structure):
    """`Chunk` of native/rows.cpp."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("first_row", ctypes.c_int64),
    )


class ColumnView(ctypes.Structure):
    """`Column` of native/masked_batch.cpp."""

    _fields_ = (
        ("chunks", ctypes.c_void_p),
        ("num_chunks", ctypes.c_int64),
        ("offset_size", ctypes.c_int32),
        ("value_size", ctypes.c_int32),
    )


class Lists(Column):
    """A column of lists of numbers: each row is a slice of its chunk's buffer.

    Args:
        values: of every chunk, one row after the other.
        offsets: for every chunk, where the values of its rows begin, and the end of the last.
    """

    def __init__(self, values: Sequence[NDArray[Any]], offsets: Sequence[NDArray[Any]]):
        self.values, self.offsets = values, offsets
        self.begins = _begins([view[:-1] for view in offsets])
        self._views: list[Any] = [view.data for view in offsets]
        places = zip(self.values, self.offsets, self.begins.tolist(), strict=True)
        self._chunks = (_Chunk * len(values))(
            *((v.ctypes.data, o.ctypes.data, begin) for v, o, begin in places)
        )

    @cached_property
    def view(self) -> ColumnView | None:
        """The buffers as C++ reads them, valid as long as this object; None: no whole numbers."""
        kind = self.values[0].dtype
        if kind.kind not in "iu":
            return None
        size = kind.itemsize if kind.kind == "i" else -kind.itemsize
        begin = ctypes.addressof(self._chunks)
        return ColumnView(begin, len(self.values), self.offsets[0].itemsize, size)

    def __getitem__(self, row: int) -> NDArray[Any]:
        chunk, inside = _place(self.begins, row)
        offsets = self._views[chunk]
        return self.values[chunk][offsets[inside] : offsets[inside + 1]]

    @classmethod
    def of_rows(cls, rows: Sequence[NDArray[Any]]) -> Self:
        """A column of these rows."""
        bounds = np.cumsum([0, *map(len, rows)])
        return cls([np.concatenate(rows)], [bounds])

    def flat(self, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All these rows one after the other, and where each begins, and the end of the last.

        `np.concatenate([self[row] for row in rows]), np.cumsum([0, *map(len, ...)])`

        Raises:
            ValueError: they are not of whole numbers.
        """
        if self.view is None:
            raise ValueError(f"a column of tokens holds {self.values[0].dtype}: whole numbers only")
        compiled = library("rows")
        if compiled is None or self.values[0].dtype.kind != "i":
            return joined([self[row] for row in rows])
        places, bounds = np.array(rows, dtype=np.int64), np.empty(len(rows) + 1, dtype=np.int64)
        where = (
            self._chunks,
            ctypes.c_int64(len(self.values)),
            ctypes.c_int(self.offsets[0].itemsize),
            address(places, "i8"),
            ctypes.c_int64(len(rows)),
        )
        compiled.tfopt_measure_rows(*where, address(bounds, "i8"))
        found = np.empty(int(bounds[-1]), dtype=np.int64)
        value_size = ctypes.c_int(self.values[0].itemsize)
        compiled.tfopt_gather_rows(*where, value_size, address(found, "i8"))
        return found, bounds


def joined(rows: Sequence[NDArray[Any]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows one after the other, and where each begins, and the end of the last."""
    return np.concatenate(rows, dtype=np.int64), np.cumsum([0, *map(len, rows)])


def open_column(name: str, column: pa.ChunkedArray) -> Column:
    """The column of this name; raises ValueError where rows have no value."""
    if column.null_count:
        raise ValueError(
            f"column {name!r} has {column.null_count} rows with no value; leave them out: "
            "dataset.filter(...).flatten_indices()"
        )
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    kind: Any = column.type
    nested = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    is_lists = any(check(kind) for check in nested) and _is_number(kind.value_type)
    if not is_lists:
        return Values(chunks)
    return Lists([_values(name, c) for c in chunks], [_offsets(c) for c in chunks])


def _begins(chunks: Sequence[Any]) -> NDArray[np.int64]:
    """The number of each chunk's first row."""
    return np.cumsum([0, *map(len, chunks)])[:-1]


def _place(begins: NDArray[np.int64], row: int) -> tuple[int, int]:
    """The chunk of a row, and its number there."""
    if len(begins) == 1:
        return 0, row
    chunk = int(begins.searchsorted(row, "right")) - 1
    return chunk, row - int(begins[chunk])


def _offsets(chunk: Any) -> NDArray[Any]:
    """Where the values of every row of a chunk of lists begin, and the end of the last."""
    if pa.types.is_fixed_size_list(chunk.type):
        size = chunk.type.list_size
        return (np.arange(len(chunk) + 1) + chunk.offset) * size
    return cast(NDArray[Any], chunk.offsets.to_numpy())


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _values(name: str, chunk: Any) -> NDArray[Any]:
    values = chunk.values
    if values.null_count and name == WORD_IDS:
        values = values.fill_null(NO_WORD)
    if values.null_count:
        raise ValueError(
            f"column {name!r} has {values.null_count} missing values inside its lists; leave these "
            "rows out: dataset.filter(...).flatten_indices()"
        )
    return cast(NDArray[Any], values.to_numpy(zero_copy_only=True))
