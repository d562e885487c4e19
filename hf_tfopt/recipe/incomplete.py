"""A run that is trained and told of, but that lacks some of its final numbers: measured again."""

from pathlib import Path

from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.run.folder import Run, read_run

# The keys that say how long a run is.
LENGTHS = ("max_steps", "num_train_epochs")


class IncompleteRunError(RuntimeError):
    """Raised behind the end of a run that lacks some of its numbers; what there is, is written."""


def incomplete_run(recipe: TrainingKeys, folder: str | Path) -> Run | None:
    """The run in a folder that lacks some of its numbers and, by this recipe, no step of training.

    None where there is none, or where the recipe's run is longer.
    """
    try:
        run = read_run(folder)
    except ValueError:
        return None
    is_as_long = all(run.recipe.get(name) == getattr(recipe, name) for name in LENGTHS)
    return run if run.unfinished and is_as_long else None
