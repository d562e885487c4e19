"""Pairs of texts, a source and the target that a model is to make of it, from wherever they lie."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute

from hf_tfopt.data.document_cache import PathLike
from hf_tfopt.data.keyed_bits import Integers
from hf_tfopt.data.labelled_source import read_tables, split_of
from hf_tfopt.data.local_files import check_column
from hf_tfopt.data.text_pairs_dates import DATES, date_pairs

SOURCE, TARGET = "source", "target"

_compute: Any = pyarrow.compute  # its functions are made at run time: nothing is typed


class Columns(NamedTuple):
    """Where a pair is.

    Args:
        source: the column of the sources; `translation.en` is the "en" of a column of mappings.
        target: that of the targets.
        names: of the columns of .csv and .tsv files without a heading line; none: they have one.
    """

    source: str = SOURCE
    target: str = TARGET
    names: Sequence[str] | None = None


def load_pairs(source: PathLike, columns: Columns, part: str = "train") -> datasets.Dataset | None:
    """Pairs of texts: a dataset with "source" and "target", in the order of what it is read from.

    Args:
        source: "dates" (made up, for a first run); or as of `read_tables`: a file, a folder, or the
            name of a dataset on the Hugging Face Hub.
        columns: where the pairs are.
        part: "train", "eval" or "test", of a source that has such splits.

    Returns:
        The pairs; None where a source has no such split.

    Raises:
        FileNotFoundError: `source` looks like a file, and is none.
        ValueError: a kind of file that is not read, no such column, one that holds no text, or no
            row.
    """
    origin = os.fspath(source)
    if origin == DATES:
        return date_pairs() if part == "train" else None
    table = split_of(read_tables(source, columns.names), part, source)
    return None if table is None else _pairs(origin, table, columns)


def _pairs(origin: str, found: datasets.Dataset, columns: Columns) -> datasets.Dataset:
    """The two columns of a table alone, by our names."""
    if not len(found):
        raise ValueError(f"{origin} has no rows")
    flat: Any = found.flatten()  # {translation: {en, de}} -> translation.en, translation.de
    given = {SOURCE: columns.source, TARGET: columns.target}
    for key, name in given.items():
        try:
            check_column(name, flat.column_names)
        except ValueError as error:
            raise ValueError(f"{key}_column: {origin} has {error}") from error
        kind = flat.features[name]
        held = getattr(kind, "dtype", kind)
        if held not in ("string", "large_string"):
            raise ValueError(f"{key}_column: {name!r} of {origin} holds {held}, not texts")
    # still the file on disk, beside which what is made of the pairs is kept
    kept: Any = flat.with_format(None).select_columns([*dict.fromkeys(given.values())])
    if columns.source != columns.target:
        return kept.rename_columns({name: key for key, name in given.items()})
    kept = kept.rename_columns({columns.source: SOURCE})
    return kept.add_column(TARGET, kept[SOURCE][:])


def incomplete(pairs: datasets.Dataset) -> Integers:
    """The numbers of the rows without a source or without a target, rising."""
    texts: Any = pairs.with_format("arrow")[:]
    is_empty = [
        _compute.equal(_compute.binary_length(_compute.utf8_trim_whitespace(column)), 0)
        for column in (texts.column(key).fill_null("") for key in (SOURCE, TARGET))
    ]
    return np.flatnonzero(_compute.or_(*is_empty).to_numpy())


def held_out(pairs: datasets.Dataset, fraction: float, seed: int) -> Integers:
    """The numbers of the rows to hold out, rising: a share of the sources, each with all its rows.

    So no source is on both sides, however often it comes.

    Args:
        pairs: of texts.
        fraction: of the sources; at least one source is held out and one is not.
        seed: of the choice.

    Raises:
        ValueError: fewer than two sources.
    """
    texts: Any = pairs.with_format("arrow")[:]
    column = texts.column(SOURCE).cast(pa.large_string())  # strings end at 2 GiB together
    sources = column.combine_chunks().dictionary_encode()
    num_sources = len(sources.dictionary)
    if num_sources < 2:
        raise ValueError(f"{num_sources} source is too few to hold some out")
    num_chosen = min(max(round(num_sources * fraction), 1), num_sources - 1)
    chosen = np.random.default_rng(seed).permutation(num_sources)[:num_chosen]
    return np.flatnonzero(np.isin(sources.indices.to_numpy(), chosen))


def without(pairs: datasets.Dataset, numbers: Integers) -> datasets.Dataset:
    """The pairs but those of these numbers."""
    if not len(numbers):
        return pairs
    return pairs.select(np.setdiff1d(np.arange(len(pairs)), numbers))
