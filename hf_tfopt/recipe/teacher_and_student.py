"""A classifier's teacher and student, as a distillation's recipe says."""

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from hf_tfopt.data.labelled_names import SINGLE
from hf_tfopt.data.model_inputs import ModelFacts
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.recipe.class_order import is_classifier
from hf_tfopt.recipe.classification_model import (
    names_of_head,
    opened_classifier,
    with_classes,
)
from hf_tfopt.recipe.distillation_keys import DistillationRecipe
from hf_tfopt.recipe.model_parts import check_lengths, opened
from hf_tfopt.surgery.layer_stacks import layer_stacks


def teacher_config(recipe: DistillationRecipe) -> Any:
    """The config of the recipe's teacher: a classifier, or an encoder that is trained first.

    Raises:
        ValueError: a folder without a model; an encoder that nobody trains (`teacher_epochs`).
    """
    config = opened(AutoConfig, "teacher", recipe.teacher)
    if not is_classifier(config) and recipe.teacher_epochs is None:
        raise ValueError(
            f"teacher: {recipe.teacher!r} is no classifier; give one, or train it on the same rows "
            "first: --teacher_epochs 3"
        )
    return config


def teacher_of_classes(recipe: DistillationRecipe, classes: list[str]) -> Any:
    """That config with the rows' classes, in the order of the teacher's own if it has some.

    Args:
        recipe: where the teacher is.
        classes: of the rows.

    Raises:
        ValueError: as `teacher_config`; a teacher of other classes, or of another task.
    """
    config = teacher_config(recipe)
    names = names_of_head(f"teacher: {recipe.teacher!r}", config, SINGLE, classes)
    return with_classes(config, SINGLE, names)


def classifier_teacher(recipe: DistillationRecipe, config: Any, tokenizer: Any) -> Any:
    """The recipe's teacher: a classifier, or an encoder with a new head for the rows' classes.

    Args:
        recipe: where the teacher is.
        config: from `teacher_of_classes`.
        tokenizer: its own.

    Raises:
        ValueError: it cannot classify, or has too few positions for `max_length`.
    """
    teacher = opened_classifier(
        AutoModelForSequenceClassification, "teacher", recipe.teacher, config, tokenizer
    )
    check_lengths(recipe.max_length, ModelFacts.of(teacher))
    return teacher


def chosen_layers(recipe: DistillationRecipe, teacher: Any) -> list[int]:
    """The teacher's layers that the student is made of."""
    stack = next(iter(layer_stacks(teacher).values()))
    chosen = recipe.layer_numbers() or list(range(0, stack.length, 2))
    if chosen != sorted(set(chosen)) or chosen[-1] >= stack.length:
        raise ValueError(
            f"layers: got {recipe.layers}, must be rising numbers from 0 to {stack.length - 1}: "
            f"the teacher has {stack.length} layers"
        )
    return chosen


def student_objective(recipe: DistillationRecipe, teacher: nn.Module) -> Objective:
    """What the student learns from: teacher and labels, or labels alone."""
    if recipe.alpha == 0:
        return Classification()
    assert recipe.temperature is not None and recipe.divergence is not None
    return Distillation(
        teacher, temperature=recipe.temperature, alpha=recipe.alpha, divergence=recipe.divergence
    )


@torch.no_grad()
def times_as_fast(
    student: nn.Module, teacher: nn.Module, batches: Sequence[Mapping[str, Tensor]], rounds: int = 7
) -> float:
    """How many times as fast as the teacher the student answers: the median over turns.

    Args:
        student: one of the two models.
        teacher: the other, on the same device.
        batches: what both read in every turn; the first turn is not counted.
        rounds: turns that count.
    """
    device = next(student.parameters()).device
    batches = [{name: part.to(device) for name, part in batch.items()} for batch in batches]

    def seconds(model: nn.Module) -> float:
        model.eval()
        start = time.perf_counter()
        for batch in batches:
            model(**batch)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - start

    turns = [seconds(teacher) / seconds(student) for _ in range(rounds + 1)]
    return median(turns[1:])
