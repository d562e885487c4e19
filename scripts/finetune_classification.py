r"""Fine-tune a classifier: rows with labels -> an encoder with a head -> a folder.

    python scripts/finetune_classification.py --model ENCODER --train reviews.csv
    python scripts/finetune_classification.py recipe.yaml --learning_rate 3e-5 --packing true
    python scripts/finetune_classification.py bert-glue --model ENCODER \
        --train nyu-mll/glue:sst2 --text_column sentence
    torchrun --nproc_per_node 2 scripts/finetune_classification.py recipe.yaml

One text or two in a row; one class, several at once, a number, or a tag for each word. The folder
has the model, metrics.json, predictions.csv, report.html and README.md in the end; rows of --test
without labels are predicted, and no number is of them.
"""

# ruff: noqa: E402 - mistakes are answered, and the allocator is set, before torch is imported
import sys

from hf_tfopt.allocator import tune_allocator
from hf_tfopt.recipe.classification_keys import ClassificationRecipe, resolved
from hf_tfopt.recipe.command_line import command_or_exit, read_command

IS_SCRIPT = __name__ == "__main__"
COMMAND = command_or_exit(sys.argv[1:], __doc__, ClassificationRecipe) if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from accelerate import PartialState
from transformers import set_seed

import hf_tfopt as tfo
from hf_tfopt.data.labelled_names import TOKENS
from hf_tfopt.recipe.carry_out import carry_out, carry_out_or_exit
from hf_tfopt.recipe.class_order import own_names
from hf_tfopt.recipe.classification import (
    TASKS,
    classification_objective,
    classification_scores,
)
from hf_tfopt.recipe.classification_model import (
    classifier_config,
    classifier_model,
    classifier_tokenizer,
)
from hf_tfopt.recipe.classifier_rows import (
    ClassifierRows,
    class_lines,
    classifier_rows,
    classifier_trainer,
    final_numbers,
    predict,
)
from hf_tfopt.recipe.execution import (
    begin,
    finish,
    save,
    settle,
    train,
)
from hf_tfopt.recipe.opening import opening_lines
from hf_tfopt.recipe.splits import read_splits, with_numbers
from hf_tfopt.run.tables import duration, number


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: ClassificationRecipe
    folder: Path
    rows: ClassifierRows
    trainer: Any
    checkpoint: Path | None
    told: list[str]


def prepare(recipe: ClassificationRecipe, is_resumed: bool) -> Prepared:
    """Rows, folder, tokenizer, model, Trainer; every mistake of the user's ends here."""
    process = PartialState(cpu=recipe.device == "cpu")
    datasets.disable_progress_bars()
    with process.main_process_first():  # the others find what was read on disk
        splits = read_splits(recipe, recipe.problem, recipe.label_separator)
        problem, told = splits.problem, splits.told
        recipe = resolved(recipe, problem, splits.classes)
        config = classifier_config(recipe, problem, splits.classes)
        names = None if splits.classes is None else own_names(config)
        texts = with_numbers(splits, names)
    folder = begin(recipe, is_resumed)
    with process.main_process_first():
        tokenizer = classifier_tokenizer("model", recipe.model, problem, told)
        set_seed(recipe.seed)
        model = classifier_model(recipe, config, tokenizer)
        rows = classifier_rows(texts, problem, names, tokenizer, recipe.max_length, told)
    if recipe.packing:
        tfo.unpadded_attention(model)
        if problem != TOKENS:
            tfo.packed_classification(model)
    objective = classification_objective(recipe, names, texts["train"])
    scores = classification_scores(recipe, names)
    num_rows = len(rows.tokens["train"])
    checkpoint = settle(recipe, folder, num_rows, is_resumed, is_drawn=splits.is_drawn)
    trainer = classifier_trainer(
        *(recipe, model, rows, tokenizer, scores), is_packed=recipe.packing, objective=objective
    )
    return Prepared(recipe, folder, rows, trainer, checkpoint, told)


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers."""
    recipe, folder, rows, trainer, checkpoint, told = prepared
    say = PartialState().print
    for line in opening_lines(recipe, trainer, class_lines(rows)):
        say(line)
    for words in told:
        say(f"Note       {words}")
    trained = train(trainer, checkpoint)
    save(trainer, folder)
    metrics = {**final_numbers(trainer, rows, recipe.metric_names()), **trained}
    shown = predict(trainer, rows, folder, recipe.label_separator)
    if PartialState().is_main_process:
        task = TASKS.get(rows.problem, "text-classification")
        finish(recipe, folder, trainer, metrics, task, rows.facts(), examples=shown)
    measures = ", ".join(
        f"{name} {number(metrics[name])}"
        for name in recipe.selectable_names() or ()
        if name in metrics
    )
    say(
        f"On {rows.examined}: {measures}; {duration(metrics['train_seconds'])} of training\n"
        f"Everything is in {folder}: model, predictions.csv, report.html ..."
    )
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    """`[RECIPE] [--key value ...] [--resume]` -> the numbers of metrics.json.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    return carry_out(read_command(arguments, ClassificationRecipe), prepare, run)


if COMMAND:
    carry_out_or_exit(COMMAND, prepare, run)
