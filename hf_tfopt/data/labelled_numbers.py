"""Labels as they are learnt: class numbers, switches, targets."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import datasets

from hf_tfopt.data.labelled_names import REGRESSION, SEVERAL, SINGLE, TOKENS
from hf_tfopt.data.labelled_problems import SWITCHED, are_switches, check_labels, number_of
from hf_tfopt.data.labelled_rows import LABEL, TEXT, Labelled, item_of, with_label
from hf_tfopt.registry import nearest

# What labels of each problem are, once they are numbers.
KINDS: dict[str, Any] = {
    SINGLE: datasets.Value("int64"),
    TOKENS: datasets.List(datasets.Value("int64")),
    SEVERAL: datasets.List(datasets.Value("float32")),
    REGRESSION: datasets.Value("float32"),
}


def numbers_of(
    rows: Labelled, problem: str, names: Sequence[str] | None, train: Labelled | None = None
) -> Labelled:
    """The rows with labels as they are learnt: class numbers, 0.0 and 1.0 for each class, a number.

    Rows without labels have zeros in their place, which keep the form of the others.

    Args:
        rows: of one split.
        problem: one of `PROBLEMS`.
        names: of the classes, from the training rows or the model.
        train: the training rows as they were read, which say how labels are meant: whether lists
            are of switches, and numbers are the model's classes; None: these.

    Raises:
        ValueError: a label that is not among them; a target that is no finite number; training rows
            that all have the same labels.
    """
    values = (
        _values(rows, problem, names, train or rows)
        if rows.has_labels
        else _zeros(rows, problem, len(names or ()))
    )
    return rows._replace(table=with_label(rows.table, values, KINDS[problem]))


def _zeros(rows: Labelled, problem: str, num_classes: int) -> list[Any]:
    """Labels that say nothing."""
    if problem == TOKENS:
        return [[0] * len(words) for words in rows.column(TEXT)]
    return [[0.0] * num_classes if problem == SEVERAL else 0] * len(rows.table)


def _values(
    rows: Labelled, problem: str, names: Sequence[str] | None, form: Labelled
) -> Sequence[Any]:
    labels = rows.column(LABEL)
    if names is None:
        return _targets(rows, labels)
    check_labels(rows, problem, labels)
    if are_switches(form, problem):
        return _switches(rows, labels, len(names))
    feature = rows.table.features[LABEL]
    read = _reader(feature if problem == SINGLE else item_of(feature), names, form, problem)
    places = {name: place for place, name in enumerate(names)}

    def place(row: int, label: Any) -> int:
        name = read(label)
        if name not in places:
            raise _unknown(rows, row, label, names)
        return places[name]

    if problem == SINGLE:
        return [place(row, label) for row, label in enumerate(labels)]
    if problem == TOKENS:
        return [[place(row, label) for label in tags] for row, tags in enumerate(labels)]
    chosen = [{place(row, label) for label in several} for row, several in enumerate(labels)]
    values = [[float(c in one) for c in range(len(names))] for one in chosen]
    _check_differ(rows, values)
    return values


def _switches(rows: Labelled, labels: Sequence[Any], num_classes: int) -> Sequence[Any]:
    """Lists of 0 and 1, one number for each class."""
    for row, label in enumerate(labels):
        if len(label) != num_classes or not all(value in SWITCHED for value in label):
            raise rows.refusal(
                row, LABEL, f"expected {num_classes} numbers, 0 or 1, as in the training rows"
            )
    _check_differ(rows, labels)
    return labels


def _check_differ(rows: Labelled, values: Sequence[Sequence[float]]) -> None:
    if rows.source == "train" and all(value == values[0] for value in values):
        raise ValueError("train: every row has the same labels: nothing can be learnt from them")


def _reader(feature: Any, names: Sequence[str], form: Labelled, problem: str) -> Any:
    """How a label of this type is called among the names."""
    own = feature.names if isinstance(feature, datasets.ClassLabel) else None

    def called(label: Any) -> str | None:
        if own is None:
            return str(label)
        return own[label] if 0 <= label < len(own) else None

    numbers = [str(place) for place in range(len(names))]
    if {*names} & {*numbers} or not _are_numbers(form, problem):
        return called
    by_number = dict(zip(numbers, names, strict=True))
    return lambda label: by_number.get(called(label) or "")


def _are_numbers(rows: Labelled, problem: str) -> bool:
    """Whether the labels are whole numbers, be it as text or as a table's own names."""
    feature = rows.table.features[LABEL]
    feature = feature if problem == SINGLE else item_of(feature)
    if isinstance(feature, datasets.ClassLabel):
        return all(name.isdecimal() for name in feature.names)
    if str(getattr(feature, "dtype", "")).startswith(("int", "uint")):
        return True
    labels = rows.column(LABEL)
    flat = labels if problem == SINGLE else (label for several in labels for label in several)
    return all(str(label).isdecimal() for label in flat)


def _unknown(rows: Labelled, row: int, label: Any, names: Sequence[str]) -> ValueError:
    known = ", ".join(names[:10]) + (" ..." if len(names) > 10 else "")
    return ValueError(
        f"{rows.source}: row {row} has the label {label!r}, which no training row has"
        f"{nearest(str(label), names)}; they are {known}"
    )


def _targets(rows: Labelled, labels: Iterable[Any]) -> list[float]:
    found = list[float]()
    for row, label in enumerate(labels):
        number = number_of(label)
        if number is None or not math.isfinite(number):
            raise rows.refusal(row, LABEL, "a regression needs a finite number in every row")
        found.append(number)
    if rows.source == "train" and len({*found}) < 2:
        raise ValueError(f"train: every target is {found[0]:g}: nothing can be learnt from it")
    return found
