"""What a lab's command line asks for: the recipe of all runs, and what each side changes of it."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_tfopt.lab.comparison import rate_sweep
from hf_tfopt.optimizers import OPTIMIZERS
from hf_tfopt.presets import PRESETS
from hf_tfopt.recipe.keys import Recipe, load_recipe
from hf_tfopt.recipe.training_keys import RATES_OVER_TIME
from hf_tfopt.recipe.typed_values import (
    POSITIVE,
    Check,
    at_least,
    check_fields,
    described,
    key,
    kinds,
    parse_flags,
    value_from_text,
)
from hf_tfopt.registry import check_name

OPTIMIZERS_COMPARED, SCHEDULES_COMPARED, LR_RANGE = "optimizers", "schedules", "lr-range"
USAGE = """hf-tfopt lab EXPERIMENT [NAME[=LR] ...] [RECIPE] [--key value ...]

  hf-tfopt lab optimizers adamw lamb muon                      # under the preset bert-mini
  hf-tfopt lab optimizers adamw=3e-3 muon bert-tiny --max_steps 120 --rates 5
  hf-tfopt lab schedules linear cosine warmup_stable_decay recipe.yaml --optimizer adamw
  hf-tfopt lab lr-range bert-tiny --optimizer adamw

Every run of a comparison begins with the same weights, sees the same batches in the same order,
makes the same number of updates and is evaluated on the same rows; each side may try as many
learning rates as the others, around the one that is usual for it, or NAME=LR. The range test makes
one run whose rate rises, takes from each loss what the first weights have on that batch (a second
run, that moves nothing), and reads the smoothed curve. All keys of a recipe are flags too.
"""

EXPERIMENTS = (OPTIMIZERS_COMPARED, SCHEDULES_COMPARED, LR_RANGE)

# Optimizers that do without a decay of the rate, and are at a disadvantage with one.
_OWN_SCHEDULES = {"schedule_free": "constant"}

_STEPS = {OPTIMIZERS_COMPARED: 60, SCHEDULES_COMPARED: 60, LR_RANGE: 100}
_NUM_EVALUATIONS = 10

# Keys of a recipe that would be without effect as flags, and why.
_NO_FOLDER_OF_A_RUN = "a lab run leaves no model, no checkpoint and no card"
_OWN = {
    **dict.fromkeys(("save_steps", "report_to", "license", "language"), _NO_FOLDER_OF_A_RUN),
    "logging_steps": "every update is logged",
    "num_train_epochs": "the number of updates is --max_steps",
}
_EACH_ITS_OWN = "each optimizer has its own; write NAME=LR for the middle of its sweep"
_RISING = "the rate rises from --lowest to --highest"
_REFUSED: dict[str, dict[str, str]] = {
    OPTIMIZERS_COMPARED: _OWN
    | {"optimizer": "name the optimizers without a flag"}
    | dict.fromkeys(("learning_rate", "adamw_learning_rate"), _EACH_ITS_OWN),
    SCHEDULES_COMPARED: _OWN | {"schedule": "name the schedules without a flag"},
    LR_RANGE: _OWN
    | dict.fromkeys(("schedule", "warmup_steps", "decay_fraction"), _RISING)
    | {"eval_steps": "the training loss is read"},
}

# Keys of the recipe's own optimizer or schedule, which only that side of a comparison reads.
_READ_BY_ONE = {
    OPTIMIZERS_COMPARED: ("optimizer_options",),
    SCHEDULES_COMPARED: ("decay_fraction", "schedule_options"),
}


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """The flags of a comparison, besides the recipe's."""

    rates: int = key(3, "learning rates that each side may try", at_least(2))
    spacing: float = key(
        3.0, "each rate divided by the one below it", Check("1.01 or above", lambda x: x >= 1.01)
    )

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class RangeOptions:
    """The flags of the range test, besides the recipe's."""

    lowest: float | None = key(None, "the first update's rate; none: learning_rate / 100", POSITIVE)
    highest: float | None = key(None, "the last one's; none: learning_rate · 100", POSITIVE)

    def __post_init__(self) -> None:
        check_fields(self)


OPTIONS: dict[str, type[SweepOptions] | type[RangeOptions]] = {
    OPTIMIZERS_COMPARED: SweepOptions,
    SCHEDULES_COMPARED: SweepOptions,
    LR_RANGE: RangeOptions,
}


class Request(NamedTuple):
    """A command line, understood.

    `recipe` is what all runs share, `sides` the recipe of each setting at the middle of its sweep,
    and `options` the lab's own flags.
    """

    experiment: str
    recipe: Recipe
    sides: Mapping[str, Recipe]
    options: Any

    def sweeps(self) -> dict[str, tuple[float, ...]]:
        """Each side's learning rates."""
        return {
            name: rate_sweep(_rate(side), self.options.rates, self.options.spacing)
            for name, side in self.sides.items()
        }


def usage() -> str:
    """What `hf-tfopt lab` prints."""
    flags = [
        f"  {experiment} --{flag}: {text}"
        for experiment, options in OPTIONS.items()
        for flag, text in described(options).items()
    ]
    return "\n".join([USAGE, "Flags, besides those of `hf-tfopt list keys`:", *flags])


def read_request(words: Sequence[str]) -> Request:
    """What `EXPERIMENT [NAME[=LR] ...] [RECIPE] [--key value ...]` asks for.

    Raises:
        ValueError: an unknown experiment, name, recipe or key, with the nearest right one; fewer
            than two names; a value outside its range, or one that nothing would read.
    """
    if not words:
        raise ValueError(f"which experiment? {', '.join(EXPERIMENTS)}")
    experiment = check_name("experiment", words[0], EXPERIMENTS)
    positionals, flags, _ = parse_flags(words[1:])
    names, sources = _names_and_recipes(experiment, positionals)
    own = kinds(OPTIONS[experiment])
    for flag in flags:
        check_name("flag", flag, [*own, *kinds(Recipe)])
        if flag in _REFUSED[experiment]:
            raise ValueError(f"--{flag}: not read here: {_REFUSED[experiment][flag]}")
    chosen = {
        name: value_from_text(name, flags.pop(name), *own[name]) for name in own if name in flags
    }
    options = OPTIONS[experiment](**chosen)
    recipe = load_recipe(
        sources[0] if sources else "bert-mini", _defaults(experiment, flags) | flags
    )
    return Request(experiment, recipe, _sides(experiment, recipe, names, flags), options)


def at_rate(recipe: Recipe, rate: float) -> Recipe:
    """The recipe with another learning rate, that of Muon's AdamW in the same ratio."""
    with_adamw = recipe.adamw_learning_rate
    scaled = None if with_adamw is None else with_adamw * rate / _rate(recipe)
    return dataclasses.replace(recipe, learning_rate=rate, adamw_learning_rate=scaled)


def _rate(recipe: Recipe) -> float:
    assert recipe.learning_rate is not None, "a resolved recipe has one"
    return recipe.learning_rate


def _defaults(experiment: str, flags: Mapping[str, str]) -> dict[str, str]:
    """A short run, looked at ten times, in a folder of its own."""
    num_steps = value_from_text("max_steps", flags.get("max_steps", str(_STEPS[experiment])), int)
    return {
        "max_steps": str(num_steps),
        "eval_steps": str(max(1, num_steps // _NUM_EVALUATIONS)),
        "output_dir": f"runs/lab-{experiment}",
    }


def _names_and_recipes(
    experiment: str, positionals: Sequence[str]
) -> tuple[dict[str, float | None], list[str]]:
    """Names of what is compared with the rates given for them, and at most one recipe."""
    known = {OPTIMIZERS_COMPARED: (*OPTIMIZERS,), SCHEDULES_COMPARED: RATES_OVER_TIME, LR_RANGE: ()}
    names: dict[str, float | None] = {}
    sources: list[str] = []
    for word in positionals:
        name, has_rate, text = word.partition("=")
        if word not in known[experiment] and (word in PRESETS or _looks_like_a_file(word)):
            sources.append(word)
            continue
        _check_setting(experiment, name, known[experiment])
        if name in names:
            raise ValueError(f"{name} is given twice")
        names[name] = value_from_text(name, text, float) if has_rate else None
    if len(sources) > 1:
        raise ValueError(f"one recipe at a time, got {', '.join(sources)}")
    if experiment != LR_RANGE and len(names) < 2:
        raise ValueError(f"a comparison needs at least two {experiment}, got {len(names)}")
    return names, sources


def _looks_like_a_file(word: str) -> bool:
    return Path(word).suffix in (".yaml", ".yml") or Path(word).is_file()


def _check_setting(experiment: str, name: str, known: Sequence[str]) -> None:
    if experiment == SCHEDULES_COMPARED and name == "noam":
        raise ValueError(
            "noam: its rate is absolute, so that it has no peak to sweep; its shape is that of "
            "inverse_sqrt, compare that"
        )
    kind = "recipe" if experiment == LR_RANGE else f"{experiment[:-1]} or recipe"
    check_name(kind, name, [*known, *PRESETS])


def _sides(
    experiment: str, recipe: Recipe, names: Mapping[str, float | None], flags: Mapping[str, str]
) -> dict[str, Recipe]:
    if experiment == LR_RANGE:
        return {}
    own = recipe.optimizer if experiment == OPTIMIZERS_COMPARED else recipe.schedule
    for flag in _READ_BY_ONE[experiment]:
        if flag in flags and own not in names:
            raise ValueError(f"--{flag}: only {own}, the recipe's own, reads it; name that too")
    if experiment == SCHEDULES_COMPARED:
        sides = {name: _with_schedule(recipe, name) for name in names}
    else:
        sides = {name: _with_optimizer(recipe, name) for name in names}
    given = {name: rate for name, rate in names.items() if rate is not None}
    return {name: at_rate(side, given.get(name, _rate(side))) for name, side in sides.items()}


def _with_schedule(recipe: Recipe, name: str) -> Recipe:
    """The recipe with a schedule, whose own options are the recipe's if it has that schedule."""
    if name == recipe.schedule:
        return recipe
    return dataclasses.replace(recipe, schedule=name, decay_fraction=None, schedule_options=None)


def _with_optimizer(recipe: Recipe, name: str) -> Recipe:
    """The recipe with an optimizer at its usual rate, whatever rate the recipe has.

    Its other options are the recipe's if it has that optimizer.
    """
    recipe = _with_schedule(recipe, _OWN_SCHEDULES.get(name, recipe.schedule))
    changes: dict[str, Any] = {"optimizer": name, "adamw_learning_rate": None}
    if name != recipe.optimizer:
        changes["optimizer_options"] = None
    return dataclasses.replace(recipe, **changes, learning_rate=None)
