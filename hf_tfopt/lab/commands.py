"""`hf-tfopt lab`, once its command line is understood: run, and leave table, picture and JSON."""

import dataclasses
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from hf_tfopt.lab.comparison import STEP_SECONDS, Comparison, Trial, compare
from hf_tfopt.lab.experiment import Experiment
from hf_tfopt.lab.lr_range import RangeReading
from hf_tfopt.lab.pictures import draw_comparison, draw_lr_range
from hf_tfopt.lab.range_run import run_lr_range
from hf_tfopt.lab.settings import (
    LR_RANGE,
    SCHEDULES_COMPARED,
    Request,
    at_rate,
)
from hf_tfopt.lab.witness import check_alike
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.run.facts import environment_facts
from hf_tfopt.run.folder import claim, write_bytes, write_json


def lab(request: Request) -> None:
    """Do what was asked for, and print what came of it.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    folder = _empty_folder(request.recipe)
    print("Making data and model ...", flush=True)
    try:
        experiment = Experiment(request.recipe)
    except (OSError, ImportError) as error:  # a corpus or a model that is not there
        raise ValueError(str(error)) from error
    work = _lr_range if request.experiment == LR_RANGE else _comparison
    print(*work(request, experiment, folder), sep="\n")


def _empty_folder(recipe: Recipe) -> Path:
    assert recipe.output_dir is not None, "a resolved recipe has one"
    folder = claim(recipe.output_dir, resume=True)  # what lies there is asked for below
    if present := sorted(entry.name for entry in folder.iterdir()):
        raise ValueError(
            f"output_dir {folder} is not empty ({present[0]} ...): give another --output_dir"
        )
    return folder


def _comparison(request: Request, experiment: Experiment, folder: Path) -> list[str]:
    """Run all sides with all their rates; leave picture and JSON, and return what to print."""
    sweeps = request.sweeps()
    experiment.check(request.sides)
    num_runs, num_steps = sum(map(len, sweeps.values())), request.recipe.max_steps or 0
    with tqdm(total=num_runs * num_steps, unit="update") as bar:

        def run(name: str, rate: float) -> Any:
            bar.set_description(f"{name}, lr {rate:g}")
            bar.n = len(experiment.witnesses) * num_steps  # a run may have stopped early
            return experiment.train(at_rate(request.sides[name], rate), bar)

        comparison = compare(sweeps, run)
    check_alike(experiment.witnesses)
    _write_comparison(request, experiment, comparison, folder)
    return [
        *_about(experiment),
        f"{num_runs} runs, one seed; each began with the same weights and saw the same batches "
        f"(checked)",
        "",
        *comparison.table(request.experiment[:-1]),
        "",
        *_advice(comparison),
        f"comparison.png and comparison.json are in {folder}",
    ]


def _about(experiment: Experiment) -> list[str]:
    recipe, facts = experiment.recipe, experiment.facts
    rows = recipe.batch_size * recipe.gradient_accumulation_steps
    return [
        f"{facts['class']}, {facts['parameters']:,} parameters; {recipe.max_steps} updates of "
        f"{rows} rows; {len(experiment.rows['eval'])} rows held out"
    ]


def _advice(comparison: Comparison) -> list[str]:
    if comparison.is_settled:
        return ["Each best rate lies inside its sweep."]
    return ["Not settled: NAME=LR moves the sweep of a side whose best rate is at its edge."]


def _write_comparison(
    request: Request, experiment: Experiment, comparison: Comparison, folder: Path
) -> None:
    picture = BytesIO()
    draw_comparison(comparison, picture, has_rates=request.experiment == SCHEDULES_COMPARED)
    write_bytes(folder / "comparison.png", picture.getvalue())
    content = {
        **_shared_facts(request, experiment),
        "options": dataclasses.asdict(request.options),
        "sides": {name: _changes(request.recipe, side) for name, side in request.sides.items()},
        "ranking": [
            {
                "setting": s.setting,
                "rate": s.best.rate,
                "loss": s.best.loss,
                STEP_SECONDS: s.step_seconds,
                "note": s.note,
            }
            for s in comparison.standings
        ],
        "trials": [_facts_of(trial) for trial in comparison.trials],
    }
    write_json(folder / "comparison.json", content)


def _shared_facts(request: Request, experiment: Experiment) -> dict[str, Any]:
    return {
        "experiment": request.experiment,
        "recipe": dataclasses.asdict(request.recipe),
        "model": experiment.facts,
        "environment": environment_facts(experiment.device),
        "witnesses": [dataclasses.asdict(witness) for witness in experiment.witnesses],
    }


def _changes(recipe: Recipe, side: Recipe) -> dict[str, Any]:
    """What a side has otherwise than the recipe of all."""
    shared = dataclasses.asdict(recipe)
    return {
        name: value for name, value in dataclasses.asdict(side).items() if shared[name] != value
    }


def _facts_of(trial: Trial) -> Mapping[str, Any]:
    return dataclasses.asdict(trial) | {"loss": trial.loss}


def _lr_range(request: Request, experiment: Experiment, folder: Path) -> list[str]:
    """One run with a rising rate; leave picture and JSON, and return what to print."""
    recipe, options = request.recipe, request.options
    usual, num_steps = recipe.learning_rate or 0.0, recipe.max_steps or 0
    lowest, highest = options.lowest or usual / 100, options.highest or usual * 100
    with tqdm(total=2 * num_steps, unit="update", desc="lr-range") as bar:
        reading = run_lr_range(experiment, lowest, highest, bar)
    picture = BytesIO()
    draw_lr_range(reading, picture)
    write_bytes(folder / "lr_range.png", picture.getvalue())
    content = {**_shared_facts(request, experiment), "reading": dataclasses.asdict(reading)}
    write_json(folder / "lr_range.json", content)
    return [
        *_about(experiment),
        *_reading_lines(reading, num_steps),
        f"lr_range.png and lr_range.json are in {folder}",
    ]


def _reading_lines(reading: RangeReading, num_steps: int) -> list[str]:
    num_read = len(reading.rates)
    lines = [
        f"lr {reading.rates[0]:.3g} to {reading.rates[-1]:.3g} in {num_read} of {num_steps} "
        "updates; losses beside those of the first weights on the same batches"
    ]
    if reading.recommended is None:
        return [*lines, f"No recommendation: {reading.note}"]
    lines += [
        f"recommended  {reading.recommended:<10g} nine tenths of the smoothed loss's fall",
        f"steepest     {reading.steepest:<10g} it falls fastest",
        f"lowest       {reading.lowest:<10g} it is lowest; higher rates only harm",
    ]
    return [*lines, reading.note] if reading.note else lines
