"""The smallest script: a recipe without keys of its own, a tiny model, and numbers made up."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import TrainerCallback, set_seed

from hf_tfopt.hub import write_card
from hf_tfopt.recipe.carry_out import carry_out
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.execution import begin, settle, train, trainer_of
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.recipe.typed_values import key
from hf_tfopt.run.folder import Run, write_run
from tests.invariants.splits import Rows
from tests.models import tiny

# by step / eval_steps: the accuracy of each evaluation
ACCURACIES = (0.1, 0.5, 0.4, 0.5, 0.3, 0.9, 0.8, 0.7, 0.6, 0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SmallRecipe(TrainingKeys):
    """Of ten steps on the CPU, each evaluated."""

    script = "small.py"
    device: str = key("cpu", "where")
    precision: str = key("fp32", "how")
    batch_size: int = key(4, "rows")
    learning_rate: float | None = key(1e-3, "the rate")
    max_steps: int | None = key(10, "steps")
    eval_steps: int | None = key(1, "steps")
    logging_steps: int = key(1, "steps")
    monitors: str = key("none", "what is watched")
    warmup_steps: float = key(0.0, "steps")

    def selectable_names(self) -> tuple[str, ...]:
        return ("loss", "accuracy")


class Prepared(NamedTuple):
    recipe: SmallRecipe
    folder: Path
    trainer: Any
    checkpoint: Path | None


class Evaluates(TrainerCallback):
    """Makes the accuracy of the recipe's evaluations up."""

    trainer: Any = None

    def __call__(self, predicted: Any) -> dict[str, float]:
        step = self.trainer.state.global_step
        return {"accuracy": ACCURACIES[min(step, len(ACCURACIES)) - 1]}


def prepare(recipe: SmallRecipe, is_resumed: bool) -> Prepared:
    folder = begin(recipe, is_resumed)
    set_seed(recipe.seed)
    rows = {"train": Rows(16), "eval": Rows(4, seed=1)}
    checkpoint = settle(recipe, folder, 16, is_resumed)
    scores = Evaluates()
    trainer = trainer_of(recipe, tiny("bert"), rows, scores=scores)
    scores.trainer = trainer
    return Prepared(recipe, folder, trainer, checkpoint)


def run(prepared: Prepared) -> dict[str, float]:
    trainer, folder = prepared.trainer, prepared.folder
    trained = train(trainer, prepared.checkpoint)
    evaluated = trainer.evaluate()
    trainer.save_model(str(folder))
    metrics = {"eval_loss": evaluated["eval_loss"], **trained}
    if PartialState().is_main_process:  # as `finish` does, but for the report and its pictures
        recipe, history = dataclasses.asdict(prepared.recipe), trainer.state.log_history
        write_run(folder, Run(folder.name, metrics, recipe, history))
        write_card(folder)
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    return carry_out(read_command(arguments, SmallRecipe), prepare, run)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
