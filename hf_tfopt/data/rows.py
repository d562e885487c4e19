"""Rows of a `datasets.Dataset` as slices of the Arrow buffers."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from hf_tfopt.data.columns import Column, open_column
from hf_tfopt.registry import check_name


class Row(Mapping[str, Any]):
    """One row, whose values are read when they are asked for.

    A Mapping but not a dict: the host's `RemoveColumnsCollator` copies dicts, and lets others pass.
    """

    __slots__ = ("columns", "index")

    def __init__(self, columns: Mapping[str, Column], index: int):
        self.columns = columns
        self.index = index

    def __getitem__(self, name: str) -> Any:
        return self.columns[name][self.index]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __contains__(self, name: object) -> bool:
        return name in self.columns


def one_source(rows: Sequence[Any]) -> "tuple[Mapping[str, Column], array[int]] | None":
    """The columns that all these rows read, and their numbers; None if not of one `ArrowRows`."""
    first = rows[0]
    if not isinstance(first, Row):
        return None
    columns = first.columns
    indices = [row.index for row in rows if isinstance(row, Row) and row.columns is columns]
    return (columns, array("q", indices)) if len(indices) == len(rows) else None


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
        self.columns = {name: open_column(name, table.column(name)) for name in self.column_names}

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
        columns = self.columns
        return [Row(columns, row) for row in rows]

    def table_rows(self) -> NDArray[np.int64]:
        """The number in the table, and so in each of `columns`, of every row of the dataset."""
        return np.arange(len(self)) if self._order is None else self._order.astype(np.int64)

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
