"""The rows with labels that a classifier learns from and is examined on, as recipes name them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hf_tfopt.recipe.training_keys import split_seed_key
from hf_tfopt.recipe.typed_values import INSIDE_UNIT, at_least, key, listed, one_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledKeys:
    """The rows, what of them is held out, and their columns."""

    train: str = key(
        "", "rows: .csv, .tsv, .jsonl, .parquet, .conll, a folder, or a datasets name:configuration"
    )
    eval: str | None = key(
        None, "held-out rows; none: the validation split of train, or eval_fraction of its rows"
    )
    eval_fraction: float | None = key(None, "of the rows, where nothing else is", INSIDE_UNIT)
    split_seed: int | None = split_seed_key()
    test: str | None = key(
        None, "rows for the final numbers, or without labels, to be predicted; none: the held-out"
    )
    text_column: str = key("text", "the column that holds the text, or a list of words")
    text_pair_column: str | None = key(None, "the column that holds the second text of a pair")
    label_column: str = key("label", "the column that holds the label, or a list of them")
    columns: str | None = key(None, "names of the columns of files without a heading: text,label")
    shared_examples: str = key(
        "refuse",
        "texts that are trained on and held out: refuse, drop them from training, or keep them",
        one_of("refuse", "drop", "keep"),
    )
    max_length: int = key(128, "tokens of the longest text; longer ones are cut", at_least(3))

    def check_train(self) -> None:
        """Refuse a recipe without rows to train on.

        Raises:
            ValueError: none given.
        """
        if not self.train:
            raise ValueError("train: none given; it names rows with labels: --train PATH")

    def conditional_keys_of_rows(self) -> dict[str, tuple[bool, Any, str]]:
        """Their part of `TrainingKeys.conditional_keys`."""
        return {"eval_fraction": (self.eval is None, 0.1, "where eval is not given")}

    @staticmethod
    def set_aside_of_rows(changed: Mapping[str, Any]) -> set[str]:
        """Their part of `TrainingKeys.sets_aside`."""
        return {"eval_fraction"} if changed.get("eval") is not None else set()

    def column_names(self) -> list[str] | None:
        """The names in `columns`."""
        return listed(self.columns)
