"""Distil a text classifier: texts -> teacher -> a student of some of its layers -> a folder.

    python scripts/distill.py --teacher FOLDER --train reviews.tsv --columns text,label
    python scripts/distill.py recipe.yaml --alpha 0.9 --layers 0,2,4
    python scripts/distill.py --teacher ENCODER --teacher_epochs 4 --train train.csv --eval dev.csv
    torchrun --nproc_per_node 2 scripts/distill.py recipe.yaml

An encoder that is no classifier yet is trained as the teacher first, with --teacher_epochs. With
--alpha 0 the student learns from the labels alone.
"""

# ruff: noqa: E402 - mistakes are answered, and the allocator is set, before torch is imported
import sys

from hf_tfopt.allocator import tune_allocator
from hf_tfopt.recipe.command_line import command_or_exit, read_command
from hf_tfopt.recipe.distillation_keys import DistillationRecipe

IS_SCRIPT = __name__ == "__main__"
COMMAND = command_or_exit(sys.argv[1:], __doc__, DistillationRecipe) if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import set_seed

import hf_tfopt as tfo
from hf_tfopt.data.labelled_names import SINGLE
from hf_tfopt.data.labelled_rows import TEXT
from hf_tfopt.recipe.carry_out import carry_out, carry_out_or_exit
from hf_tfopt.recipe.class_order import own_names
from hf_tfopt.recipe.classification_model import classifier_tokenizer
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
from hf_tfopt.recipe.splits import read_splits, with_numbers
from hf_tfopt.recipe.teacher_and_student import (
    chosen_layers,
    classifier_teacher,
    student_objective,
    teacher_of_classes,
    times_as_fast,
)
from hf_tfopt.run.attention_maps import attention_maps
from hf_tfopt.run.checkpoints import checkpoint_to_resume
from hf_tfopt.run.facts import model_facts
from hf_tfopt.run.tables import duration, model_line


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: DistillationRecipe
    folder: Path
    rows: ClassifierRows
    tokenizer: Any
    teacher: Any
    is_resumed: bool
    checkpoint: Path | None
    told: list[str]


def prepare(recipe: DistillationRecipe, is_resumed: bool) -> Prepared:
    """Folder, rows, tokenizer, teacher; every mistake of the user's ends here."""
    folder = begin(recipe, is_resumed)
    process = PartialState()
    with process.main_process_first():
        splits = read_splits(recipe, SINGLE)
        config = teacher_of_classes(recipe, splits.classes or [])
        names, told = own_names(config), splits.told
        texts = with_numbers(splits, names)
        tokenizer = classifier_tokenizer("teacher", recipe.teacher, SINGLE, told)
        rows = classifier_rows(texts, SINGLE, names, tokenizer, recipe.max_length, told)
    num_rows = len(rows.tokens["train"])
    set_seed(recipe.seed)
    teacher = classifier_teacher(recipe, config, tokenizer)
    chosen_layers(recipe, teacher)  # what they cannot be, before hours pass
    recipe.check_teachers_steps(num_rows, process.num_processes)
    checkpoint = settle(recipe, folder, num_rows, is_resumed, "Student", splits.is_drawn)
    return Prepared(recipe, folder, rows, tokenizer, teacher, is_resumed, checkpoint, told)


def trainer_in(
    folder: Path, prepared: Prepared, recipe: DistillationRecipe, model: Any, objective: Any = None
) -> Any:
    """A Trainer of the run's rows that leaves its checkpoints in a folder."""
    return classifier_trainer(
        *(recipe, model, prepared.rows, prepared.tokenizer, tfo.Scores("accuracy")),
        objective=objective or tfo.Classification(),
        arguments={"output_dir": str(folder)},
    )


def trained_teacher(prepared: Prepared) -> Any:
    """The teacher; where the recipe says so, trained on the rows first and kept in its folder."""
    recipe, folder = prepared.recipe, prepared.folder / "teacher"
    if recipe.teacher_epochs is None:
        return prepared.teacher
    process, unfinished = PartialState(), prepared.folder / "teacher.unfinished"
    if folder.exists():  # the run was stopped after it
        if process.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        return type(prepared.teacher).from_pretrained(folder)
    process.print(f"Teacher    trained for {recipe.teacher_epochs:g} epochs")
    trainer = trainer_in(unfinished, prepared, recipe.of_teacher(), prepared.teacher)
    total, checkpoint = trainer.args.max_steps, None
    if prepared.is_resumed:
        checkpoint = checkpoint_to_resume(
            unfinished, total, lambda words: process.print(f"Teacher    {words}")
        )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    save(trainer, unfinished / "model")
    if process.is_main_process:
        (unfinished / "model").rename(folder)  # whole, before its checkpoints go
        shutil.rmtree(unfinished)
    return prepared.teacher


def measured(prepared: Prepared) -> tuple[Any, dict[str, float]]:
    """The student's Trainer, and its numbers beside the teacher's; the student is saved."""
    recipe, folder, rows = prepared.recipe, prepared.folder, prepared.rows
    teacher = trained_teacher(prepared)
    set_seed(recipe.seed)
    student = tfo.student_from(teacher, chosen_layers(recipe, teacher))
    trainer = trainer_in(folder, prepared, recipe, student, student_objective(recipe, teacher))
    trained = train(trainer, prepared.checkpoint)
    save(trainer, folder)
    numbers = final_numbers(trainer, rows, ["accuracy"])
    judged = trainer_in(folder, prepared, recipe, teacher)
    of_teacher = judged.evaluate(tfo.ArrowRows(rows.tokens[rows.examined]))["eval_accuracy"]
    speed = times_as_fast(student, teacher, rows.batches(trainer.data_collator))
    return trainer, {
        **numbers,
        "teacher_accuracy": of_teacher,
        "kept_accuracy": numbers["accuracy"] / of_teacher if of_teacher else float("nan"),
        "times_as_fast": speed,
        **trained,
        "teacher_parameters": teacher.num_parameters(),
    }


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers."""
    recipe, folder, rows = prepared.recipe, prepared.folder, prepared.rows
    say = PartialState().print
    for line in class_lines(rows):
        say(line)
    say(model_line(model_facts(prepared.teacher), "Teacher"))
    say(f"Student    layers {chosen_layers(recipe, prepared.teacher)} of it")
    for words in prepared.told:
        say(f"Note       {words}")
    trainer, metrics = measured(prepared)
    shown = predict(trainer, rows, folder)
    if PartialState().is_main_process:
        attention: list[Any] = []
        with suppress(ValueError):  # a model whose attention is not seen has no maps
            texts = sorted(rows.texts["eval"].column(TEXT)[:100], key=len)
            attention = attention_maps(trainer.model, prepared.tokenizer, texts[-2:])
        finish(
            *(recipe, folder, trainer, metrics, "text-classification", rows.facts()),
            examples=shown,
            attention=attention,
        )
    say(
        f"Accuracy {metrics['accuracy']:.4f}, {metrics['kept_accuracy']:.1%} of the teacher's "
        f"{metrics['teacher_accuracy']:.4f}; {metrics['times_as_fast']:.2f} times as fast; "
        f"{duration(metrics['train_seconds'])} of training\n"
        f"Everything is in {folder}: the model, predictions.csv, report.html, README.md ..."
    )
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    """`[RECIPE] [--key value ...] [--resume]` -> the numbers of metrics.json.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    return carry_out(read_command(arguments, DistillationRecipe), prepare, run)


if COMMAND:
    carry_out_or_exit(COMMAND, prepare, run)
