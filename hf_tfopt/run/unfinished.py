"""A run that is under way, or that stopped: what its folder tells of it.

`log.jsonl` is written by the callback `LiveLog`, an entry of the trainer's log in each line; it
begins with a line of "begun" (Unix time) and "max_steps", and ends with one of "ended". Without it,
the newest `trainer_state.json` of the folder or of its checkpoints tells what it knows.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from hf_tfopt.run.folder import METRICS, RECIPE, RECORD, Run, finished_steps, read_run

LIVE_LOG, STATE = "log.jsonl", "trainer_state.json"

Entry = dict[str, Any]


class Progress(NamedTuple):
    """How far a run has come.

    Args:
        history: what was logged, one mapping for each entry.
        step: the last that is known of.
        max_steps: of the whole run; 0 if unknown.
        begun: when its process began to train, Unix time; None if unknown.
        first_step: finished steps when it began.
        seconds: of training until the last log, of all processes one after another.
        newest: when the last was logged, Unix time.
        is_ended: whether the training came to its end.
        source: the file that this is read from.
    """

    history: list[Entry]
    step: int
    max_steps: int
    begun: float | None
    first_step: int
    seconds: float
    newest: float
    is_ended: bool
    source: str


def entries(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries of a log's whole lines; what a crash left torn is passed over."""
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def logged_progress(found: Iterable[Entry], modified: float = 0.0) -> Progress | None:
    """The progress that the entries of a live log tell; None if there are none.

    Args:
        found: all entries, in their order.
        modified: Unix time of the file's last change, for entries without a time.
    """
    history: list[Entry] = []
    begun, seconds = dict[str, Any](), [0.0]
    step, newest, is_ended, is_empty = 0, 0.0, False, True
    for entry in found:
        is_empty = False
        step = _whole(entry.get("step"), step)
        newest = max(newest, _number(entry.get("time")))
        if begun and (now := _number(entry.get("time") or entry.get("ended"))):
            seconds[-1] = max(seconds[-1], now - _number(begun.get("begun")))
        if "begun" in entry:
            begun, is_ended = entry, False
            seconds.append(0.0)
        elif "ended" in entry:
            is_ended = True
        else:
            history.append({name: value for name, value in entry.items() if name != "time"})
    if is_empty:
        return None
    return Progress(
        history,
        step,
        _whole(begun.get("max_steps"), 0),
        _number(begun.get("begun")) or None,
        _whole(begun.get("step"), 0),
        sum(seconds),
        newest or modified,
        is_ended,
        LIVE_LOG,
    )


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and math.isfinite(value)
    return float(value) if is_number else 0.0


def _whole(value: Any, default: int) -> int:
    return int(value) if _number(value) or value == 0 else default


def saved_progress(folder: str | Path) -> Progress | None:
    """The progress that the newest readable `trainer_state.json` tells; None if there is none."""
    path = Path(folder)
    files = [path / STATE, *path.glob(f"checkpoint-*/{STATE}")]
    for file in sorted((f for f in files if f.is_file()), key=_modified, reverse=True):
        state = _mapping(file)
        history = state.get("log_history")
        if isinstance(history, list):
            step, total = _whole(state.get("global_step"), 0), _whole(state.get("max_steps"), 0)
            is_ended = 0 < total <= step
            name = file.relative_to(path).as_posix()
            return Progress(history, step, total, None, 0, 0.0, _modified(file), is_ended, name)
    return None


def _modified(file: Path) -> float:
    return file.stat().st_mtime


def _mapping(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def progress_of(folder: str | Path) -> Progress | None:
    """How far the run in a folder has come, from the file that knows more steps, if any."""
    log = Path(folder) / LIVE_LOG
    saved, live = saved_progress(folder), None
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        live = logged_progress(entries(lines), _modified(log))
    if live and saved:
        return live if live.step >= saved.step else saved
    return live or saved


def read_any_run(folder: str | Path) -> Run:
    """The run that a folder holds, finished or not.

    One that went on after it was finished once, and is not finished again, is unfinished.

    Raises:
        ValueError: if the folder holds neither a finished run, nor a log or a checkpoint of one.
    """
    path = Path(folder)
    progress = progress_of(path)
    is_finished = (path / METRICS).exists() and (path / RECORD).exists()
    if progress and not (is_finished and finished_steps(path) >= progress.step):
        return _unfinished(path, progress)
    try:
        return read_run(path)
    except ValueError as error:
        if is_finished:
            raise
        raise ValueError(f"{error}, nor {LIVE_LOG}, nor a checkpoint's {STATE}") from error


def _unfinished(path: Path, progress: Progress) -> Run:
    total = f" of {progress.max_steps:,}" if progress.max_steps else ""
    state = "Trained, but not reported on by its script" if progress.is_ended else "Not finished"
    return Run(
        path.resolve().name,
        newest_numbers(progress),
        _recipe(path),
        progress.history,
        unfinished=f"{state}: step {progress.step:,}{total}, read from {progress.source}.",
    )


def _recipe(path: Path) -> Mapping[str, Any]:
    try:
        recipe = yaml.safe_load((path / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return recipe if isinstance(recipe, dict) else {}


_NEWEST = {
    "eval_loss": "eval_loss",
    "perplexity": "eval_perplexity",
    "accuracy": "eval_accuracy",
    "loss": "loss",
    "tokens_per_second": "time/tokens_per_second",
}


def newest_numbers(progress: Progress) -> dict[str, float]:
    """What a finished run's metrics would hold, as of the newest log that has it."""
    found: dict[str, float] = {}
    for entry in progress.history:
        found |= {name: entry[key] for name, key in _NEWEST.items() if entry.get(key) is not None}
    if progress.seconds:
        found["train_seconds"] = progress.seconds
    return found | {"steps": progress.step}
