"""Rows of a dataset -> one flat batch, all their tokens one after the other."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hf_tfopt.data.columns import NO_WORD, WORD_IDS, Lists, joined
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.rows import one_source
from hf_tfopt.data.segments import segment_lengths

Rows = Sequence[Mapping[str, Any]]
# What the host's heads call the label of a pair of sentences; in the rows it may have either name.
SENTENCE_LABELS = ("next_sentence_label", "sentence_order_label")


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
    sentence_labels: Integers | None = None


def flatten(rows: Rows, is_packed: bool, num_ids: int) -> FlatBatch:
    """The rows of a batch, one after the other; a packed row's examples each by themselves.

    Args:
        rows: dicts or `ArrowRows`, with input_ids; token_type_ids, word_ids and a label of the pair
            of sentences if they have them.
        is_packed: whether rows hold several examples each, told apart by their position_ids.
        num_ids: of the tokenizer.

    Raises:
        ValueError: no input_ids, a token id that the tokenizer does not have, or no token at all.
    """
    if "input_ids" not in rows[0]:
        raise ValueError(f"rows have the columns {list(rows[0])} but no input_ids: tokenize first")
    ids, bounds = _column(rows, "input_ids")
    if not len(ids) or int(ids.view(np.uint64).max()) >= num_ids:  # negative ones are huge
        raise ValueError(_bad_ids(ids, num_ids))
    token_types, word_ids = (
        _column(rows, name)[0] if name in rows[0] else None for name in ("token_type_ids", WORD_IDS)
    )
    examples = bounds
    if is_packed:
        positions = [np.asarray(row["position_ids"]) for row in rows]
        examples = np.cumsum(np.concatenate([[0], *(segment_lengths(p) for p in positions)]))
    return FlatBatch(ids, bounds, examples, token_types, word_ids, _sentence_labels(rows))


def _sentence_labels(rows: Rows) -> Integers | None:
    name = next((name for name in SENTENCE_LABELS if name in rows[0]), None)
    return None if name is None else np.array([row[name] for row in rows], dtype=np.int64)


def _column(rows: Rows, name: str) -> tuple[Integers, Integers]:
    """One column of all rows as a new array; where each row begins, and the end of the last."""
    source = one_source(rows)
    if source is not None and isinstance(column := source[0][name], Lists):
        return column.flat(source[1])
    values = [row[name] for row in rows]
    if not isinstance(values[0], np.ndarray):
        values = [
            np.array([NO_WORD if v is None else v for v in value], dtype=np.int64)
            if name == WORD_IDS
            else np.asarray(value, dtype=np.int64)
            for value in values
        ]
    return joined(values)


def _bad_ids(ids: Integers, num_ids: int) -> str:
    if not len(ids):
        return "every row of this batch is empty: leave out empty rows when tokenizing"
    bad = ids[(ids < 0) | (ids >= num_ids)][0]
    return (
        f"token id {bad} is none of the tokenizer's {num_ids}: "
        "was the dataset made with another tokenizer?"
    )
