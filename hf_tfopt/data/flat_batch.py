"""Rows of a dataset -> one flat batch, all their tokens one after the other."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_tfopt.data.columns import ATTENTION_MASK, NO_WORD, WORD_IDS, Lists, Values
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.rows import one_source
from hf_tfopt.data.segments import segment_lengths

Rows = Sequence[Mapping[str, Any]]
# What the host's heads call the label of a pair of sentences; in the rows it may have either name.
SENTENCE_LABELS = ("next_sentence_label", "sentence_order_label")
TOKEN_COLUMNS = ("token_type_ids", WORD_IDS)
LIST_COLUMNS = ("input_ids", *TOKEN_COLUMNS, "position_ids", ATTENTION_MASK)


class FlatBatch(NamedTuple):
    """All tokens of a batch, one row after the other; without padding.

    `rows` and `examples` hold where each begins, and the end of the last; they are the same unless
    rows are packed. `token_types` and `word_ids` are by token, None if the rows have none.
    """

    ids: Integers
    rows: Integers
    examples: Integers
    token_types: Integers | None = None
    word_ids: Integers | None = None


class RowLists(NamedTuple):
    """The columns of lists that a batch is made of, and which of their rows are its own."""

    columns: Mapping[str, Lists]
    rows: "array[int]"

    @property
    def is_packed(self) -> bool:
        """Whether rows hold several examples each, told apart by their position_ids."""
        return "position_ids" in self.columns


def row_lists(rows: Rows) -> RowLists:
    """The columns of lists of these rows: those of `ArrowRows` as they are, or made of dicts.

    Raises:
        ValueError: no input_ids, padding, or something other than lists of whole numbers.
    """
    source = one_source(rows)
    columns = rows[0] if source is None else source[0]
    if "input_ids" not in columns:
        raise ValueError(f"rows have the columns {list(columns)} but no input_ids: tokenize first")
    names = [name for name in LIST_COLUMNS if name in columns]
    if source is not None:
        found = {name: column for name in names if isinstance(column := columns[name], Lists)}
        if len(found) == len(names):
            return RowLists(found, source[1])
    for name in LIST_COLUMNS:  # of a mixture, the first row may be the one without
        if name not in names and any(name in row for row in rows):
            raise ValueError(f"row 0 of a batch has no {name}, and others have")
    made = {name: Lists.of_rows(_lists(rows, name)) for name in names}
    return RowLists(made, array("q", range(len(rows))))


def flatten(rows: Rows, is_packed: bool, num_ids: int) -> FlatBatch:
    """The rows of a batch, one after the other; a packed row's examples each by themselves.

    Args:
        rows: dicts or `ArrowRows`, with input_ids; token_type_ids, word_ids and a label of the pair
            of sentences if they have them.
        is_packed: whether rows hold several examples each, told apart by their position_ids.
        num_ids: of the tokenizer.

    Raises:
        ValueError: no input_ids, a token id that the tokenizer does not have, no token at all, or
            columns that have not one value for each token.
    """
    return flat_lists(row_lists(rows), is_packed, num_ids)


def flat_lists(lists: RowLists, is_packed: bool, num_ids: int) -> FlatBatch:
    """`flatten` of rows whose columns were found."""
    flat = {name: column.flat(lists.rows) for name, column in lists.columns.items()}
    if ATTENTION_MASK in flat:
        _check_unpadded(*flat[ATTENTION_MASK])
    ids, bounds = flat["input_ids"]
    if not len(ids) or int(ids.view(np.uint64).max()) >= num_ids:  # negative ones are huge
        raise ValueError(_bad_ids(ids, num_ids))
    for name, (_, ends) in flat.items():
        if not np.array_equal(ends, bounds):
            row = int(np.flatnonzero(np.diff(ends) != np.diff(bounds))[0])
            raise ValueError(
                f"a row has {np.diff(bounds)[row]} input_ids and {np.diff(ends)[row]} {name}: "
                "there must be one for each token"
            )
    examples = bounds
    if is_packed:
        parts = np.split(flat["position_ids"][0], bounds[1:-1])
        examples = np.cumsum(np.concatenate([[0], *(segment_lengths(part) for part in parts)]))
    types, word_ids = (flat[name][0] if name in flat else None for name in TOKEN_COLUMNS)
    return FlatBatch(ids, bounds, examples, types, word_ids)


def sentence_labels(rows: Rows) -> Integers | None:
    """The label of the pair of sentences that each row is; None if no row has any.

    Raises:
        ValueError: a row without a label beside rows with one.
    """
    source = one_source(rows)
    asked = rows if source is None else rows[:1]  # rows of one table have the same columns
    for name in SENTENCE_LABELS:
        if any(row.get(name) is not None for row in asked):
            break
    else:
        return None
    if source is not None and isinstance(column := source[0][name], Values):
        return column.take(source[1]).astype(np.int64)
    given = [row.get(name) for row in rows]
    missing = next((number for number, value in enumerate(given) if value is None), None)
    if missing is not None:
        raise ValueError(f"row {missing} of a batch has no {name}, and others have")
    return np.array(given, dtype=np.int64)


def _check_unpadded(mask: Integers, bounds: Integers) -> None:
    """Batches are padded here; padding in rows would be read as text."""
    if not mask.all():
        row = int(np.searchsorted(bounds, np.argmin(mask != 0), "right")) - 1
        raise ValueError(
            "the rows are padded already (or masked by their attention_mask), the first is row "
            f"{row} of a batch: tokenize with padding=False, batches are padded here"
        )


def _lists(rows: Rows, name: str) -> Sequence[Integers]:
    """The lists of this column in rows of any kind."""
    return [_list(row, name, number) for number, row in enumerate(rows)]


def _list(row: Mapping[str, Any], name: str, number: int) -> Integers:
    if name not in row:
        raise ValueError(f"row {number} of a batch has no {name}, and others have")
    value = row[name]
    try:
        if name == WORD_IDS and not isinstance(value, np.ndarray):
            value = [NO_WORD if word is None else word for word in value]
        found = np.asarray(value)
    except (TypeError, ValueError):  # lists in the list, of different lengths
        found = None
    if name == ATTENTION_MASK and found is not None and found.dtype.kind == "b":
        found = found.astype(np.int64)
    if found is None or found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise ValueError(
            f"row {number} of a batch has {name} of {value!r:.60}: it must be a list of whole "
            "numbers"
        )
    return found if len(found) else found.astype(np.int64)


def _bad_ids(ids: Integers, num_ids: int) -> str:
    if not len(ids):
        return "every row of this batch is empty: leave out empty rows when tokenizing"
    bad = ids[(ids < 0) | (ids >= num_ids)][0]
    return (
        f"token id {bad} is none of the tokenizer's {num_ids}: "
        "was the dataset made with another tokenizer?"
    )
