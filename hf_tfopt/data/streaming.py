"""Packing of a stream: examples that are read once, packed a buffer at a time."""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import datasets
import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.columns import NO_WORD, PER_TOKEN, WORD_IDS
from hf_tfopt.data.keyed_bits import shuffled
from hf_tfopt.data.packed_table import LEAVE_BEHIND, refuse_packed
from hf_tfopt.data.packing import best_fit
from hf_tfopt.registry import nearest


def pack_stream(
    stream: datasets.IterableDataset,
    max_length: int,
    *,
    buffer: int = 1000,
    seed: int = 0,
    columns: Sequence[str] | None = None,
) -> datasets.IterableDataset:
    """Put whole examples of a stream into rows of up to `max_length` tokens.

    `stream.map(pack_examples, batched=True, batch_size=buffer)`: the examples of each buffer are
    packed by themselves, as `pack` does those of a dataset, so no example is lost and the rows are
    a function of the stream, `buffer` and `seed` alone. Each buffer leaves at most a few rows
    unfilled; a buffer that fills 100 rows has them 98% full or more (lengths of text).

    `datasets` can restore where it was in the stream to the example, and reads one buffer again. A
    stream with several shards has them in another order in every pass (`set_epoch`); put
    `stream.shuffle(seed, buffer_size)` before for more, but `datasets` restores no shuffle buffer.

    Args:
        stream: tokenized examples: lists in `input_ids`.
        max_length: tokens of a row, at least the length of the longest example.
        buffer: examples that are packed together.
        seed: of the order of a buffer's rows.
        columns: further columns with one number per token to take along; all others are left
            behind. None: token_type_ids, word_ids, and labels if the first example has a list of
            whole numbers there.

    Returns:
        A stream of rows with `input_ids`, `position_ids` (int32) and `columns`, as numpy arrays.

    Raises:
        ValueError: not a stream, no examples, no column `input_ids`, examples that are packed
            already, a first one with labels of None, or a number out of range; when it is read: an
            example that is empty, padded or longer than `max_length`.

    Paper: Krell et al. 2021, https://arxiv.org/abs/2107.02027. Differs: see `best_fit`.
    """
    for name, value in (("max_length", max_length), ("buffer", buffer)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    names = _column_names(stream)
    refuse_packed(names)
    further = _listed(stream, names) if columns is None else columns
    return stream.with_format(None).map(
        pack_examples,
        batched=True,
        batch_size=buffer,
        remove_columns=names,
        fn_kwargs={
            "max_length": max_length,
            "seed": seed,
            "columns": [name for name in further if name in names],
        },
    )


def _column_names(stream: Any) -> list[str]:
    if not isinstance(stream, datasets.IterableDataset):
        raise ValueError(
            f"pack_stream takes one datasets.IterableDataset, not a {type(stream).__name__}: "
            "a datasets.Dataset is packed by pack, each split of a dictionary by itself"
        )
    names = list(stream.column_names or next(iter(stream), {}))
    if not names:
        raise ValueError("there is nothing to pack: the stream has no examples")
    if "input_ids" not in names:
        raise ValueError(
            f"there is no column 'input_ids'{nearest('input_ids', names)}: tokenize before "
            f"packing; columns: {', '.join(names)}"
        )
    return names


def _listed(stream: datasets.IterableDataset, names: Sequence[str]) -> list[str]:
    known = [name for name in PER_TOKEN if name in names]
    example: Mapping[str, Any] = next(iter(stream), {}) if "labels" in known else {}
    if "labels" in example and example["labels"] is None:
        raise ValueError(
            f"the first example has no labels, which tells nothing of the others': {LEAVE_BEHIND}"
        )
    labels = np.asarray(example.get("labels", 0))
    is_listed = labels.ndim == 1 and (labels.dtype.kind in "iuO" or not labels.size)
    return known if is_listed else [name for name in known if name != "labels"]


def pack_examples(
    examples: Mapping[str, Sequence[Any]],
    max_length: int,
    seed: int = 0,
    columns: Sequence[str] = (),
) -> dict[str, list[NDArray[Any]]]:
    """Rows of up to `max_length` tokens of these examples, in an order fixed by them and `seed`.

    A row is the concatenation of its examples; its `position_ids` restart at 0 with each of them.

    Args:
        examples: by column, an item per example: `input_ids` and `columns` have a list each.
        max_length: tokens of a row.
        seed: of the order of the rows.
        columns: to take along beside `input_ids`.

    Raises:
        ValueError: an example that is empty, padded or longer than `max_length`, no whole numbers,
            or a column with another number of values than tokens.
    """
    ids = [_tokens("input_ids", example) for example in examples["input_ids"]]
    sources = {"input_ids": ids}
    lengths = np.array([len(example) for example in ids], dtype=np.int64)
    _check_masks(examples.get("attention_mask", ()))
    for name in columns:
        sources[name] = [_tokens(name, example) for example in examples[name]]
        if any(len(values) != n for values, n in zip(sources[name], lengths, strict=True)):
            raise ValueError(
                f"column {name!r} has not one value per token of 'input_ids'; {LEAVE_BEHIND}"
            )
    rows = best_fit(lengths, max_length)
    order = shuffled(len(rows), seed, crc32(np.concatenate(ids).tobytes())) if rows else []
    rows = [rows[number] for number in order]
    positions = [np.arange(n, dtype=np.int32) for n in lengths.tolist()]
    sources = {"input_ids": sources.pop("input_ids"), "position_ids": positions, **sources}
    return {
        name: [np.concatenate([values[example] for example in row.tolist()]) for row in rows]
        for name, values in sources.items()
    }


def _tokens(name: str, values: Any) -> NDArray[Any]:
    """One example's values; raises ValueError for anything but a list of whole numbers."""
    if values is None:
        raise ValueError(f"column {name!r} has examples with no value")
    if name == WORD_IDS:
        values = [NO_WORD if value is None else value for value in values]
    found = np.asarray(values)
    if not found.size:
        return np.empty(0, dtype=np.int64)
    kinds, allowed = ("iu", "whole numbers") if name == "input_ids" else ("biuf", "numbers")
    if found.ndim != 1 or found.dtype.kind not in kinds:
        raise ValueError(f"column {name!r} must hold lists of {allowed}, not {values!r:.60}")
    return found


def _check_masks(masks: Sequence[Any]) -> None:
    if not all(np.asarray(mask).all() for mask in masks):
        raise ValueError(
            "the examples are padded (zeros in 'attention_mask'): tokenize with padding=False"
        )
