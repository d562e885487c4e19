"""What a recipe's `search` asks for: for each key a range or choices, and a recipe for each trial.

Without torch: mistakes are answered at once.
"""

import dataclasses
from collections.abc import Mapping
from itertools import combinations, product
from typing import Any, NamedTuple, TypeVar

from hf_tfopt.recipe.loading import laid_over
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.recipe.typed_values import kinds, value_from_text
from hf_tfopt.registry import check_name

Keys = TypeVar("Keys", bound=TrainingKeys)

# Not what is trained, but how it is measured, named, stopped or repeated.
_NOT_SEARCHED = (
    *("preset", "seed", "seeds", "search", "search_trials", "select", "patience", "device"),
    *("monitors", "logging_steps", "eval_steps", "save_steps", "report_to", "output_dir"),
    *("push_to", "private", "license", "language"),
    *("eval", "test", "eval_fraction", "eval_masking_probability", "metrics", "positive"),
    *("problem", "label_column", "label_separator", "columns", "split_seed"),
    *("eval_samples", "test_samples", "eval_batch_size"),
)
# What decides which rows are held out, where they are not given: trials are judged on the same.
_SPLIT = (
    *("train", "corpus", "text_column", "text_pair_column", "source_column", "target_column"),
    *("shared_examples", "incomplete_examples"),
)
# A range this wide is searched by its orders of magnitude.
_WIDE = 10


class Range(NamedTuple):
    """Any number from `low` to `high`."""

    low: float
    high: float
    is_logarithmic: bool

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the range's."""
        return isinstance(value, float) and self.low <= value <= self.high


class Choices(NamedTuple):
    """One of some values, of any kind."""

    values: tuple[Any, ...]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of the choices."""
        return value in self.values


class Trial(NamedTuple):
    """A finished run of a search.

    Args:
        values: key -> value.
        score: the number it came to; None: none that is finite.
        failure: what ended it before it had one; None: nothing.
    """

    values: Mapping[str, Any]
    score: float | None
    failure: str | None = None


def search_space(recipe: TrainingKeys) -> dict[str, Range | Choices]:
    """What each key that is searched may be; empty for a recipe without a search.

    Two numbers of a key that takes fractions are a range (logarithmic for learning rates, and where
    the higher is ten times the lower); everything else is a choice of what is listed.

    Args:
        recipe: its `search` is key -> list of values.

    Raises:
        ValueError: a key that there is not, or that cannot be searched over; fewer than two values;
            a value that the recipe cannot have.
    """
    types = kinds(type(recipe))
    space: dict[str, Range | Choices] = {}
    if recipe.search is not None and not recipe.search:
        raise ValueError("search: got no key, expected some: {learning_rate: [1.0e-5, 1.0e-3]}")
    for name, listed in (recipe.search or {}).items():
        kind, is_optional = types[check_name("key (search)", name, types)]
        if name in _NOT_SEARCHED:
            raise ValueError(f"search: {name} cannot be searched over: no result would be better")
        if name in _SPLIT and getattr(recipe, "eval", None) is None:
            raise ValueError(
                f"search: {name}: each trial would be judged on held-out rows of its own; give eval"
            )
        if not isinstance(listed, list) or len(listed) < 2:
            raise ValueError(
                f"search: {name}: got {listed!r}, must be a list of two values or more"
            )
        values = [_value(name, value, kind, is_optional) for value in listed]
        space[name] = _one(name, values, kind)
    ends = {
        name: place[:2] if isinstance(place, Range) else place.values
        for name, place in space.items()
    }
    for names in combinations(
        space, min(2, len(space))
    ):  # a key may be read beside some values alone
        for values in product(*(ends[name] for name in names)):
            _check(recipe, dict(zip(names, values, strict=True)))
    return space


def _one(name: str, values: list[Any], kind: type) -> Range | Choices:
    if kind is not float or len(values) != 2 or None in values:
        if any(values.count(value) > 1 for value in values):
            raise ValueError(f"search: {name}: got {values}, must be different values")
        return Choices(tuple(values))
    low, high = values
    if low >= high:
        raise ValueError(f"search: {name}: got [{low:g}, {high:g}], must be the lower one first")
    is_rate = "learning_rate" in name
    return Range(low, high, low > 0 and (is_rate or high >= _WIDE * low))


def _value(name: str, value: Any, kind: type, is_optional: bool) -> Any:
    """A value as the key has it; a number without a point is text in YAML, and meant as one."""
    is_number = kind in (int, float) and not isinstance(value, bool)
    text = str(value) if is_number or value is None else value
    if isinstance(text, str):
        return value_from_text(f"search: {name}", text, kind, is_optional)
    return value


def _check(recipe: TrainingKeys, values: Mapping[str, Any]) -> None:
    try:
        trial_recipe(recipe, values)
    except ValueError as error:
        raise ValueError(f"search: {error}") from error


def trial_recipe(recipe: Keys, values: Mapping[str, Any]) -> Keys:
    """The recipe with these values, and without a search; what they set aside is chosen anew.

    Args:
        recipe: the search's.
        values: key -> value.

    Raises:
        ValueError: values that the recipe cannot have.
    """
    lower = dataclasses.asdict(recipe) | {"search": None, "search_trials": None}
    return type(recipe)(**laid_over(type(recipe), lower, values))
