"""Hyperparameters searched for: whole runs of a recipe with other values, and the best of them.

The trials are runs like any other, so that every key of a recipe can be searched over, and what a
trial asks for is what it trains with. Which values come next is decided by optuna (TPE), from the
finished trials and the recipe's seed alone: a search that was stopped goes on as if it never had.
"""

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_tfopt.hub import check_push
from hf_tfopt.metrics import is_higher_better
from hf_tfopt.pictures.trials import draw_trials
from hf_tfopt.recipe.incomplete import IncompleteRunError
from hf_tfopt.recipe.search_space import Choices, Range, Trial, search_space, trial_recipe
from hf_tfopt.recipe.seeds import Once, free_memory, metrics_of, of_first_process
from hf_tfopt.recipe.selection import result_name
from hf_tfopt.registry import Lazy
from hf_tfopt.report import write_report
from hf_tfopt.run.folder import METRICS, RECIPE, check_unchanged, claim, write_json, write_text
from hf_tfopt.run.search_summary import FOLDER, TRIALS
from hf_tfopt.run.seed_summary import is_finite
from hf_tfopt.run.tables import number

# loaded where a search begins: optuna is an extra
_NEXT_VALUES = Lazy("hf_tfopt.recipe.next_trial:next_values", "search")
# what a trial's values can do to it, and not to the next one
_OF_VALUES = (ValueError, torch.OutOfMemoryError, IncompleteRunError)
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")


def searched(recipe: Any, is_resumed: bool, once: Once) -> Any:
    """Make the trials that are still to be made; the recipe with the best values.

    Everything of them is in the folder search/: `trials.json`, `trials.png`, a report, and for each
    trial a folder without weights. A trial that its values make impossible, or too large for the
    memory, is written down and told; but for the first one, as then all may be so. Among several
    processes it ends the search, which goes on with the next trial when it is resumed.

    Args:
        recipe: with a `search`.
        is_resumed: whether to go on with what is there.
        once: makes a run.

    Raises:
        ValueError: as `search_space`; a folder that holds another run; no trial with a score; as
            the first trial.
        ImportError: optuna is not installed.
    """
    space, next_values = search_space(recipe), _NEXT_VALUES.load()
    process = PartialState(cpu=recipe.device == "cpu")
    folder = Path(str(recipe.output_dir)) / FOLDER
    if process.is_main_process:
        _begin(recipe, folder, is_resumed)
    process.wait_for_everyone()
    by, trials = of_first_process(read_trials(folder))
    own = {name: getattr(recipe, name) for name in space}

    def ready() -> None:
        if process.is_main_process:
            write_text(folder / RECIPE, recipe.to_yaml())

    for index in range(len(trials), recipe.search_trials):
        is_own = not trials and all(space[name].holds(value) for name, value in own.items())
        values: Mapping[str, Any] = of_first_process(
            own if is_own else next_values(space, trials, recipe.seed, is_higher_better(by or ""))
        )
        process.print(f"\nTrial      {index + 1} of {recipe.search_trials}: {_words(values)}")
        trial, own_folder = _known(trials, values), folder / f"trial-{index + 1}"
        if trial is None:
            error = None
            try:
                each = _in_folder(trial_recipe(recipe, values), own_folder)
                metrics = metrics_of(each, once, ready, folder.parent)
            except _OF_VALUES as found:
                if not trials:
                    raise
                metrics, error = {}, found.with_traceback(None)  # which holds the model
                process.print(f"Failed     {error}")
            by = by or result_name(recipe, [metrics])
            score = metrics.get(by or "")
            trial = Trial(values, score if is_finite(score) else None, error and _reason(error))
            if error and process.num_processes > 1:  # the others may not have failed
                _write(folder, [*trials, trial], by)
                raise error
            free_memory()
        trials.append(trial)
        if process.is_main_process:
            _write(folder, trials, by)
            _drop_weights(own_folder)
        process.wait_for_everyone()
    best = best_trial(trials, is_higher_better(by or ""))
    assert by, "a trial has a score"
    if process.is_main_process:
        _draw(folder, space, trials, by)
    process.print(f"\nBest       {by} {number(best.score)}: {_words(best.values)}; see {folder}")
    return trial_recipe(recipe, best.values)


def best_trial(trials: Sequence[Trial], is_higher: bool) -> Trial:
    """The first trial with the best score.

    Raises:
        ValueError: if none has a score.
    """
    found = [trial for trial in trials if trial.score is not None]
    if not found:
        raise ValueError("search: no trial came to a finite number; search over lower rates")
    return (max if is_higher else min)(found, key=lambda trial: trial.score or 0.0)


def read_trials(folder: Path) -> tuple[str | None, list[Trial]]:
    """What the finished trials of a search are judged by, None if nobody knows yet; and they."""
    path = folder / TRIALS
    if not path.exists():
        return None, []
    told = json.loads(path.read_text(encoding="utf-8"))
    return told["by"], [
        Trial(trial["values"], trial["score"], trial.get("failure")) for trial in told["trials"]
    ]


def _begin(recipe: Any, folder: Path, is_resumed: bool) -> None:
    """Claim the folder of the run and that of the search."""
    claim(folder.parent, is_resumed)
    if recipe.push_to is not None:
        check_push(recipe.push_to, recipe.private is not False)
    if (folder.parent / RECIPE).exists() and not folder.exists():
        raise ValueError(f"{folder.parent} holds a run without a search: give another --output_dir")
    claim(folder, is_resumed)
    check_unchanged(folder, dataclasses.asdict(recipe), recipe.may_change_on_resume())
    if (folder.parent / RECIPE).exists() and len(read_trials(folder)[1]) < recipe.search_trials:
        raise ValueError(
            f"{folder.parent}: the run with the best values has begun; a search with more trials "
            "needs another --output_dir"
        )


def _in_folder(recipe: Any, folder: Path) -> Any:
    changed = {"output_dir": str(folder), "seeds": None, "push_to": None, "private": None}
    return dataclasses.replace(recipe, **changed)


def _known(trials: Sequence[Trial], values: Mapping[str, Any]) -> Trial | None:
    """An earlier trial with the same values: it would be the same run."""
    return next((trial for trial in trials if trial.values == values), None)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _write(folder: Path, trials: Sequence[Trial], by: str | None) -> None:
    told = [{"number": n, **trial._asdict()} for n, trial in enumerate(trials, start=1)]
    write_json(folder / TRIALS, {"by": by, "trials": told})


def _draw(
    folder: Path, space: Mapping[str, Range | Choices], trials: Sequence[Trial], by: str
) -> None:
    """The scores over each key, and a report over the trials."""
    best = best_trial(trials, is_higher_better(by))
    scales = {
        name: isinstance(place, Range) and place.is_logarithmic for name, place in space.items()
    }
    draw_trials(trials, best, by, scales, folder / "trials.png")
    made = [path for path in folder.glob("trial-*") if (path / METRICS).exists()]
    made = sorted(made, key=lambda path: int(path.name.partition("-")[2]))
    write_report(made, folder / "report.html")


def _drop_weights(folder: Path) -> None:
    """Checkpoints and models of a finished trial: the best one's recipe is trained again."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix in _WEIGHTS:
            path.unlink()


def _words(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())
