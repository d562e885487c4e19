"""What is learnt from rows with labels: classes, several at once, numbers, or tags of words."""

from collections.abc import Iterable, Sequence
from typing import Any

import datasets

from hf_tfopt.data.labelled_names import REGRESSION, SEVERAL, SINGLE, TOKENS
from hf_tfopt.data.labelled_rows import (
    LABEL,
    PAIR,
    TEXT,
    UNLABELLED,
    Labelled,
    is_text,
    item_of,
)

SWITCHED = (0.0, 1.0)
NO_LABEL = (
    "it stands for none, as in the test splits of GLUE: leave such rows out, or take another split"
)


def problem_of(rows: Labelled) -> str:
    """What can be learnt from rows, by the types of their columns.

    Lists of words: tags. A list of labels: several at once. Numbers with a fraction: a regression.
    Whole numbers and names: classes.
    """
    text, label = rows.table.features[TEXT], rows.table.features[LABEL]
    if item_of(text) is not None:
        return TOKENS
    if item_of(label) is not None:
        return SEVERAL
    if str(getattr(label, "dtype", "")).startswith(("float", "double", "decimal")):
        return REGRESSION
    values = rows.column(LABEL) if is_text(label) else []
    numbers = [number_of(value) for value in values]
    is_numeric = bool(numbers) and all(number is not None for number in numbers)
    return REGRESSION if is_numeric and any("." in value for value in values) else SINGLE


def number_of(value: Any) -> float | None:
    """The number that a value is or is written as; None: it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def check_texts(rows: Labelled, problem: str) -> None:
    """Refuse what is no text, and rows without one.

    Raises:
        ValueError: a column of numbers, of lists or of words where it should not be; an empty text;
            as many tags as a row has not words.
    """
    for name in (name for name in (TEXT, PAIR) if name in rows.names):
        feature = rows.table.features[name]
        wanted = "lists of words" if problem == TOKENS else "text"
        inside = item_of(feature) if problem == TOKENS else feature
        if not is_text(inside):
            raise ValueError(
                f"{rows.source}: column {rows.names[name]!r} holds {_shown_type(feature)}, and "
                f"{problem} reads {wanted}{_columns_of_text(rows)}"
            )
        for row, value in enumerate(rows.column(name)):
            if not (value and (problem == TOKENS or value.strip())):
                raise rows.refusal(row, name, f"expected {wanted}")


def _shown_type(feature: Any) -> str:
    inside = item_of(feature)
    if inside is not None:
        return f"lists of {_shown_type(inside)}"
    if is_text(feature):
        return "text"
    return "numbers" if hasattr(feature, "dtype") else type(feature).__name__


def _columns_of_text(rows: Labelled) -> str:
    is_swapped = LABEL in rows.names and is_text(rows.table.features[LABEL])
    return f"; {rows.names[LABEL]!r} holds text: were they exchanged?" if is_swapped else ""


def class_names(rows: Labelled, problem: str) -> list[str] | None:
    """The names of the classes in the order of their numbers; None for a regression.

    Those that the table itself knows (`ClassLabel`), else what is found: names by the alphabet,
    whole numbers from 0; of lists of 0 and 1 the places.

    Raises:
        ValueError: one class alone, numbers that leave one out, labels that are none.
    """
    if problem == REGRESSION:
        return None
    feature = rows.table.features[LABEL]
    inner = item_of(feature) if problem in (SEVERAL, TOKENS) else feature
    labels = rows.column(LABEL)
    check_labels(rows, problem, labels)
    if isinstance(inner, datasets.ClassLabel):
        return [str(name) for name in inner.names]
    if problem == SINGLE:
        return label_names([_plain(label) for label in labels])
    if are_switches(rows, problem):
        return [str(place) for place in range(len(labels[0]))]
    return label_names([_plain(label) for several in labels for label in several])


def label_names(labels: Iterable[int | str]) -> list[str]:
    """The classes' names in the order of their numbers: names by the alphabet, numbers from 0.

    Raises:
        ValueError: a single class, or numbers that leave one out.
    """
    found = sorted({*labels})
    if len(found) < 2:
        raise ValueError(f"there is one class only, {found}: nothing can be learnt from it")
    if isinstance(found[0], int) and found != list(range(len(found))):
        raise ValueError(
            f"the labels are {', '.join(map(str, found[:10]))}: classes are numbered from 0 "
            "without gaps, or have names"
        )
    names, numbers = [str(name) for name in found], [str(place) for place in range(len(found))]
    return numbers if set(names) == set(numbers) else names  # "10" is no earlier than "2"


def _plain(label: Any) -> int | str:
    return str(label) if isinstance(label, bool) else label


def are_switches(rows: Labelled, problem: str) -> bool:
    """Whether each label says 0 or 1 of every class, and does not list classes.

    It does where all are as long, and of 0 and 1: two or more, as lists of the classes 0 and 1 with
    both in every row teach nothing. One training set decides for all that is examined.

    Raises:
        ValueError: numbers with a fraction as lists of classes.
    """
    feature = item_of(rows.table.features[LABEL])
    if problem != SEVERAL or isinstance(feature, datasets.ClassLabel):
        return False
    labels: list[Any] = rows.column(LABEL)
    width = len(labels[0])
    is_float = str(getattr(feature, "dtype", "")).startswith(("float", "double"))
    for row, label in enumerate(labels):
        if len(label) != width or not all(value in SWITCHED for value in label):
            if is_float:
                raise rows.refusal(row, LABEL, f"expected a list of 0 and 1, {width} of them")
            return False
    return width > 1 or (is_float and width == 1)


def check_labels(rows: Labelled, problem: str, labels: Sequence[Any]) -> None:
    """Refuse labels of another kind than the problem's.

    Raises:
        ValueError: none, an empty or an unlabelled one, a fraction or NaN for a class, a list for
            one label, one for a list.
    """
    if problem == REGRESSION:  # `numbers_of` looks at each
        return
    words = None
    if problem == TOKENS:
        words = [len(text) for text in rows.column(TEXT)]
    for row, label in enumerate(labels):
        if problem == SINGLE:
            if label is None or label == "" or isinstance(label, (float, list)):
                raise rows.refusal(row, LABEL, "classes are whole numbers or names")
            if label == UNLABELLED:
                raise rows.refusal(row, LABEL, NO_LABEL)
            continue
        if not isinstance(label, list) or any(value in (None, "") for value in label):
            expected = "one tag for each word" if words else "a list of labels"
            raise rows.refusal(row, LABEL, f"{problem} needs {expected}")
        if any(isinstance(value, float) and value not in SWITCHED for value in label):
            raise rows.refusal(row, LABEL, "of each class there is 0 or 1, or classes are listed")
        if words and len(label) != words[row]:
            raise rows.refusal(
                row, LABEL, f"{len(label)} tags for {words[row]} words, expected as many"
            )
