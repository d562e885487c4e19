"""How hard every example of a dataset is, and how much of it a learner is ready for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from numpy.typing import NDArray

from hf_tfopt.data.columns import ATTENTION_MASK, INPUT_IDS, Lists, Values
from hf_tfopt.data.keyed_bits import Integers, shuffled
from hf_tfopt.data.row_lengths import row_lengths
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.registry import check_name

Floats = NDArray[np.float64]
# A name of `SCORES`, a column's name, a number for every row, or a function that gives these.
Score = str | Sequence[float] | NDArray[Any] | Callable[[Any], Any]

BLOCK = 4096  # rows whose tokens are in memory at once
LARGEST_ID = 1 << 28  # a table of counts has room for so many
_TIES = 0x71E5  # of the order of rows that are equally hard


def square_root_competence(steps: Integers, num_steps: int, start: float) -> Floats:
    """`min(1, sqrt(t (1 - start^2) / num_steps + start^2))`.

    Args:
        steps: t, optimizer steps taken before.
        num_steps: after which all is eligible, at least 1.
        start: the competence at t = 0, in (0, 1].

    Paper: Platanios et al. 2019, "Competence-based Curriculum Learning for Neural Machine
    Translation" (https://arxiv.org/abs/1903.09848), section 3; no difference.
    """
    return np.minimum(1.0, np.sqrt(steps * ((1.0 - start**2) / num_steps) + start**2))


def linear_competence(steps: Integers, num_steps: int, start: float) -> Floats:
    """`min(1, t (1 - start) / num_steps + start)`; the rest as `square_root_competence`."""
    return np.minimum(1.0, steps * ((1.0 - start) / num_steps) + start)


PACES: Mapping[str, Callable[[Integers, int, float], Floats]] = {
    "sqrt": square_root_competence,
    "linear": linear_competence,
}


def easiest_first(scores: Floats, seed: int) -> Integers:
    """The rows by their score; those of the same score in an order that the seed decides."""
    order = shuffled(len(scores), seed, _TIES)
    return order[scores[order].argsort(kind="stable")]


def example_lengths(dataset: Any, column: str = INPUT_IDS) -> Integers:
    """The length of every example.

    `np.array([len(row[column]) for row in dataset])`; of input_ids, those tokens alone count that
    an attention_mask beside them has a 1 for: padding is not length.

    Args:
        dataset: a `datasets.Dataset` or `ArrowRows`; others are asked for each row, and have no
            padding.
        column: of lists of numbers.

    Raises:
        ValueError: what `row_lengths` and `ArrowRows` refuse.

    Paper: none.
    """
    mask = _mask(dataset, column)
    if mask is None:
        return row_lengths(dataset, column)
    blocks = _blocks(mask, column)
    return np.concatenate([np.bincount(rows, minlength=size) for _, rows, size in blocks])


def example_rarity(dataset: Any, column: str = INPUT_IDS) -> Floats:
    """How rare the tokens of every example are, all of them together: long ones are rarer.

    `-sum_k log p(token_k)`, with p(token) = its share of all tokens of the dataset. Padding, as an
    attention_mask tells it, is no token.

    Args:
        dataset: a `datasets.Dataset` or `ArrowRows`.
        column: of lists of token ids.

    Raises:
        ValueError: another kind of dataset or column.

    Paper: Platanios et al. 2019 (https://arxiv.org/abs/1903.09848), section 3, "Word Rarity".
    Differs: of the tokenizer's tokens, where the paper has words.
    """
    source = _mask(dataset, column) or ArrowRows(_table(dataset), [column])
    counts = np.zeros(1, dtype=np.int64)
    for ids, _, _ in _blocks(source, column):
        _check_ids(column, ids)
        found = np.bincount(ids, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    with np.errstate(divide="ignore"):
        surprise = np.log(counts.sum()) - np.log(counts)
    sums = [
        np.bincount(rows, weights=surprise[ids], minlength=size)
        for ids, rows, size in _blocks(source, column)
    ]
    return np.concatenate(sums, dtype=np.float64)


SCORES: Mapping[str, Callable[[Any], NDArray[Any]]] = {
    "length": example_lengths,
    "rarity": example_rarity,
}


def scores_of(score: Score, dataset: Any) -> Floats:
    """A checked number for each row of a dataset.

    Args:
        score: a name of `SCORES`; the name of a column of numbers; an array; or a function of the
            dataset that gives one.
        dataset: with a length; for names a `datasets.Dataset` or `ArrowRows`.

    Raises:
        ValueError: an unknown name, a column without numbers, or scores that are not one finite
            number for each row, or all the same.
    """
    found: Any = score
    if isinstance(score, str):
        found = _named(score, dataset)
    elif callable(score):
        found = score(dataset)
    what = f"score={score!r}" if isinstance(score, str) else "score"
    try:
        scores = np.asarray(found, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} is of type {type(found).__name__}; it must be one number for each row, "
            f"{' or '.join(map(repr, SCORES))}, or the name of a column of numbers"
        ) from error
    _check_scores(what, scores, len(dataset))
    return scores


def _named(name: str, dataset: Any) -> NDArray[Any]:
    if name in SCORES:
        return SCORES[name](dataset)
    known = _table(dataset).column_names
    check_name("score or column", name, [*SCORES, *known])
    source = ArrowRows(_table(dataset), [name])
    column = source.columns[name]
    if not isinstance(column, Values) or not isinstance(column.chunks[0], np.ndarray):
        kind = source.dataset.features[name]
        raise ValueError(
            f"column {name!r} is of {kind}, and difficulty is one number for each row; for the "
            f"length of lists: score=lambda rows: tfo.example_lengths(rows, {name!r})"
        )
    return np.concatenate(column.chunks)[source.table_rows()]


def _check_scores(what: str, scores: Floats, num_rows: int) -> None:
    if scores.shape != (num_rows,):
        raise ValueError(
            f"{what} has the shape {scores.shape}, and the training dataset {num_rows} rows: each "
            "needs one number"
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        raise ValueError(
            f"{what}: {len(bad)} of {num_rows} scores are not finite; the first is "
            f"{scores[bad[0]]}, of row {bad[0]}"
        )
    if num_rows > 1 and scores.min() == scores.max():
        raise ValueError(
            f"{what} is {scores[0]:g} for all {num_rows} rows, so none is easier than another (all "
            "of one length? they may be packed, or padded without an attention_mask)"
        )


def _table(dataset: Any) -> datasets.Dataset:
    given: Any = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    if not isinstance(given, datasets.Dataset):
        raise ValueError(
            f"a score by name is read from a datasets.Dataset, but this dataset is of type "
            f"{type(given).__name__}: give the scores themselves, or a function of the dataset"
        )
    return given


def _mask(dataset: Any, column: str) -> ArrowRows | None:
    """The rows with this column and the mask that says what of it is padding, if there is any."""
    table = dataset.dataset if isinstance(dataset, ArrowRows) else dataset
    if not isinstance(table, datasets.Dataset) or table.format["type"] == "custom":
        return None
    if column != INPUT_IDS or not {INPUT_IDS, ATTENTION_MASK} <= set(table.column_names):
        return None
    masked = ArrowRows(table, [column, ATTENTION_MASK])
    mask = masked.columns[ATTENTION_MASK]
    is_needed = isinstance(mask, Lists) and not all(values.all() for values in mask.values)
    return masked if is_needed else None


def _lists(source: ArrowRows, column: str) -> Lists:
    found = source.columns[column]
    if not isinstance(found, Lists):
        kind = source.dataset.features[column]
        raise ValueError(f"column {column!r} is of {kind}, not of lists of numbers: tokenize first")
    return found


def _blocks(source: ArrowRows, column: str) -> Iterator[tuple[Integers, Integers, int]]:
    """The tokens of some rows at a time, the row of each among these, and how many they are."""
    lists, order = _lists(source, column), source.table_rows()
    mask = _lists(source, ATTENTION_MASK) if ATTENTION_MASK in source.columns else None
    for begin in range(0, len(order), BLOCK):
        block: Any = order[begin : begin + BLOCK]
        ids, bounds = lists.flat(block)
        rows = np.repeat(np.arange(len(block)), np.diff(bounds))
        if mask is not None:
            kept, own_bounds = mask.flat(block)
            if not np.array_equal(bounds, own_bounds):
                raise ValueError(
                    f"{column} and {ATTENTION_MASK} are not of the same lengths in every row"
                )
            ids, rows = ids[kept != 0], rows[kept != 0]
        yield ids, rows, len(block)


def _check_ids(column: str, ids: Integers) -> None:
    if not len(ids):
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > LARGEST_ID:
        raise ValueError(
            f"column {column!r} holds {low if low < 0 else high}, which is no token id (allowed "
            f"are 0 to {LARGEST_ID})"
        )
