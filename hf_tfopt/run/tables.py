"""What a run tells, as rows of plain text: for the terminal, the report and the model card.

Nothing here is escaped for HTML or Markdown; paths are cut to their last part, because these rows
are made to be shown to others.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from hf_tfopt.run.folder import Run
from hf_tfopt.run.score_names import SCORES, score_label, score_names, with_doubt

# Keys of a recipe that say where things go, and nothing of the model.
_UNTOLD = ("output_dir", "push_to", "private", "report_to")
_PATH_KEYS = ("corpus", "model", "tokenizer", "teacher", "train", "eval", "test")
# The folders of a path from the root, from a home or from a drive, inside a longer text.
_FOLDERS = re.compile(
    r"(?<![\w./:~<-])(?:file:/*)?(?:~[\w.-]*/|[A-Za-z]:[\\/]+|\\\\|/)(?=[^\s/\\])(?:[^\s,;:'\"/\\]+[/\\]+)*"
)
_PARTS = {"train": "Training", "eval": "Held out", "test": "Test"}
_DATA_ROWS = {
    "documents": "Documents",
    "words": "Words",
    "tokens": "Tokens",
    "examples": "Examples",
    "classes": "Classes",
    "rows": "Rows",
    "fullness": "Share of the rows that is not padding",
}
_LONGEST = 400  # characters of an example's text
_HARDWARE = ("device", "processor", "memory", "processes")
# What an evaluation tells beside the loss where pairs of texts are learned too.
TERMS = {
    name: score_label(name)
    for name in SCORES
    if "cross_entropy" in name or "next_sentence" in name or "sentence_order" in name
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
    """The numbers that one looks for first: every score, then what the run took."""
    found = run.metrics
    since = found.get("resumed_from_step")
    from_there = f" from step {number(since)} on" if since else ""
    forms = {"kept_accuracy": percent}
    scores = [(score_label(name), name, forms.get(name, number)) for name in score_names(found)]
    taken = [
        (f"Training time{from_there}", "train_seconds", duration),
        (f"Energy{from_there}", "energy_kwh", energy),
        ("Tokens a second", "tokens_per_second", number),
    ]
    counts = [
        ("Seeds", "num_seeds"),
        ("Steps", "steps"),
        ("Step of the best checkpoint", "best_step"),
        ("Parameters", "parameters"),
        ("Parameters of the teacher", "teacher_parameters"),
    ]
    told = [(label, key, with_doubt(found, key, form)) for label, key, form in (*scores, *taken)]
    told += [(label, key, number(found.get(key))) for label, key in counts]
    return [(label, text) for label, key, text in told if found.get(key) is not None]


def percent(share: Any) -> str:
    """A share as people say it: 96.4%."""
    is_number = isinstance(share, (int, float)) and not isinstance(share, bool)
    return f"{share:.1%}" if is_number else number(share)


def energy(kilowatt_hours: Any) -> str:
    """Energy in the unit that has a short number: 1.2 kWh, 3.4 Wh."""
    if isinstance(kilowatt_hours, bool) or not isinstance(kilowatt_hours, (int, float)):
        return number(kilowatt_hours)
    small = abs(kilowatt_hours) < 0.1
    return f"{number(1000 * kilowatt_hours)} Wh" if small else f"{number(kilowatt_hours)} kWh"


def shown_value(name: str, value: Any) -> str:
    """A recipe's value, exactly, as YAML reads it; paths without the folders that lead to them."""
    if isinstance(value, (bool, int, float)):
        return yaml.safe_dump(value).split("\n")[0]
    return str(_without_folders(value, name in _PATH_KEYS))


def _without_folders(value: Any, is_path: bool) -> Any:
    """The value with the last part of each path that would tell of the machine."""
    if isinstance(value, Mapping):
        return {
            _without_folders(key, False): _without_folders(v, is_path) for key, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_without_folders(each, is_path) for each in value]
    if not isinstance(value, str):
        return value
    posix, windows = PurePosixPath(value), PureWindowsPath(value)
    if windows.drive or windows.is_absolute():
        return windows.name
    is_outside = posix.is_absolute() or value.startswith(("~", "file:/"))
    if is_outside or (is_path and ".." in posix.parts):
        return posix.name
    return _FOLDERS.sub("", value)


def recipe_rows(run: Run) -> list[tuple[str, str]]:
    """Key and value of everything that was chosen."""
    return [
        (name, shown_value(name, value))
        for name, value in run.recipe.items()
        if value is not None and value != "" and name not in _UNTOLD
    ]


def data_parts(run: Run) -> list[str]:
    """The headings of the columns of `data_rows`."""
    return [_PARTS.get(part, part.replace("_", " ")) for part in _counted_parts(run)]


def _counted_parts(run: Run) -> list[str]:
    others = [part for part in run.data if part not in ("train", "eval")]
    return ["train", "eval", *others] if run.data else []


def data_rows(run: Run) -> list[tuple[str, ...]]:
    """What was counted, a column for each part of the data."""
    parts = [run.data.get(part, {}) for part in _counted_parts(run)]
    given = {key: None for part in parts for key in part}
    names = [
        *(key for key in _DATA_ROWS if key in given),
        *(k for k in given if k not in _DATA_ROWS),
    ]
    return [
        (_DATA_ROWS.get(name, score_label(name)), *(_cell(part, name) for part in parts))
        for name in names
    ]


def _cell(counts: Mapping[str, Any], key: str) -> str:
    value = counts.get(key)
    if value is None:
        return ""
    if key == "fullness":
        return percent(value)
    return number(value) if isinstance(value, (int, float)) else shown_value(key, value)


def fact_rows(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the model's facts or of the environment."""
    return [(name.replace("_", " "), number(value)) for name, value in facts.items()]


def hardware_rows(run: Run) -> list[tuple[str, str]]:
    """What the run was made on, and what it took there."""
    machine = {name: run.environment[name] for name in _HARDWARE if name in run.environment}
    taken = {
        "energy of the processors": run.metrics.get("energy_kwh_cpu"),
        "energy of the GPUs": run.metrics.get("energy_kwh_gpu"),
    }
    return [
        *fact_rows(machine),
        *((name, energy(value)) for name, value in taken.items() if value is not None),
    ]


def version_rows(run: Run) -> list[tuple[str, str]]:
    """The versions that it ran with."""
    versions = {name: v for name, v in run.environment.items() if name not in _HARDWARE}
    return [(name, str(value)) for name, value in versions.items()]


def example_rows(run: Run) -> list[tuple[str, str, str]]:
    """What the model read, what was right, and what it said, of each of the run's examples."""
    return [_example_row(example) for example in run.examples]


def _example_row(example: Mapping[str, Any]) -> tuple[str, str, str]:
    if "guesses" not in example:
        told = (example.get(name) for name in ("input", "expected", "output"))
        read, right, said = ("" if value is None else _shortened(number(value)) for value in told)
        return read, right, said
    guesses = [f"{word} {share}" for word, share, _ in guess_rows(example)]
    sentence = f"{example.get('before', '')}▁▁▁{example.get('after', '')}"
    return sentence, str(example.get("word", "")), ", ".join(guesses)


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST].rstrip()} ..."


def guess_rows(example: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Each guess with its probability, and whether it is the word that was there."""
    truth = str(example.get("word", "")).casefold()
    return [
        (str(word), f"{probability:.0%}", str(word).casefold() == truth)
        for word, probability in example.get("guesses", [])
    ]


def corpus_lines(data: Mapping[str, Mapping[str, Any]], is_drawn: bool = True) -> list[str]:
    """What is about to be trained on, for a terminal.

    Args:
        data: facts of "train" and of "eval".
        is_drawn: whether what is held out was drawn; else the corpus has a split of its own.
    """
    text, held_out = data["train"], data["eval"]
    whose = "" if is_drawn else ", its own split; no eval_fraction is read"
    return [
        f"Corpus     {number(text['documents'])} documents, {number(text['words'])} words; "
        f"{number(held_out['documents'])} more documents are held out{whose}",
        f"Rows       {number(text['rows'])}, {number(text['tokens'])} tokens, "
        f"{text['fullness']:.1%} full",
    ]


def model_line(model: Mapping[str, Any], name: str = "Model") -> str:
    """A model's facts, for a terminal."""
    return f"{name:<10} {', '.join(f'{name} {value}' for name, value in fact_rows(model))}"


def example_lines(examples: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the model makes of some examples, two lines each, for a terminal."""
    return [_example_line(example) for example in examples]


def _example_line(example: Mapping[str, Any]) -> str:
    if "guesses" not in example:
        read, right, said = _example_row(example)
        return f"{read}{f' [{right}]' if right else ''}\n    {said}"
    guesses = ", ".join(f"{word} {share}" for word, share, _ in guess_rows(example))
    return f"{example['before']}[{example['word']}]{example['after']}\n    {guesses}"
