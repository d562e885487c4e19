"""The labels of rows as one array, by example or by token."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.batch_form import IGNORED

LABEL_NAMES = ("labels", "label", "label_ids")


class Labels(NamedTuple):
    """The labels of a batch.

    Args:
        values: int64 classes, one for each example or token; or float32, [examples] or
            [examples, outputs].
        is_by_token: whether they are those of all tokens, one row after the other.
    """

    values: NDArray[Any]
    is_by_token: bool


def labels_of(rows: Sequence[Mapping[str, Any]], lengths: NDArray[np.int64]) -> Labels | None:
    """The labels of these rows; None where no row has any.

    What they are is seen from the values, as by the host's collators and heads: a whole number is a
    class, a fraction a target of regression, a list of fractions several labels at once or
    several targets, a list of whole numbers the classes of the row's tokens.

    Args:
        rows: with a column of one of `LABEL_NAMES`, or without.
        lengths: tokens of each row.

    Raises:
        ValueError: a row without a label beside rows with one; labels that are no numbers, of
            different lengths, or as many whole numbers in a row as it has not tokens.
    """
    names = (n for n in LABEL_NAMES if any(row.get(n) is not None for row in rows))
    name = next(names, None)
    if name is None:
        return None
    given = [row.get(name) for row in rows]
    missing = next((i for i, value in enumerate(given) if value is None), None)
    if missing is not None:
        raise ValueError(
            f"row {missing} of a batch has no label, but others have one: leave such rows out"
        )
    arrays = [np.asarray(value) for value in given]
    for array in arrays:
        if array.dtype.kind not in "biuf" or array.ndim > 1:
            raise ValueError(
                f"a label is {array.tolist()!r}; allowed are a number, a list of fractions for "
                "several labels at once, and a list of whole numbers for the tokens"
            )
    if all(array.ndim and array.dtype.kind != "f" for array in arrays):
        return Labels(_by_token(arrays, lengths), is_by_token=True)
    if len({array.shape for array in arrays}) > 1:
        shapes = sorted({array.shape for array in arrays})
        raise ValueError(
            f"the labels of a batch have shapes {shapes[0]} and {shapes[-1]}; give each row as many"
        )
    is_fraction = any(array.dtype.kind == "f" for array in arrays)
    return Labels(np.stack(arrays).astype(np.float32 if is_fraction else np.int64), False)


def fitting(labels: Labels, config: Any) -> Labels:
    """The labels as the model with this configuration takes them: numbers of a regression float32.

    Raises:
        ValueError: a class that is neither in [0, config.num_labels) nor -100, ignored.
    """
    values, num_labels = labels.values, config.num_labels
    problem = getattr(config, "problem_type", None)
    if problem == "regression" or (problem is None and num_labels == 1):
        return labels._replace(values=values.astype(np.float32))
    if values.dtype.kind == "f":
        return labels
    wrong = values[(values != IGNORED) & ((values < 0) | (values >= num_labels))]
    if len(wrong):
        raise ValueError(
            f"label {wrong[0]} is not in [0, {num_labels}), the classes of the model: load it with "
            "num_labels=..., or leave the column out where there are no labels (GLUE's test splits "
            "have -1)"
        )
    return labels


def _by_token(arrays: Sequence[NDArray[Any]], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    for row, (array, length) in enumerate(zip(arrays, lengths.tolist(), strict=True)):
        if len(array) != length:
            raise ValueError(
                f"row {row} of a batch has {len(array)} whole numbers as labels and {length} "
                f"tokens: labels of tokens are one for each, {IGNORED} for those without; several "
                "labels at once are fractions, 0.0 or 1.0 for each class"
            )
    return np.concatenate(arrays).astype(np.int64)
