"""A fine-tuned classifier's loss and metrics, as its recipe says."""

from collections.abc import Mapping
from typing import Any

import torch

from hf_tfopt.data.labelled_names import SINGLE, TOKENS
from hf_tfopt.data.labelled_rows import LABEL, Labelled
from hf_tfopt.metrics import Scores
from hf_tfopt.objectives import OBJECTIVES
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.recipe.classification_keys import ClassificationRecipe
from hf_tfopt.registry import check_name

TASKS = {TOKENS: "token-classification"}  # all others: text-classification


def classification_objective(
    recipe: ClassificationRecipe, names: list[str] | None, train: Labelled
) -> Any:
    """The loss of the labels, and what the recipe puts around it.

    Args:
        recipe: resolved.
        names: of the classes.
        train: training rows with numbers as labels.

    Raises:
        ValueError: an unknown class or option.
    """
    problem = recipe.problem
    loss = Classification(
        label_smoothing=recipe.label_smoothing,
        class_weights=_weights(recipe, names or [], train),
        problem=SINGLE if problem == TOKENS else problem,
    )
    for name, options in (recipe.objective or {}).items():
        try:
            return OBJECTIVES.build(name, loss, **(options or {}))
        except TypeError as error:
            raise ValueError(f"objective: {name}: {error}") from error
    return loss


def _weights(recipe: ClassificationRecipe, names: list[str], train: Labelled) -> list[float] | None:
    """What a label of each class counts for."""
    given: Mapping[str, Any] | None = recipe.class_weights
    if not given:
        return None
    if set(given) == {"balanced"}:
        labels = train.column(LABEL)
        flat = labels if recipe.problem == SINGLE else [tag for tags in labels for tag in tags]
        if recipe.problem not in (SINGLE, TOKENS):
            raise ValueError(
                "class_weights: {balanced: true} is for one label of each text or word"
            )
        counts = torch.bincount(torch.tensor(flat), minlength=len(names))
        return [len(flat) / (len(names) * int(n)) if n else 0.0 for n in counts]
    by_name = {str(name): weight for name, weight in given.items()}
    for name, weight in by_name.items():
        check_name("class in class_weights", name, names)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise ValueError(f"class_weights: {name}: got {weight!r}, must be a number")
    return [float(by_name.get(name, 1.0)) for name in names]


def classification_scores(recipe: ClassificationRecipe, names: list[str] | None) -> Scores:
    """What an evaluation tells beside the loss.

    Args:
        recipe: resolved.
        names: of the classes.
    """
    asked = recipe.metric_names()
    options: dict[str, Any] = {}
    if {"f1", "precision", "recall"} & {*asked}:
        options["average"] = "macro"
        if recipe.positive is not None and names:
            options |= {"average": "binary", "positive": names.index(recipe.positive)}
    if "entities" in asked:
        options["label_names"] = names
    return Scores(*asked, **options)
