"""Pairs of slices -> rows: the special tokens and token types that a tokenizer gives a pair."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class PairTemplate(NamedTuple):
    """What a tokenizer puts before, between and behind two texts, and all token types.

    Args:
        ids: of the special tokens at the three places.
        types: of the same.
        text_types: of the tokens of A and of B.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...]
    text_types: tuple[int, int]

    @property
    def num_special(self) -> int:
        """The special tokens of a pair."""
        return sum(map(len, self.ids))


def pair_template(tokenizer: Any) -> PairTemplate:
    """The template, read off a pair of short texts.

    Raises:
        ValueError: a tokenizer that puts nothing between two texts.
    """
    bare, pair = (
        tokenizer(
            *texts,
            add_special_tokens=special,
            return_special_tokens_mask=True,
            return_token_type_ids=True,
            verbose=False,
        )
        for texts, special in ((("a",), False), (("a", "a"), True))
    )
    size = len(bare["input_ids"])
    text = [i for i, is_special in enumerate(pair["special_tokens_mask"]) if not is_special]
    if not size or len(text) != 2 * size or text[size] - text[size - 1] < 2:
        raise ValueError(
            f"{type(tokenizer).__name__} puts no separator between the two texts of a pair: take "
            "the tokenizer of a model that reads pairs (BERT, ALBERT), or set its post-processor"
        )
    spans = ((0, text[0]), (text[size - 1] + 1, text[size]), (text[-1] + 1, len(pair["input_ids"])))
    ids, types = (
        tuple(tuple(pair[name][start:end]) for start, end in spans)
        for name in ("input_ids", "token_type_ids")
    )
    return PairTemplate(
        ids, types, (pair["token_type_ids"][text[0]], pair["token_type_ids"][text[-1]])
    )


def pair_rows(
    ids: NDArray[np.int32], pairs: NDArray[np.int64], template: PairTemplate, label: str
) -> pa.RecordBatch:
    """The rows `before + ids[a] + between + ids[b] + behind` of many pairs, as Arrow lists.

    Args:
        ids: all tokens.
        pairs: for each pair where A starts and ends in `ids`, where B does, and its label.
        template: what stands around them.
        label: the name of the labels' column.
    """
    a_lengths, b_lengths = pairs[:, 1] - pairs[:, 0], pairs[:, 3] - pairs[:, 2]
    before, between, behind = map(len, template.ids)
    ends = np.cumsum(a_lengths + b_lengths + template.num_special)
    starts = ends - a_lengths - b_lengths - template.num_special
    tokens = np.empty(ends[-1], dtype=np.int32)
    types = np.empty(ends[-1], dtype=np.int8)
    b_starts = starts + before + a_lengths + between
    for place, source, lengths, kind in (
        (starts + before, pairs[:, 0], a_lengths, template.text_types[0]),
        (b_starts, pairs[:, 2], b_lengths, template.text_types[1]),
    ):
        where = _ranges(place, lengths)
        tokens[where] = ids[_ranges(source, lengths)]
        types[where] = kind
    for place, special, kinds in zip(
        (starts, b_starts - between, ends - behind), template.ids, template.types, strict=True
    ):
        where = place[:, None] + np.arange(len(special))
        tokens[where], types[where] = special, kinds
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    columns = {
        "input_ids": pa.ListArray.from_arrays(offsets, pa.array(tokens)),
        "token_type_ids": pa.ListArray.from_arrays(offsets, pa.array(types)),
        label: pa.array(pairs[:, 4]),
    }
    return pa.RecordBatch.from_pydict(columns)


def _ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """`concatenate([arange(s, s + n) for s, n in zip(starts, lengths)])`."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
