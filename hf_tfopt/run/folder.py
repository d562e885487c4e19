"""A run's output folder: claimed before anything is done, written whole files at a time, read back.

`metrics.json` holds numbers only. `run.json` holds what the report and the card are made from, so
that both can be made again from the folder alone: history, data, model, examples, environment.
"""

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

METRICS, RECORD, RECIPE = "metrics.json", "run.json", "recipe.yaml"
# What draws rows to hold out; null in the recipe.yaml of data with a held-out split of their own.
OF_THE_DRAW = ("eval_fraction", "split_seed")


def claim(folder: str | Path, resume: bool = False) -> Path:
    """Make the folder, or refuse it before anything is lost or wasted.

    Args:
        folder: where the run will write.
        resume: whether what lies there already is to be gone on from.

    Raises:
        ValueError: if it is a file, cannot be written to, or holds something and `resume` is false.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {folder} cannot be written to: {error.strerror}") from error
    present = sorted(entry.name for entry in path.iterdir())
    if present and not resume:
        listed = ", ".join(present[:3]) + (" ..." if len(present) > 3 else "")
        raise ValueError(
            f"output_dir {folder} is not empty ({listed}): "
            "give another --output_dir, or --resume to go on from its newest checkpoint"
        )
    return path


def check_unchanged(
    folder: str | Path, recipe: Mapping[str, Any], may_change: Sequence[str]
) -> None:
    """Refuse to go on with a run whose recipe is not what it was begun with.

    What drew nothing (`OF_THE_DRAW`, null in the folder's recipe) may be anything.

    Args:
        folder: the run's folder; one without a recipe has not begun.
        recipe: every key of the recipe given now.
        may_change: keys that may differ.

    Raises:
        ValueError: naming each other key that differs, with both values.
    """
    path = Path(folder) / RECIPE
    if not path.exists():
        return
    before = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if before.get("eval_fraction") is not None:  # before there was a split_seed, seed drew
        before.setdefault("split_seed", before.get("seed"))
    changed = [
        f"{name}: was {before[name]}, now {value}"
        for name, value in recipe.items()
        if name in before
        and name not in may_change
        and before[name] != value
        and not (name in OF_THE_DRAW and before[name] is None)
    ]
    if changed:
        raise ValueError(
            f"{folder} was begun with another recipe ({'; '.join(changed)}): "
            "resume with that one, or begin anew with another --output_dir"
        )


def finished_steps(folder: str | Path) -> int:
    """The steps of the finished run in a folder; 0 if there is none."""
    path = Path(folder) / METRICS
    return int(json.loads(path.read_text(encoding="utf-8"))["steps"]) if path.exists() else 0


def write_text(path: str | Path, text: str) -> None:
    """Write a file so that a reader, or a crash, never meets half of it."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, never meets half of it.

    Raises:
        OSError: it cannot be written; of its kind, and with this path.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error


def unread_keys(folder: str | Path) -> list[str]:
    """The keys that drew nothing in the run that a folder's recipe.yaml is of."""
    recipe = yaml.safe_load((Path(folder) / RECIPE).read_text(encoding="utf-8"))
    return [name for name in OF_THE_DRAW if recipe.get(name) is None]


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON whole; NaN and infinity, which JSON does not know, become null."""
    write_text(path, json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")


def _finite(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {str(name): _finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    if isinstance(content, float) and content - content != 0:
        return None
    return content


@dataclass(frozen=True)
class Run:
    """A run, as its folder tells it.

    Args:
        name: the folder's own name.
        metrics: final numbers (eval_loss, perplexity, train_seconds, steps ...).
        recipe: the keys of recipe.yaml.
        history: the trainer's log, one mapping for each entry.
        data: counts of the corpus (documents, words, tokens ...), for "train" and for "eval".
        model: facts of the model (class, parameters ...).
        examples: masked words and what the model put there (`completions.complete`); of another
            task what it read, what was right and what it said ("input", "expected", "output").
        environment: versions of what ran.
        task: what the model does, as the Hub calls it: one of `hub.tasks.TASKS`.
        attention: chosen sentences ("sentence", "tokens") and where the heads looked ("layers":
            [layer][head][query][key]), as of the end.
        hub_names: key -> name, of those keys of the recipe that name a model or dataset of the Hub.
        unfinished: how far a run came that is not finished, or what a finished one lacks; else
            empty.
    """

    name: str
    metrics: Mapping[str, float]
    recipe: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    data: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Any])
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    examples: Sequence[Mapping[str, Any]] = ()
    environment: Mapping[str, Any] = field(default_factory=dict[str, Any])
    task: str = "fill-mask"
    attention: Sequence[Mapping[str, Any]] = ()
    hub_names: Mapping[str, str] = field(default_factory=dict[str, str])
    unfinished: str = ""


_RECORDED = (
    *("history", "data", "model", "examples", "environment", "task", "attention"),
    *("hub_names", "unfinished"),
)


def write_run(folder: str | Path, run: Run) -> None:
    """Write metrics.json and run.json; recipe.yaml is the script's, written as the run begins."""
    record = _finite({name: getattr(run, name) for name in _RECORDED})
    parts = [f"{json.dumps(name)}: {_by_line(part)}" for name, part in record.items()]
    write_text(Path(folder) / RECORD, "{\n" + ",\n".join(parts) + "\n}\n")
    write_json(Path(folder) / METRICS, run.metrics)


def _by_line(content: Any) -> str:
    """JSON with a line for each entry of a list: histories are long, and attention maps longer."""
    if not isinstance(content, list) or not content:
        return json.dumps(content, allow_nan=False)
    entries = [json.dumps(entry, allow_nan=False) for entry in content]
    return "[\n" + ",\n".join(entries) + "\n]"


def read_run(folder: str | Path) -> Run:
    """The run that a folder holds.

    Raises:
        ValueError: if the folder is not there, or does not hold a finished run.
    """
    path = Path(folder)
    try:
        metrics = json.loads((path / METRICS).read_text(encoding="utf-8"))
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        missing = Path(str(error.filename)).name
        raise ValueError(f"{folder} holds no finished run: {missing} is not there") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{folder} holds no run that can be read: {error}") from error
    if not all(isinstance(part, dict) for part in (metrics, record, recipe)):
        raise ValueError(f"{folder} holds no run that can be read: a file of it is not a mapping")
    recorded = {name: record[name] for name in _RECORDED if name in record}
    return Run(path.resolve().name, metrics, recipe, **recorded)
