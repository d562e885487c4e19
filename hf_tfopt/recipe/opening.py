"""What every run says of itself before it trains, a line each."""

from collections.abc import Sequence
from typing import Any

from hf_tfopt.recipe.model_keys import ModelKeys
from hf_tfopt.recipe.model_parts import new_model_lines
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.run.facts import model_facts
from hf_tfopt.run.tables import model_line


def opening_lines(
    recipe: TrainingKeys, trainer: Any, counted: Sequence[str], is_begun: bool = False
) -> list[str]:
    """Recipe and steps, the data, the model and whether it is untrained, and the precision.

    Args:
        recipe: the run's.
        trainer: that is about to train.
        counted: the lines of the data.
        is_begun: whether the run goes on from a checkpoint, with what that has learnt.
    """
    return [
        f"Recipe     {recipe.preset or 'of its own'}, {trainer.args.max_steps} steps",
        *counted,
        model_line(model_facts(trainer.model)),
        *(new_model_lines(recipe) if isinstance(recipe, ModelKeys) and not is_begun else ()),
        f"Precision  {'bf16' if trainer.args.bf16 else 'fp32'}",
    ]
