"""The same run once for each of several seeds, and what they come to together."""

import dataclasses
import gc
import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_tfopt.hub import check_push, push_or_tell, write_card
from hf_tfopt.metrics import is_higher_better
from hf_tfopt.recipe.incomplete import LENGTHS, incomplete_run
from hf_tfopt.recipe.selection import WITHOUT_GAIN, result_name
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.report import write_report
from hf_tfopt.run.folder import (
    METRICS,
    RECIPE,
    check_unchanged,
    claim,
    unread_keys,
    write_json,
    write_text,
)
from hf_tfopt.run.seed_summary import (
    SEEDS,
    SeedSummary,
    mean_and_spread,
    median_seed,
    spread_rows,
)
from hf_tfopt.run.unfinished import LIVE_LOG

# recipe, whether it is gone on with, what is done when nothing can be wrong any more -> the numbers
Once = Callable[[Any, bool, Callable[[], None]], dict[str, float]]


def seed_recipe(recipe: Any, seed: int) -> Any:
    """The recipe of one of the runs, in a folder of its own."""
    folder = str(Path(str(recipe.output_dir)) / f"seed-{seed}")
    changed = {"seed": seed, "seeds": None, "output_dir": folder, "push_to": None, "private": None}
    return dataclasses.replace(recipe, **changed)


def over_seeds(recipe: Any, is_resumed: bool, once: Once) -> dict[str, float]:
    """Make the run once for each seed, one after the other, and sum up; the mean numbers.

    A run that is finished is not made again. The folder is left with the model of the median seed
    (`median_seed`, by `select` or the held-out loss), and metrics.json with the means.

    Args:
        recipe: its `seeds` are at least two.
        is_resumed: whether to go on with what is there.
        once: makes a run.

    Raises:
        ValueError: a folder that holds another run; as `once`.
    """
    process, folder = PartialState(cpu=recipe.device == "cpu"), Path(str(recipe.output_dir))
    if process.is_main_process:
        _begin(recipe, folder, is_resumed)
    process.wait_for_everyone()
    own = {seed: seed_recipe(recipe, seed) for seed in recipe.seeds}

    def ready(each: Any) -> None:  # whose own recipe is written by then
        if process.is_main_process:
            write_text(folder / RECIPE, recipe.to_yaml(unread_keys(each.output_dir)))

    metrics: dict[int, Mapping[str, Any]] = {}
    for number, (seed, each) in enumerate(own.items(), start=1):
        process.print(f"\nSeed       {seed}, {number} of {len(own)}")
        metrics[seed] = metrics_of(each, once, partial(ready, each), folder)
    by = result_name(recipe, metrics.values()) or "eval_loss"
    shown = median_seed(metrics, by, is_higher_better(by))
    summary = SeedSummary(metrics, by, shown)
    if process.is_main_process:
        _sum_up(folder, own, summary)
    _say(process.print, folder, summary)
    if process.is_main_process and recipe.push_to is not None:  # last: the runs are whole
        push_or_tell(folder, recipe.push_to, recipe.private is not False)
    # nobody waits for a push: it may take longer than processes wait for one another
    return mean_and_spread(list(metrics.values()))


def metrics_of(
    recipe: TrainingKeys, once: Once, ready: Callable[[], None], root: Path
) -> dict[str, float]:
    """The final numbers of a run, which is made unless it is finished; on every process.

    Args:
        recipe: the run's.
        once: makes it.
        ready: called when it is about to train.
        root: the folder of all runs; a mistake leaves no empty one there.
    """
    folder = Path(str(recipe.output_dir))
    before = of_first_process(finished_metrics(recipe))
    if before is not None:
        PartialState().print(f"Finished before, in {folder}")
        return before
    is_begun: bool = of_first_process(folder.exists())
    try:
        found = once(recipe, is_begun, ready)
    except Exception:
        for path in (folder, *(p for p in folder.parents if p.is_relative_to(root))):
            with suppress(OSError):
                path.rmdir()  # only if it is empty
        raise
    free_memory()
    return of_first_process(found)


def free_memory() -> None:
    """Leave nothing of the run before: a Trainer and its callbacks know each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def of_first_process(value: Any) -> Any:
    """The main process's value, on every process."""
    return broadcast_object_list([value])[0] if PartialState().num_processes > 1 else value


def finished_metrics(recipe: TrainingKeys) -> dict[str, float] | None:
    """The final numbers of a recipe's run, if its folder holds it, finished, and not to go on."""
    folder = Path(str(recipe.output_dir))
    try:
        before = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    if incomplete_run(recipe, folder):
        return None
    is_same = all(before.get(name) == getattr(recipe, name) for name in LENGTHS)
    return metrics if is_same and not _goes_on(before, metrics, recipe) else None


def _goes_on(before: Mapping[str, Any], metrics: Mapping[str, Any], recipe: TrainingKeys) -> bool:
    """Whether a run that has stopped by itself, before its end, has more patience now."""
    lost, old, new = metrics.get(WITHOUT_GAIN, 0), before.get("patience"), recipe.patience
    is_whole = metrics["steps"] >= (recipe.max_steps or math.inf) or metrics["epochs"] >= (
        recipe.num_train_epochs or math.inf
    )
    has_more = new is None or new > lost
    return old is not None and lost >= old and has_more and not is_whole


def _begin(recipe: Any, folder: Path, is_resumed: bool) -> None:
    """Claim the folder, and refuse one that holds something else."""
    path = folder / RECIPE
    claim(folder, is_resumed)
    if path.exists():
        before: Sequence[int] = yaml.safe_load(path.read_text(encoding="utf-8")).get("seeds") or ()
        if not before:
            raise ValueError(f"{folder} holds a single run: give --seeds another --output_dir")
        if left := [seed for seed in before if seed not in recipe.seeds]:
            raise ValueError(
                f"{folder} was begun with the seeds {list(before)}; {left} are not among those "
                f"given, {list(recipe.seeds)}"
            )
    may_change = (*recipe.may_change_on_resume(), "seeds")
    check_unchanged(folder, dataclasses.asdict(recipe), may_change)
    if recipe.push_to is not None:
        check_push(recipe.push_to, recipe.private is not False)


def _sum_up(folder: Path, own: Mapping[int, Any], summary: SeedSummary) -> None:
    """The median seed's model and card, the means, and a report over all runs."""
    recipe = (folder / RECIPE).read_text(encoding="utf-8")
    for path in Path(own[summary.median_seed].output_dir).iterdir():
        if path.is_file() and path.name not in (LIVE_LOG, RECIPE):
            shutil.copy2(path, folder)
    write_report([each.output_dir for each in own.values()], folder / "report.html")
    write_json(
        folder / SEEDS,
        {"seeds": summary.metrics, "by": summary.by, "median_seed": summary.median_seed},
    )
    write_text(folder / RECIPE, recipe)
    write_json(folder / METRICS, mean_and_spread(list(summary.metrics.values())))
    write_card(folder)


def _say(say: Callable[[str], None], folder: Path, summary: SeedSummary) -> None:
    say(f"\nSeeds      {', '.join(map(str, summary.metrics))}: mean ± sample standard deviation")
    for name, mean, ends in spread_rows(summary):
        say(f"  {name:<24} {mean}   ({ends})")
    say(
        f"The model in {folder} is that of seed {summary.median_seed}, the median by {summary.by}; "
        "report.html has the curves of all"
    )
