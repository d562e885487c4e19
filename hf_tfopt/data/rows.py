"""Rows of a `datasets.Dataset` as slices of the Arrow buffers, with no Python list on the way."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hf_tfopt.registry import check_name

Reader = Callable[[int], Any]

# The one column with holes: what `tokenizer(...).word_ids()` gives special tokens is None.
WORD_IDS, NO_WORD = "word_ids", -1


class Row(Mapping[str, Any]):
    """One row, whose values are read when they are asked for.

    A Mapping but not a dict: the host's `RemoveColumnsCollator` copies dicts, and lets others pass.
    """

    __slots__ = ("index", "readers")

    def __init__(self, readers: Mapping[str, Reader], index: int):
        self.readers = readers
        self.index = index

    def __getitem__(self, name: str) -> Any:
        return self.readers[name](self.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.readers)

    def __len__(self) -> int:
        return len(self.readers)

    def __contains__(self, name: object) -> bool:
        return name in self.readers


def column_of(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    """`[row[name] for row in rows]`, with one call less a row where they are of `ArrowRows`."""
    if set(map(type, rows)) == {Row}:
        return [row.readers[name](row.index) for row in cast(Sequence[Row], rows)]
    return [row[name] for row in rows]


class ArrowRows(torch.utils.data.Dataset[Row]):
    """A `datasets.Dataset` whose lists of numbers come as read-only numpy slices, without a copy.

    `ArrowRows(dataset)[i][name] == np.array(dataset[i][name])`

    Selections and shuffles (`dataset._indices`) and tables of many chunks are honoured. What has
    no numpy form (text, nested lists) comes as the Python object.

    Args:
        dataset: a map-style dataset, without a transform set on it.
        columns: those to offer; None: all that the dataset's own format offers.

    Raises:
        ValueError: an unknown column, a transform, or rows with missing values.
    """

    def __init__(self, dataset: datasets.Dataset, columns: Sequence[str] | None = None):
        given: Any = dataset
        if not isinstance(given, datasets.Dataset):  # a DatasetDict, most often
            raise ValueError(f"{type(given).__name__} given: ArrowRows reads a datasets.Dataset")
        if dataset.format["type"] == "custom":
            raise ValueError(
                "the dataset has a transform (set_transform or with_transform), which rows read "
                "from Arrow would skip: run it once with dataset.map"
            )
        self.dataset = dataset
        offered: Any = dataset.format["columns"]
        self.column_names: list[str] = list(columns or offered)
        for name in self.column_names:
            check_name("column", name, dataset.column_names)
        self._open()

    def _open(self) -> None:
        dataset: Any = self.dataset
        self._order = None if dataset._indices is None else _joined(dataset._indices.column(0))
        table = dataset.data
        self.readers = {name: _reader(name, table.column(name)) for name in self.column_names}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index + len(self) if index < 0 else index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Row]:
        """The rows of a batch, as the DataLoader asks for them."""
        size = len(self)
        if len(indices) and not (min(indices) >= 0 and max(indices) < size):
            raise IndexError(f"row {min(indices)} or {max(indices)} is not in 0..{size - 1}")
        rows = indices if self._order is None else self._order[indices].tolist()
        readers = self.readers
        return [Row(readers, row) for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        """Without the buffers: a memory-mapped dataset goes to a worker as file names."""
        return {"dataset": self.dataset, "column_names": self.column_names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


def _joined(column: pa.ChunkedArray) -> NDArray[Any]:
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy(zero_copy_only=True)
    return column.to_numpy()


def _reader(name: str, column: pa.ChunkedArray) -> Reader:
    """A function of the row that finds its chunk, then the row in the chunk."""
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} rows with no value")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    readers = [_chunk_reader(name, chunk) for chunk in chunks]
    if len(readers) == 1:
        return readers[0]
    begins = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def read(row: int) -> Any:
        chunk = int(begins.searchsorted(row, "right")) - 1
        return readers[chunk](row - int(begins[chunk]))

    return read


def _chunk_reader(name: str, chunk: Any) -> Reader:
    kind = chunk.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if not _is_number(kind.value_type):
            return lambda row: chunk[row].as_py()
        values, offsets = _values(name, chunk), memoryview(chunk.offsets.to_numpy())
        return lambda row: values[offsets[row] : offsets[row + 1]]
    if pa.types.is_fixed_size_list(kind) and _is_number(kind.value_type):
        values, size, skipped = _values(name, chunk), kind.list_size, chunk.offset
        return lambda row: values[(skipped + row) * size : (skipped + row + 1) * size]
    if _is_number(kind):
        values = chunk.to_numpy()
        return lambda row: values[row]
    return lambda row: chunk[row].as_py()


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _values(name: str, chunk: Any) -> NDArray[Any]:
    values = chunk.values
    if values.null_count and name == WORD_IDS:
        values = values.fill_null(NO_WORD)
    if values.null_count:
        raise ValueError(f"column {name!r} has {values.null_count} missing values inside its lists")
    return cast(NDArray[Any], values.to_numpy(zero_copy_only=True))
