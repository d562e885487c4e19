"""A classifier's rows, as texts and as tokens: trained on, measured on, and predicted."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from accelerate import PartialState
from torch import Tensor

from hf_tfopt.data.classification_collator import ClassificationCollator
from hf_tfopt.data.labelled_names import NO_LABELS
from hf_tfopt.data.labelled_rows import LABEL, Labelled
from hf_tfopt.data.labelled_tokens import labelled_tokens
from hf_tfopt.data.rows import ArrowRows
from hf_tfopt.metrics import Scores, score_keys
from hf_tfopt.recipe.classification_answers import (
    SEPARATOR,
    answers,
    shown_answers,
    write_answers,
)
from hf_tfopt.recipe.execution import INTERVALS, trainer_of
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.run.facts import data_facts

PREDICTIONS = "predictions.csv"


class ClassifierRows(NamedTuple):
    """The rows "train", "eval" and perhaps "test".

    Args:
        texts: as they were read, with numbers as labels; of rows that have none, zeros.
        tokens: the same as a model reads them.
        cut: how many texts of each part are longer than `max_length`.
        problem: one of `PROBLEMS`.
        names: of the classes; None: a regression.
    """

    texts: dict[str, Labelled]
    tokens: dict[str, datasets.Dataset]
    cut: dict[str, int]
    problem: str
    names: list[str] | None

    @property
    def last(self) -> str:
        """The part that is predicted in the end."""
        return "test" if "test" in self.texts else "eval"

    @property
    def examined(self) -> str:
        """The part that the final numbers are of."""
        return self.last if self.texts[self.last].has_labels else "eval"

    def batches(
        self, collator: Callable[[list[Any]], dict[str, Tensor]], size: int = 32, num: int = 4
    ) -> list[dict[str, Tensor]]:
        """A few batches of the examined rows without labels, as one would ask about them.

        Args:
            collator: rows -> batch.
            size: rows of each, or as many as there are.
            num: how many, where there are enough rows.
        """
        rows = self.tokens[self.examined].remove_columns("labels")
        size = min(size, len(rows))
        starts = range(0, min(len(rows), num * size) - size + 1, size)
        return [collator([rows[i] for i in range(s, s + size)]) for s in starts]

    def facts(self) -> dict[str, dict[str, Any]]:
        """What was counted of each part: words, tokens, rows, classes, texts that were cut."""
        return {part: self._facts_of(part) for part in self.texts}

    def _facts_of(self, part: str) -> dict[str, Any]:
        texts, cut = self.texts[part], self.cut[part]
        has_classes = getattr(texts.table.features[LABEL], "dtype", None) == "int64"
        return {
            **data_facts(
                texts.table,
                self.tokens[part],
                columns=[name for name in texts.names if name != LABEL],
                label=LABEL if has_classes and texts.has_labels else None,
            ),
            **({} if texts.has_labels else {"labels": NO_LABELS}),
            **({"texts_cut": cut} if cut else {}),
        }


def classifier_rows(
    texts: dict[str, Labelled],
    problem: str,
    names: list[str] | None,
    tokenizer: Any,
    max_length: int,
    told: list[str],
) -> ClassifierRows:
    """The texts, and what they are as tokens.

    Args:
        texts: from `splits.with_numbers`.
        problem: one of `PROBLEMS`.
        names: of the classes; None: a regression.
        tokenizer: the model's.
        max_length: tokens of the longest row, special ones included; longer texts are cut.
        told: takes what is to be said.
    """
    tokens, cut = dict[str, datasets.Dataset](), dict[str, int]()
    for part, found in texts.items():
        tokens[part], cut[part] = labelled_tokens(found.table, tokenizer, max_length, problem)
        if cut[part]:
            told.append(f"{cut[part]:,} texts of {part} are longer than max_length, and cut")
    return ClassifierRows(texts, tokens, cut, problem, names)


def classifier_trainer(
    recipe: TrainingKeys,
    model: Any,
    rows: ClassifierRows,
    tokenizer: Any,
    scores: Scores,
    *,
    is_packed: bool = False,
    **parts: Any,
) -> Any:
    """The host's Trainer for rows of any length, our parts in its slots.

    Args:
        recipe: the run's.
        model: what is trained.
        rows: those of "train" and of "eval".
        tokenizer: the model's.
        scores: what an evaluation tells beside the loss.
        is_packed: whether batches are without padding.
        parts: of `trainer_of` and of the Trainer: objective, arguments ...
    """
    return trainer_of(
        recipe,
        model,
        {part: ArrowRows(found) for part, found in rows.tokens.items()},
        scores=scores,
        is_padded=True,
        data_collator=ClassificationCollator(tokenizer, model=model, is_packed=is_packed),
        processing_class=tokenizer,
        **parts,
    )


def final_numbers(trainer: Any, rows: ClassifierRows, metrics: Sequence[str]) -> dict[str, float]:
    """The loss of "eval", and the metrics, with intervals, of the part that is examined.

    Where that is "test", those of "eval" are told too, by the names that evaluations give them.

    Args:
        trainer: that has trained the model; its scores have intervals from here on.
        rows: all.
        metrics: names of `METRICS`.
    """
    trainer.compute_metrics.intervals = INTERVALS  # only now: they take time
    names = score_keys(*metrics, has_intervals=True)
    evaluated = trainer.evaluate()
    loss = {"eval_loss": evaluated["eval_loss"]}
    if rows.examined == "eval":
        return {**loss, **{name: evaluated[f"eval_{name}"] for name in names}}
    tested = trainer.evaluate(ArrowRows(rows.tokens["test"]), metric_key_prefix="test")
    own = {name: tested[f"test_{name}"] for name in names}
    return {**loss, **own, **{f"eval_{name}": evaluated[f"eval_{name}"] for name in names}}


def predict(
    trainer: Any, rows: ClassifierRows, folder: Path, separator: str | None = None
) -> list[dict[str, str | None]]:
    """Leave predictions.csv, what the model says of the last part; returns some for the card.

    Args:
        trainer: that has trained the model; every process calls it.
        rows: all.
        folder: the run's.
        separator: between labels that are several.
    """
    part = rows.last
    found = answers(
        *(trainer, rows.tokens[part], rows.texts[part], rows.problem, rows.names),
        separator or SEPARATOR,
    )
    if PartialState().is_main_process:
        write_answers(folder / PREDICTIONS, found)
    return shown_answers(found)


def class_lines(rows: ClassifierRows) -> list[str]:
    """Problem, rows and classes, for a terminal."""
    counted = ", ".join(f"{part} {len(found):,}" for part, found in rows.tokens.items())
    lines = [f"Problem    {rows.problem}; rows: {counted}"]
    if rows.names:
        more = " ..." if len(rows.names) > 10 else ""
        lines.append(f"Classes    {len(rows.names)}: {', '.join(rows.names[:10])}{more}")
    return lines
