"""How many tokens each row of a dataset has."""

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from hf_tfopt.data.batch_plan import check_rows_stay
from hf_tfopt.data.columns import ATTENTION_MASK, INPUT_IDS, Lists
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.registry import nearest


def row_lengths(dataset: Any, lengths: str | ArrayLike | None = None) -> Integers:
    """The number of tokens of every row; of a `datasets.Dataset` from Arrow's offsets alone.

    `np.array([len(row["input_ids"]) for row in dataset])`

    Args:
        dataset: map-style. One that is not a `datasets.Dataset` or `ArrowRows`, or has a transform,
            is asked for each of its rows.
        lengths: None: those of `input_ids`. A column's name: one of lists is measured; one of whole
            numbers says the lengths, and is checked where the dataset has `input_ids`. A number for
            each row: taken as they are (for a collator that shortens or lengthens rows).

    Raises:
        ValueError: no such column or row, missing values, numbers that are not lengths, one that is
            not the length of `input_ids`, lists of lists, or rows that change from epoch to epoch.
    """
    check_rows_stay(dataset)
    if lengths is not None and not isinstance(lengths, str):
        return _given(lengths, len(dataset))
    name = INPUT_IDS if lengths is None else lengths
    found, is_said = _column_lengths(dataset, name)
    if is_said and name != INPUT_IDS and _has_ids(dataset):
        _check_said(name, found, _column_lengths(dataset, INPUT_IDS)[0])
    return found


def padded_rows(dataset: Any) -> Integers:
    """The rows whose attention mask begins or ends with 0; none where they cannot be seen cheaply.

    Args:
        dataset: a `datasets.Dataset` or `ArrowRows`; of others nothing is read.
    """
    source = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    if not isinstance(source, datasets.Dataset) or ATTENTION_MASK not in source.column_names:
        return np.empty(0, dtype=np.int64)
    if source.format["type"] == "custom":
        return np.empty(0, dtype=np.int64)
    rows = ArrowRows(source, [ATTENTION_MASK])
    mask = rows.columns[ATTENTION_MASK]
    if not isinstance(mask, Lists):
        return np.empty(0, dtype=np.int64)
    found = [_has_border(*chunk) for chunk in zip(mask.values, mask.offsets, strict=True)]
    return np.flatnonzero(np.concatenate([*found, []])[rows.table_rows()])


def _has_border(mask: Any, offsets: Any) -> Any:
    """Which rows of a chunk have a 0 at one of their ends."""
    filled = offsets[1:] > offsets[:-1]
    is_padded = np.zeros(len(filled), dtype=bool)
    first, last = mask[offsets[:-1][filled]], mask[offsets[1:][filled] - 1]
    is_padded[filled] = (first == 0) | (last == 0)
    return is_padded


def _given(lengths: ArrayLike, num_rows: int) -> Integers:
    """The numbers of the user, one for each row."""
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu" or len(found) != num_rows:
        raise ValueError(
            f"lengths has the shape {found.shape} and the type {found.dtype}; it must be one whole "
            f"number for each of the {num_rows} rows"
        )
    return _not_negative("lengths", found)


def _column_lengths(dataset: Any, name: str) -> tuple[Integers, bool]:
    """The lengths, and whether they are what a column of numbers says."""
    source = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    if isinstance(source, datasets.Dataset) and source.format["type"] != "custom":
        return _from_arrow(source, name)
    return _asked(dataset, name)


def _from_arrow(dataset: Any, name: str) -> tuple[Integers, bool]:
    if name not in dataset.column_names:
        raise ValueError(
            f"the dataset has no column {name!r}{nearest(name, dataset.column_names)} to know the "
            f"lengths of its rows by; columns: {', '.join(dataset.column_names)}"
        )
    column = dataset.data.column(name)
    kind = column.type
    if column.null_count:
        raise ValueError(f"column {name!r} has {column.null_count} rows with no value")
    is_said = pa.types.is_integer(kind)
    if not is_said:
        try:
            column = pc.call_function("list_value_length", [column])
        except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
            raise ValueError(
                f"column {name!r} holds {kind}: neither lists of tokens nor their lengths"
            ) from None
        if pa.types.is_nested(kind.value_type):
            raise ValueError(
                f"column {name!r} holds {kind}, lists of lists, whose length says nothing of their "
                "tokens; give lengths=, a number for each row"
            )
    found = column.to_numpy().astype(np.int64)
    if dataset._indices is not None:  # a selection or a shuffle; datasets has no public way
        found = found[dataset._indices.column(0).to_numpy()]
    return _not_negative(f"column {name!r}", found), is_said


def _asked(dataset: Any, name: str) -> tuple[Integers, bool]:
    found = np.empty(len(dataset), dtype=np.int64)
    is_said = False
    for number in range(len(dataset)):
        value = _value(dataset, number, name)
        is_said = isinstance(value, (int, np.integer)) or getattr(value, "ndim", 1) == 0
        found[number] = int(value) if is_said else _length(value, number, name)
    return _not_negative(name, found), is_said


def _value(dataset: Any, number: int, name: str) -> Any:
    row = dataset[number]
    try:
        return row[name]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        known = f" with {', '.join(map(str, row))}" if hasattr(row, "keys") else ""
        raise ValueError(
            f"row {number} of the dataset ({type(row).__name__}{known}) has no {name!r} to know "
            "its length by; give lengths=, a number for each row"
        ) from None


def _length(value: Any, number: int, name: str) -> int:
    num_axes = 1 if isinstance(value, Sequence) else getattr(value, "ndim", 0)
    first = value[0] if isinstance(value, Sequence) and len(value) else None
    is_nested = isinstance(first, Sequence) and not isinstance(first, str)
    num_axes += is_nested or getattr(first, "ndim", 0)
    if num_axes != 1 or isinstance(value, str):
        raise ValueError(
            f"{name!r} of row {number} is of type {type(value).__name__} with {num_axes} "
            "dimensions; it must be one list of tokens"
        )
    return len(value)


def _not_negative(what: str, found: Any) -> Integers:
    wrong = np.flatnonzero(found < 0)
    if len(wrong):
        raise ValueError(f"{what}: row {wrong[0]} would have {found[wrong[0]]} tokens")
    return found.astype(np.int64)


def _has_ids(dataset: Any) -> bool:
    source = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    names: Sequence[str] | None = getattr(source, "column_names", None)
    if isinstance(source, datasets.Dataset) and source.format["type"] != "custom":
        return names is not None and INPUT_IDS in names
    first = dataset[0] if len(dataset) else {}
    return hasattr(first, "keys") and INPUT_IDS in first


def _check_said(name: str, said: Integers, real: Integers) -> None:
    wrong = np.flatnonzero(said != real)
    if len(wrong):
        row = wrong[0]
        raise ValueError(
            f"column {name!r} lies for {len(wrong)} of {len(said)} rows: it says {said[row]} for "
            f"row {row}, whose {INPUT_IDS} has {real[row]}; leave lengths out, or give the numbers "
            "themselves if the collator changes the rows"
        )
