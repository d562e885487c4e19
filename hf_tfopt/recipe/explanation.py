"""What a recipe will train, and how fast, before it trains: its parameter groups."""

from typing import Any

import torch

from hf_tfopt.optimizers.for_trainer import build_optimizer
from hf_tfopt.recipe.host_arguments import run_optimizer
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.recipe.masked_lm import model_config, model_factory

HEADINGS = ("group", "tensors", "parameters", "share", "lr", "decay", "for example")


def explain(recipe: Recipe) -> list[str]:
    """The lines of a table of the recipe's parameter groups; no weight is made or read.

    Args:
        recipe: of a new model or of a trained one, of which only the configuration is opened.

    Raises:
        ValueError: a model that cannot be, or that the optimizer cannot train.
    """
    config = model_config(recipe)
    if recipe.vocab_size:
        config.vocab_size = recipe.vocab_size
    with torch.device("meta"):
        model = model_factory(recipe).from_config(config)
    groups = build_optimizer(model, **run_optimizer(recipe)).param_groups
    total = sum(tensor.numel() for group in groups for tensor in group["params"])
    rows = [HEADINGS, *(_row(group, total) for group in groups)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS) - 1)]
    title = f"{type(model).__name__}: {total:,} parameters, optimizer {recipe.optimizer}"
    return [title, *(_line(row, widths) for row in rows)]


def _row(group: dict[str, Any], total: int) -> tuple[str, ...]:
    num = sum(tensor.numel() for tensor in group["params"])
    names = group["param_names"]
    example = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"
    return (
        group["name"],
        str(len(names)),
        f"{num:,}",
        f"{num / total:.1%}",
        f"{group['lr']:.3g}",
        f"{group['weight_decay']:g}",
        example,
    )


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    numbers = (cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:], strict=True))
    return "  ".join([row[0].ljust(widths[0]), *numbers, row[-1]])
