"""What a trained classifier says of rows: classes with their probabilities, numbers, tags."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from torch import Tensor

from hf_tfopt.data.batch_form import IGNORED
from hf_tfopt.data.labelled_names import REGRESSION, SEVERAL, TOKENS
from hf_tfopt.data.labelled_rows import LABEL, PAIR, TEXT, Labelled
from hf_tfopt.data.rows import ArrowRows

LIKELY = 0.5  # from here on one of several labels is said
BETWEEN = " "  # between words and between tags
SEPARATOR = ";"  # between labels that are several, where the recipe has none


class Answer(NamedTuple):
    """What the model says of a row.

    Args:
        text: the text, or the words with blanks between them.
        text_pair: the second text; None: there is none.
        label: what is true; None: nobody knows.
        predicted: what it says.
        score: the probability of what it says, of tags the lowest; None of a regression.
    """

    text: str
    text_pair: str | None
    label: str | None
    predicted: str
    score: float | None


def answers(
    trainer: Any,
    rows: datasets.Dataset,
    texts: Labelled,
    problem: str,
    names: list[str] | None,
    separator: str = SEPARATOR,
) -> list[Answer]:
    """What the trainer's model says of all rows, in their order; on every process.

    Args:
        trainer: that has trained it.
        rows: as tokens, with labels.
        texts: the same as they were read, with labels as numbers; of rows that have none, zeros.
        problem: one of `PROBLEMS`.
        names: of the classes.
        separator: between labels that are several.
    """
    decided = _decided(trainer, rows, problem)
    found = zip(texts.column(TEXT), _pairs(texts), texts.column(LABEL), decided, strict=True)
    if names is None:
        said = [Answer(t, p, f"{true:g}", f"{float(d[0]):g}", None) for t, p, true, d in found]
    elif problem == TOKENS:
        tokens = rows.select_columns("labels")["labels"]
        said = list(_tagged(texts, tokens, decided, names))
    elif problem == SEVERAL:

        def several(shares: Any) -> str:
            likely = zip(names, shares, strict=True)
            return separator.join(name for name, share in likely if share > LIKELY)

        said = [
            Answer(t, p, several(true), several(d), float(np.maximum(d, 1 - d).min()))
            for t, p, true, d in found
        ]
    else:
        said = [
            Answer(t, p, names[true], names[int(d.argmax())], float(d.max()))
            for t, p, true, d in found
        ]
    return said if texts.has_labels else [answer._replace(label=None) for answer in said]


def shown_answers(found: Sequence[Answer], num: int = 5) -> list[dict[str, str | None]]:
    """Some answers from all over the rows, as the card and the report show what a model says."""
    return [
        {
            "input": answer.text
            if answer.text_pair is None
            else f"{answer.text} / {answer.text_pair}",
            "expected": answer.label,
            "output": answer.predicted,
        }
        for answer in found[:: max(1, len(found) // num)][:num]
    ]


def _pairs(texts: Labelled) -> list[str | None]:
    return texts.column(PAIR) if PAIR in texts.names else [None] * len(texts.table)


def _tagged(texts: Labelled, labels: Any, decided: Any, names: list[str]) -> Iterator[Answer]:
    """Words and tags; of words that were cut, or that have no token, no tag is said."""
    rows = zip(texts.column(TEXT), texts.column(LABEL), labels, decided, strict=True)
    for words, tags, places, (best, shares) in rows:
        at = np.flatnonzero(np.asarray(places) != IGNORED)
        said = [names[int(best[i])] for i in at]
        lowest = min((float(shares[i]) for i in at), default=None)
        label = BETWEEN.join(names[tag] for tag in tags)
        yield Answer(BETWEEN.join(words), None, label, BETWEEN.join(said), lowest)


def _decided(trainer: Any, rows: datasets.Dataset, problem: str) -> Any:
    """Of each row the probabilities of its classes, the number, or best tags with theirs."""

    def shares(logits: Any, labels: Tensor) -> Any:
        logits = (logits[0] if isinstance(logits, tuple) else logits).float()
        if problem == REGRESSION:
            return logits
        if problem == SEVERAL:
            return logits.sigmoid()
        found = logits.softmax(-1)
        return tuple(found.max(-1))[::-1] if problem == TOKENS else found

    arguments = trainer.args
    kept = (
        trainer.compute_metrics,
        trainer.preprocess_logits_for_metrics,
        arguments.batch_eval_metrics,
        arguments.prediction_loss_only,
        arguments.train_sampling_strategy,
    )
    lengths = np.array([len(ids) for ids in rows["input_ids"]])
    order = np.argsort(-lengths, kind="stable")  # batches of one length each
    try:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = None, shares
        arguments.batch_eval_metrics, arguments.prediction_loss_only = False, False
        arguments.train_sampling_strategy = "random"  # evaluation is then in order
        found = trainer.predict(ArrowRows(rows.select(order))).predictions
    finally:
        trainer.compute_metrics, trainer.preprocess_logits_for_metrics = kept[:2]
        arguments.batch_eval_metrics, arguments.prediction_loss_only = kept[2:4]
        arguments.train_sampling_strategy = kept[4]
    back = np.argsort(order)
    if problem == TOKENS:
        best, likely = (np.asarray(part)[back] for part in found)
        return list(zip(best, likely, strict=True))
    return np.asarray(found)[back]


def write_answers(path: Path, found: Sequence[Answer]) -> None:
    """A .csv file with a heading line; columns that no row has are left out."""
    columns = [
        name
        for name in Answer._fields
        if any(getattr(answer, name) is not None for answer in found)
    ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows([getattr(answer, name) for name in columns] for answer in found)
