"""Packing: whole examples into full rows, and what keeps the examples of a row apart.

`best_fit` chooses the rows and `pack` builds them, group by group; `segment_lengths` finds the
examples of a row again and `attention_inputs` keeps them apart (both are in `data/segments.py`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.fingerprint import Hasher
from numpy.typing import NDArray

from hf_tfopt.data.columns import ATTENTION_MASK, INPUT_IDS, PER_TOKEN
from hf_tfopt.data.packed_table import (
    list_lengths,
    packed_features,
    packed_table,
    read_examples,
    refuse_packed,
)
from hf_tfopt.data.segments import attention_inputs, segment_lengths
from hf_tfopt.registry import nearest

__all__ = ["attention_inputs", "best_fit", "fullness", "pack", "segment_lengths"]

# A group is packed by itself. It bounds the memory that packing needs, and keeps its reads together
# on disk; with a thousand rows or more, the last ones left half empty do not count.
_TOKENS_PER_GROUP = 1 << 22
_ROWS_PER_GROUP = 1 << 10


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
            f"{len(empty)} of {len(lengths)} examples are empty or missing (the first is example "
            f"{empty[0]}): leave them out"
        )


def pack(
    dataset: datasets.Dataset,
    max_length: int,
    *,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    num_proc: int | None = None,
    keep_in_memory: bool = False,
) -> datasets.Dataset:
    """Put whole examples into rows of up to `max_length` tokens.

    A row is the concatenation of its examples; its `position_ids` restart at 0 with each of them,
    which is all that `segment_lengths` needs to find them again.

    Groups of consecutive examples, some four million tokens each, are packed one by one, so that a
    corpus larger than memory can be: what is held is a group, and some numbers for each example.
    Within a group the order of the rows is random but fixed by `seed`, since the order of packing
    goes with length.

    As with `Dataset.map`, the rows of a dataset on disk are written next to its file and are found
    there by the next call with the same dataset and options, in this process or another; those of
    a dataset in memory stay in memory.

    Args:
        dataset: tokenized examples: a column `input_ids` of lists.
        max_length: tokens of a row, at least the length of the longest example.
        seed: of the order of the rows.
        columns: further columns with one number per token to take along; all others are left
            behind. None: token_type_ids, word_ids and labels, those that the dataset has as lists,
            of whole numbers for labels.
        num_proc: processes that pack groups; with any number the rows are the same.
        keep_in_memory: write nothing to disk.

    Returns:
        A dataset with `input_ids`, `position_ids` (int32) and `columns`.

    Raises:
        ValueError: no examples, no column `input_ids`, something other than lists of whole numbers
            from 0 in it, an example that is empty, padded, longer than `max_length` or packed
            already, a column to take along of other lengths, a transform.

    Paper: Krell et al. 2021, https://arxiv.org/abs/2107.02027. Differs: see `best_fit`.
    """
    lengths = _token_counts(dataset)
    _check_lengths(lengths, max_length)
    refuse_packed(dataset.column_names)
    names = [INPUT_IDS, *_further(dataset, columns)]
    given: Any = dataset  # what datasets keeps of a dataset's origin is not public
    # The number stands for how rows are made: a file made otherwise must not be found.
    origin = Hasher.hash(("pack 2", given._fingerprint, max_length, seed, names))
    read = [*names, *({ATTENTION_MASK} & set(dataset.column_names))]
    groups = _groups(lengths, max_length, dataset.split)
    on_disk = bool(dataset.cache_files) and not keep_in_memory
    return groups.map(
        _pack_group,
        with_indices=True,
        batched=True,
        batch_size=1,
        fn_kwargs={
            "source": dataset.select_columns(read),
            "max_length": max_length,
            "seed": seed,
        },
        remove_columns=groups.column_names,
        features=packed_features(dataset, names),
        writer_batch_size=len(lengths),  # a group is one piece of the file
        keep_in_memory=not on_disk,
        cache_file_name=given._get_cache_file_path(origin) if on_disk else None,
        new_fingerprint=origin,
        num_proc=num_proc if num_proc is None else min(num_proc, len(groups)),
        desc="Packing groups",
    )


def _groups(lengths: NDArray[np.int64], max_length: int, split: Any) -> datasets.Dataset:
    """The first example of each group and the one after its last; groups of equally many tokens."""
    before = np.cumsum(lengths) - lengths
    total = int(lengths.sum())
    size = max(_TOKENS_PER_GROUP, _ROWS_PER_GROUP * max_length)
    group = before * max(1, round(total / size)) // total
    starts = np.concatenate([[0], np.flatnonzero(np.diff(group)) + 1])
    ends = [*starts[1:], len(lengths)]
    return datasets.Dataset.from_dict({"start": starts, "end": ends}, split=split)


def _pack_group(
    group: Mapping[str, Sequence[int]],
    number: Sequence[int],
    source: Any,
    max_length: int,
    seed: int,
) -> pa.Table:
    examples, numbers = read_examples(source, group["start"][0], group["end"][0])
    rows = best_fit(list_lengths(examples.column(INPUT_IDS)), max_length)
    order = np.random.default_rng([seed, number[0]]).permutation(len(rows))
    return packed_table(examples, [rows[row] for row in order], numbers)


def _further(dataset: datasets.Dataset, columns: Sequence[str] | None) -> list[str]:
    schema = dataset.features.arrow_schema
    if columns is not None:
        return [name for name in columns if name in schema.names]
    kinds: dict[str, Any] = {f.name: f.type for f in schema if pa.types.is_nested(f.type)}
    known = [name for name in PER_TOKEN if name in kinds]
    return [name for name in known if name != "labels" or _is_whole(kinds[name])]


def _is_whole(kind: Any) -> bool:
    """Whether these lists can be of one token's label each; not of names, nor of fractions."""
    return pa.types.is_integer(getattr(kind, "value_type", None) or pa.null())


def _token_counts(dataset: Any) -> NDArray[np.int64]:
    """Of each example; raises ValueError for a dataset that has none."""
    if not isinstance(dataset, datasets.Dataset):
        raise ValueError(
            f"pack takes one datasets.Dataset, not a {type(dataset).__name__}: pack each split by "
            "itself, for instance pack(splits['train'], max_length), and a stream with pack_stream"
        )
    if INPUT_IDS not in dataset.column_names:
        raise ValueError(
            f"there is no column 'input_ids'{nearest(INPUT_IDS, dataset.column_names)}: tokenize "
            f"before packing; columns: {', '.join(dataset.column_names)}"
        )
    if not len(dataset):
        raise ValueError("there is nothing to pack: the dataset has no examples")
    if dataset.format["type"] == "custom":
        raise ValueError(
            "the dataset has a transform (set_transform or with_transform), which packing would "
            "skip: run it once with dataset.map"
        )
    packed_features(dataset, [INPUT_IDS])
    lengths = list_lengths(dataset.data.column(INPUT_IDS))
    given: Any = dataset  # the indices of a selection are not public
    return lengths if given._indices is None else lengths[given._indices.column(0).to_numpy()]


def fullness(dataset: datasets.Dataset, max_length: int) -> float:
    """The share of the places in rows of `max_length` that hold a token.

    Args:
        dataset: rows with a column `input_ids`, packed or not, without padding.
        max_length: tokens that a row could hold.
    """
    lengths = _token_counts(dataset)
    return float(lengths.sum() / (len(lengths) * max_length))
