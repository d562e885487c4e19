"""A recipe's pairs of texts: read, held out, checked, and as rows of token ids."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from hf_tfopt.data.rows_fingerprint import rows_fingerprint
from hf_tfopt.data.shared_rows import shared_rows
from hf_tfopt.data.text_pairs import (
    SOURCE,
    TARGET,
    Columns,
    held_out,
    incomplete,
    load_pairs,
    without,
)
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe
from hf_tfopt.run.progress import progress_where_long

IDS, LABELS = "input_ids", "labels"
_IS_CUT = {SOURCE: "is_source_cut", TARGET: "is_target_cut"}
_SHOWN = 60  # characters of a text that an error shows

Pairs = dict[str, datasets.Dataset]
Say = Callable[[str], None]


def seq2seq_pairs(recipe: Seq2SeqRecipe, say: Say) -> tuple[Pairs, bool]:
    """The recipe's pairs "train", "eval" and "test"; and whether "eval" was drawn from "train".

    Args:
        recipe: which they are.
        say: where it is told what was left out.

    Raises:
        ValueError: as `load_pairs`; a part without rows, a row without a source or target, a pair
            that is trained on and held out, where the recipe does not say to drop it.
    """
    columns = Columns(recipe.source_column, recipe.target_column, recipe.column_names())
    train = _complete(recipe, "train", _named(recipe.train, columns), say)
    found = {"train": train}
    for part, name in (("eval", recipe.eval), ("test", recipe.test)):
        own = _named(name, columns, part) if name else load_pairs(recipe.train, columns, part)
        if own is not None:
            found[part] = _complete(recipe, part, own, say)
    is_drawn = "eval" not in found
    if is_drawn:
        assert recipe.eval_fraction is not None
        chosen = held_out(train, recipe.eval_fraction, recipe.split_seed or 0)
        found |= {"train": without(train, chosen), "eval": train.select(chosen)}
    found.setdefault("test", found["eval"])
    return _apart(recipe, found, say), is_drawn


def _named(source: str, columns: Columns, part: str = "train") -> datasets.Dataset:
    """The pairs that a key names: that part of them, or all there are."""
    found = load_pairs(source, columns, part)
    found = load_pairs(source, columns) if found is None else found
    assert found is not None, "every source has rows to train on, or is refused"
    return found


def _complete(
    recipe: Seq2SeqRecipe, part: str, pairs: datasets.Dataset, say: Say
) -> datasets.Dataset:
    """The pairs that have a source and a target."""
    numbers = incomplete(pairs)
    if not len(numbers):
        return pairs
    if recipe.incomplete_examples == "refuse":
        row = pairs[int(numbers[0])]
        missing = SOURCE if not (row[SOURCE] or "").strip() else TARGET
        raise ValueError(
            f"{part}: row {numbers[0]} has {row[missing]!r} where its {missing} should be"
            f"{_others(len(numbers))}; to leave such rows out: --incomplete_examples drop"
        )
    if len(numbers) == len(pairs):
        raise ValueError(f"{part}: none of {len(pairs)} rows has both a source and a target")
    say(f"Dropped    {len(numbers):,} rows of {part} without a source or a target")
    return without(pairs, numbers)


def _others(count: int) -> str:
    return f", and {count - 1:,} more rows are so" if count > 1 else ""


def _apart(recipe: Seq2SeqRecipe, found: Pairs, say: Say) -> Pairs:
    """The pairs, none of them both trained on and held out, unless the recipe wants it so."""
    if recipe.shared_examples == "keep":
        return found
    train, names = found["train"], [SOURCE, TARGET]
    shared = {
        part: shared_rows(train, found[part], names)
        for part in ("eval", "test")
        if part == "eval" or found["test"] is not found["eval"]
    }
    for part, numbers in shared.items():
        if len(numbers) and recipe.shared_examples == "refuse":
            text = str(train[int(numbers[0])][SOURCE])[:_SHOWN]
            raise ValueError(
                f"{part}: {len(numbers):,} of {len(train):,} training pairs are in it too, the "
                f"first is {text!r}: what was learnt by heart would count as understood; to leave "
                "them out of training: --shared_examples drop"
            )
    both = np.unique(np.concatenate([*shared.values()]))
    if len(both) == len(train):
        raise ValueError("train: every pair of it is held out too: nothing is left to train on")
    if len(both):
        say(f"Dropped    {len(both):,} training pairs that are held out too")
    return {**found, "train": without(train, both)}


def seq2seq_rows(recipe: Seq2SeqRecipe, pairs: datasets.Dataset, tokenizer: Any) -> Any:
    """Pairs as token ids, not padded: "input_ids", "labels", and whether either was cut.

    Those of pairs on disk are kept beside them, where that may be written, and are found there by
    the other processes and by the next run. Progress is shown where it takes minutes.
    """
    lengths = (recipe.max_source_length, recipe.max_target_length)
    languages = [getattr(tokenizer, f"{side}_lang", None) for side in ("src", "tgt")]
    made_with = (recipe.prefix, *lengths, tokenizer.truncation_side, *languages)
    folders = {Path(file["filename"]).parent for file in pairs.cache_files}
    with progress_where_long(pairs.data.nbytes):
        return pairs.map(
            _encoded_pairs,
            batched=True,
            remove_columns=[SOURCE, TARGET],
            fn_kwargs={"tokenizer": tokenizer, "prefix": recipe.prefix, "lengths": lengths},
            keep_in_memory=not all(os.access(folder, os.W_OK) for folder in folders),
            new_fingerprint=rows_fingerprint("text pairs 1", pairs, tokenizer, *made_with),
            desc="Tokenizing",
        )


def _encoded_pairs(
    batch: Mapping[str, Any], tokenizer: Any, prefix: str, lengths: tuple[int, int]
) -> dict[str, Any]:
    sources = [prefix + text for text in batch[SOURCE]]
    ids, is_source_cut = _encoded(tokenizer, lengths[0], text=sources)
    labels, is_target_cut = _encoded(tokenizer, lengths[1], text_target=batch[TARGET])
    cut = {_IS_CUT[SOURCE]: is_source_cut, _IS_CUT[TARGET]: is_target_cut}
    return {IDS: ids, LABELS: labels, **cut}


def _encoded(
    tokenizer: Any, max_length: int, **texts: list[str]
) -> tuple[list[list[int]], list[bool]]:
    """Ids of texts, and which of them had more than so many and were cut."""
    ids: list[list[int]] = tokenizer(**texts, verbose=False)[IDS]  # long ones are cut below
    is_cut = [len(row) > max_length for row in ids]
    if any(is_cut):
        cut = tokenizer(**texts, truncation=True, max_length=max_length)[IDS]
        ids = [
            short if is_long else row for short, row, is_long in zip(cut, ids, is_cut, strict=True)
        ]
    return ids, is_cut


def cut_rows(rows: Any) -> dict[str, int]:
    """How many sources and how many targets were cut."""
    table: Any = rows.select_columns(list(_IS_CUT.values())).with_format("numpy")[:]
    return {what: int(table[name].sum()) for what, name in _IS_CUT.items()}


def pair_lines(rows: Mapping[str, Any]) -> list[str]:
    """How many pairs each part has, and how many of them are cut, for a terminal."""
    lines = [f"Pairs      {', '.join(f'{len(own):,} to {part}' for part, own in rows.items())}"]
    for part, own in rows.items():
        cut = " and ".join(f"{num:,} {what}s" for what, num in cut_rows(own).items() if num)
        if cut:
            lines.append(f"Cut        {cut} of {len(own):,} in {part}, which are too long")
    return lines


def longer_sides(rows: Any) -> Any:
    """Of each row the tokens of its source or of its target, whichever has more: what it takes."""
    table: Any = rows.select_columns([IDS, LABELS]).with_format("arrow")[:]
    lengths = [_lengths(table.column(name)) for name in (IDS, LABELS)]
    return np.maximum(*lengths)


def _lengths(column: Any) -> Any:
    parts = [np.diff(chunk.offsets.to_numpy()) for chunk in column.chunks]
    return np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)


def pair_facts(pairs: datasets.Dataset, rows: Any) -> dict[str, Any]:
    """Pairs, tokens of the sources and of the targets, and how many were cut, for the card."""
    table: Any = rows.select_columns([IDS, LABELS]).with_format("arrow")[:]
    cut = cut_rows(rows)
    return {
        "examples": len(pairs),
        "source_tokens": int(_lengths(table.column(IDS)).sum()),
        "target_tokens": int(_lengths(table.column(LABELS)).sum()),
        "cut_sources": cut[SOURCE],
        "cut_targets": cut[TARGET],
    }


def part_facts(pairs: Pairs, rows: Mapping[str, Any], num_texts: int) -> dict[str, dict[str, Any]]:
    """The facts of each part; of the last one, for how many of its pairs there are texts.

    Args:
        pairs: from `seq2seq_pairs`; "test" is left out where it is "eval".
        rows: the same as token ids.
        num_texts: generated; told where they are not of all pairs.
    """
    parts = [part for part in pairs if part != "test" or pairs[part] is not pairs["eval"]]
    facts = {part: pair_facts(pairs[part], rows[part]) for part in parts}
    if 0 < num_texts < len(pairs["test"]):
        facts["test" if "test" in facts else "eval"]["pairs_generated_for"] = num_texts
    return facts
