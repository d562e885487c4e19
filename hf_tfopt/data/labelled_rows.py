"""Rows that are learnt from: a text or two, or words, and a label, under names of their own."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import datasets

from hf_tfopt.data.local_files import check_column
from hf_tfopt.registry import nearest

TEXT, PAIR, LABEL = "text", "text_pair", "label"
SHOWN = 80  # characters of a value that an error shows
UNLABELLED = -1  # of the Hub's ClassLabel


class Labelled(NamedTuple):
    """A table as it is learnt from: "text" (or words), perhaps "text_pair", and "label".

    Args:
        table: the rows.
        source: what they are called in an error.
        names: its column's own name of each of the three; rows without labels name none.
    """

    table: datasets.Dataset
    source: str
    names: Mapping[str, str]

    @property
    def has_labels(self) -> bool:
        """Whether it is known what is true of the rows."""
        return LABEL in self.names

    def column(self, name: str) -> list[Any]:
        """All values of a column."""
        return values_of(self.table, name)

    def shown(self, row: int) -> str:
        """The text of a row, as an error shows it."""
        return repr(self.table[row][TEXT])[:SHOWN]

    def refusal(self, row: int, name: str, words: str) -> ValueError:
        """The error for a value that cannot be."""
        shown = repr(self.table[row][name])[:SHOWN]
        return ValueError(f"{self.source}: row {row} has {shown} as {self.names[name]!r}; {words}")


def values_of(table: datasets.Dataset, column: str) -> list[Any]:
    """All values of a column, in their order."""
    return table.select_columns(column).with_format("arrow")[:][column].to_pylist()


def is_labelled(table: datasets.Dataset, label_column: str) -> bool:
    """Whether a table has labels: in such a column something else than nothing and -1 (of GLUE).

    Raises:
        ValueError: there is no such column, but one of nearly that name.
    """
    if label_column not in table.column_names:
        if nearest(label_column, table.column_names):
            check_column(label_column, table.column_names)
        return False
    return not all(map(_is_nothing, values_of(table, label_column)))


def _is_nothing(label: Any) -> bool:
    if isinstance(label, list):
        return bool(label) and all(map(_is_nothing, label))
    return label in (None, "", UNLABELLED)


def labelled(
    table: datasets.Dataset,
    source: str,
    text_column: str,
    text_pair_column: str | None,
    label_column: str | None,
    label_separator: str | None = None,
) -> Labelled:
    """The columns of a table that are learnt from, under names of their own.

    Args:
        table: as it was read.
        source: what an error calls it.
        text_column: where the text is, or a list of words.
        text_pair_column: where the second text is; None: there is none.
        label_column: where the label is; None: the rows have none.
        label_separator: stands between several labels in one text; None: they are a list, or one.

    Raises:
        ValueError: no such column, one given for two things, or no rows.
    """
    names = {TEXT: text_column, PAIR: text_pair_column, LABEL: label_column}
    named = {name: column for name, column in names.items() if column is not None}
    for name, column in named.items():
        check_column(column, table.column_names)
        if list(named.values()).count(column) > 1:
            raise ValueError(f"{name}_column: {column!r} is named for two things")
    if not len(table):
        raise ValueError(f"{source} has no rows")
    table = table.select_columns(list(named.values()))
    for name, column in named.items():  # by way of names that nothing has, as two may be exchanged
        table = table.rename_column(column, f"\0{name}")
    table = table.rename_columns({f"\0{name}": name for name in named})
    found = Labelled(table, source, named)
    if label_separator is None or not found.has_labels:
        return found
    return _split_labels(found, label_separator)


def _split_labels(found: Labelled, separator: str) -> Labelled:
    """Each label text cut at the separator; an empty text is no label."""
    if not is_text(found.table.features[LABEL]):
        raise ValueError(
            f"label_separator: {found.names[LABEL]!r} of {found.source} is no text that it could "
            "cut; leave it out"
        )
    parts = [
        [part for part in (label or "").split(separator) if part] for label in found.column(LABEL)
    ]
    stripped = [[part.strip() for part in row] for row in parts]
    kind = datasets.List(datasets.Value("string"))
    return found._replace(table=with_label(found.table, stripped, kind))


def with_label(table: datasets.Dataset, values: Sequence[Any], kind: Any) -> datasets.Dataset:
    """The table with other labels than it may have, of this feature type."""
    column = datasets.Dataset.from_dict({LABEL: values}, features=datasets.Features({LABEL: kind}))
    rest = table.select_columns([name for name in table.column_names if name != LABEL])
    rest = rest.flatten_indices()
    return datasets.concatenate_datasets([rest, column], axis=1)


def is_text(feature: Any) -> bool:
    """Whether a column holds texts."""
    return getattr(feature, "dtype", None) in ("string", "large_string")


def item_of(feature: Any) -> Any | None:
    """The type of a list column's items; None: it is no list."""
    return getattr(feature, "feature", None)
