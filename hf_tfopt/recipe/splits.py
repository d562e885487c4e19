"""Rows with labels to train on, to hold out and to test on, as a recipe names them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from hf_tfopt.data.labelled_names import SINGLE, TOKENS
from hf_tfopt.data.labelled_numbers import numbers_of
from hf_tfopt.data.labelled_problems import check_labels, check_texts, class_names, problem_of
from hf_tfopt.data.labelled_rows import LABEL, Labelled, is_labelled, labelled
from hf_tfopt.data.labelled_source import read_tables, split_of
from hf_tfopt.data.labelled_splits import hold_out, overlap, without_rows
from hf_tfopt.data.labelled_tags import with_beginnings
from hf_tfopt.recipe.labelled_keys import LabelledKeys


class Splits(NamedTuple):
    """The rows "train", "eval" and perhaps "test", and what they are.

    Args:
        parts: the rows by their names.
        problem: that of the recipe, or seen from the rows.
        classes: their names in the order of their numbers; None: a regression.
        told: what is to be said of them.
        is_drawn: whether "eval" was drawn from "train".
    """

    parts: dict[str, Labelled]
    problem: str
    classes: list[str] | None
    told: list[str]
    is_drawn: bool


def read_splits(
    recipe: LabelledKeys, problem: str | None = None, label_separator: str | None = None
) -> Splits:
    """All rows with their labels as they were read, checked, and none in two splits.

    Args:
        recipe: which rows they are.
        problem: what is learnt from them; None: it is seen from the rows.
        label_separator: stands between several labels in one text.

    Raises:
        ValueError: a source, column or value that cannot be; texts that are trained on and held
            out.
        FileNotFoundError: no such file.
    """
    told = list[str]()
    parts = {
        part: _labelled(recipe, table, part, label_separator, told)
        for part, table in _tables(recipe, told).items()
    }
    problem = problem or problem_of(parts["train"])
    for rows in parts.values():
        check_texts(rows, problem)
    classes = class_names(parts["train"], problem)
    judged = {part: rows for part, rows in parts.items() if rows.has_labels}
    for rows in judged.values():
        check_labels(rows, problem, rows.column(LABEL))
    if problem == TOKENS:
        for part, rows in judged.items():
            parts[part], num = with_beginnings(rows, classes or ())
            if num:
                told.append(
                    f"{num:,} tags of {part} begin an entity with I, as in IOB1: read as B (IOB2)"
                )
        classes = class_names(parts["train"], problem)
    if classes is None:  # checked before rows are drawn, by the numbers they have in their file
        parts = {part: numbers_of(rows, problem, None) for part, rows in parts.items()}
    is_drawn = "eval" not in parts
    if is_drawn:
        assert recipe.eval_fraction is not None
        parts["train"], parts["eval"] = hold_out(
            parts["train"], recipe.eval_fraction, recipe.split_seed or 0
        )
    for part in ("eval", "test"):
        if part in parts and parts[part].has_labels:  # others are no examination
            parts["train"] = _apart(recipe, parts["train"], parts[part], told)
    return Splits(parts, problem, classes, told, is_drawn)


def _tables(recipe: LabelledKeys, told: list[str]) -> dict[str, Any]:
    """The tables of the parts, by the recipe's sources and by these sources' own splits."""
    columns = recipe.column_names()
    tables = read_tables(recipe.train, columns)
    found = {"train": split_of(tables, "train", recipe.train)}
    for part, source in (("eval", recipe.eval), ("test", recipe.test)):
        if source is not None:
            found[part] = _table(read_tables(source, columns), part, source)
    if recipe.eval is None and (own := split_of(tables, "eval", recipe.train)) is not None:
        found["eval"] = own
        told.append(f"The validation split of {recipe.train} is held out")
    return found


def _table(tables: Mapping[str, Any], part: str, source: str) -> Any:
    """The table that is to be "eval" or "test": its split of that name, or the only one."""
    found = split_of(tables, part, source)
    if found is None and len(tables) > 1:
        raise ValueError(f"{part}: {source} has no such split, only {', '.join(tables)}")
    return next(iter(tables.values())) if found is None else found


def _labelled(
    recipe: LabelledKeys, table: Any, part: str, label_separator: str | None, told: list[str]
) -> Labelled:
    try:
        label_column: str | None = recipe.label_column
        if part == "test" and not is_labelled(table, recipe.label_column):
            label_column = None
            told.append("test has no labels: its rows are predicted, and no number is of them")
        texts = (recipe.text_column, recipe.text_pair_column)
        return labelled(table, part, *texts, label_column, label_separator)
    except ValueError as error:
        message = str(error)
        raise ValueError(message if part in message else f"{part}: {message}") from error


def _apart(recipe: LabelledKeys, train: Labelled, held_out: Labelled, told: list[str]) -> Labelled:
    """The training rows, as `shared_examples` has it."""
    shared = overlap(train, held_out)
    if not len(shared.train_rows):
        return train
    words = (
        f"{len(shared.held_out_rows):,} of {len(held_out.table):,} rows of {held_out.source} are "
        f"also trained on, {shared.num_same_label:,} with the same label, such as "
        f"{held_out.shown(int(shared.held_out_rows[0]))}"
    )
    if recipe.shared_examples == "refuse":
        raise ValueError(
            f"{words}: what is examined on must not be learnt by heart; --shared_examples drop "
            "leaves them out of training, keep trains on them all the same"
        )
    if recipe.shared_examples == "keep":
        told.append(f"{words}: kept")
        return train
    if len(shared.train_rows) == len(train.table):
        raise ValueError(f"{words}: without them nothing is left to train on")
    told.append(f"{words}: {len(shared.train_rows):,} rows left out of training")
    return without_rows(train, shared.train_rows)


def with_numbers(splits: Splits, names: list[str] | None) -> dict[str, Labelled]:
    """The splits with labels as they are learnt.

    Args:
        splits: as they were read.
        names: of the classes, in the model's order.

    Raises:
        ValueError: as `numbers_of`; one class alone that is left to train on.
    """
    problem, train = splits.problem, splits.parts["train"]
    found = {part: numbers_of(rows, problem, names, train) for part, rows in splits.parts.items()}
    if splits.problem == SINGLE and len({*found["train"].column(LABEL)}) < 2:
        raise ValueError("train: rows of one class only are left: nothing can be learnt from them")
    return found
