"""What a run tells, as rows of plain text: for the terminal, the report and the model card.

Nothing here is escaped for HTML or Markdown; paths are cut to their last part, because these rows
are made to be shown to others.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

from hf_tfopt.run.folder import Run

_PATH_KEYS = (
    *("corpus", "model", "tokenizer", "output_dir"),
    *("teacher", "train", "eval", "test"),
)
_DATA_ROWS = {
    "documents": "Documents",
    "words": "Words",
    "tokens": "Tokens",
    "examples": "Examples",
    "classes": "Classes",
    "rows": "Rows",
    "fullness": "Share of the rows that is not padding",
}


# What an evaluation tells beside the loss where pairs of texts are learned too.
TERMS = {
    "eval_cross_entropy": "Held-out loss of masked tokens",
    "eval_next_sentence": "Held-out loss of pairs of texts",
    "eval_next_sentence_accuracy": "Held-out pairs told rightly",
    "eval_sentence_order": "Held-out loss of pairs of texts",
    "eval_sentence_order_accuracy": "Held-out pairs told rightly",
}


def number(value: Any) -> str:
    """A number for people: 12,345 or 3.142; anything else as its text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or (abs(value) >= 1000 and math.isfinite(value)):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 42 s, 2 min 51 s, 3 h 5 min."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        return number(seconds)
    if not math.isfinite(seconds) or seconds < 60:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours} h {minutes_left} min" if hours else f"{minutes} min {rest} s"


def headlines(run: Run) -> list[tuple[str, str]]:
    """The numbers that one looks for first."""
    found = run.metrics
    shown = [
        ("Accuracy", "accuracy", number),
        ("Accuracy of the teacher", "teacher_accuracy", number),
        ("Share of it kept", "kept_accuracy", "{:.1%}".format),
        ("Times as fast as the teacher", "times_as_fast", number),
        ("Held-out perplexity", "perplexity", number),
        ("Held-out loss", "eval_loss", number),
        ("Training loss", "loss", number),
        *((label, key, number) for key, label in TERMS.items()),
        ("Training time", "train_seconds", duration),
        ("Steps", "steps", number),
        ("Tokens a second", "tokens_per_second", number),
        ("Parameters", "parameters", number),
    ]
    return [(label, form(found[key])) for label, key, form in shown if found.get(key) is not None]


def shown_value(name: str, value: Any) -> str:
    """A recipe's value, a path without the folders that lead to it."""
    text = str(value)
    if name not in _PATH_KEYS:
        return str(value).lower() if isinstance(value, bool) else number(value)
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    outside = posix.is_absolute() or text.startswith("~") or ".." in posix.parts
    if windows.drive or windows.is_absolute():
        return windows.name
    return posix.name if outside else text


def recipe_rows(run: Run) -> list[tuple[str, str]]:
    """Key and value of everything that was chosen."""
    return [
        (name, shown_value(name, value))
        for name, value in run.recipe.items()
        if value is not None and value != "" and name != "output_dir"
    ]


def data_rows(run: Run) -> list[tuple[str, str, str]]:
    """What was counted, for training and for held-out text."""
    train, held_out = run.data.get("train", {}), run.data.get("eval", {})
    return [
        (label, _cell(train, key), _cell(held_out, key))
        for key, label in _DATA_ROWS.items()
        if key in train or key in held_out
    ]


def _cell(counts: Mapping[str, Any], key: str) -> str:
    value = counts.get(key)
    if key == "fullness" and isinstance(value, float):
        return f"{value:.1%}"
    return "" if value is None else number(value)


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the model's facts or of the environment."""
    return [(name.replace("_", " "), number(value)) for name, value in facts.items()]


def guess_rows(example: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Each guess with its probability, and whether it is the word that was there."""
    truth = str(example.get("word", "")).casefold()
    return [
        (str(word), f"{probability:.0%}", str(word).casefold() == truth)
        for word, probability in example.get("guesses", [])
    ]


def summary_lines(data: Mapping[str, Mapping[str, Any]], model: Mapping[str, Any]) -> list[str]:
    """What is about to be trained on what, for a terminal."""
    text, held_out = data["train"], data["eval"]
    return [
        f"Corpus     {number(text['documents'])} documents, {number(text['words'])} words; "
        f"{number(held_out['documents'])} more documents are held out",
        f"Rows       {number(text['rows'])}, {number(text['tokens'])} tokens, "
        f"{text['fullness']:.1%} full",
        f"Model      {', '.join(f'{name} {value}' for name, value in fact_rows(model))}",
    ]


def example_lines(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """Masked words and guesses, one line each, for a terminal."""
    return [
        f"{example['before']}[{example['word']}]{example['after']}\n    "
        + ", ".join(f"{word} {share}" for word, share, _ in guess_rows(example))
        for example in examples
    ]
