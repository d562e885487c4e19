"""What every script does around its own part: before the data, around the Trainer, at the end."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from accelerate import PartialState
from transformers import ProgressCallback, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from hf_tfopt.attachment import attach
from hf_tfopt.hub import check_push, push_or_tell, write_card
from hf_tfopt.metrics.scores import Scores
from hf_tfopt.optimizers.for_trainer import optimizer
from hf_tfopt.recipe.host_arguments import (
    run_callbacks,
    run_optimizer,
    run_sampler,
    run_schedule,
    training_arguments,
)
from hf_tfopt.recipe.selection import check_select, check_unstopped, selected_metrics
from hf_tfopt.recipe.training_keys import TrainingKeys
from hf_tfopt.report import write_report
from hf_tfopt.run.checkpoints import checkpoint_step, checkpoint_to_resume
from hf_tfopt.run.energy import EnergyMeter, energy_numbers
from hf_tfopt.run.facts import environment_facts, hub_names, model_facts
from hf_tfopt.run.folder import (
    OF_THE_DRAW,
    RECIPE,
    Run,
    check_unchanged,
    claim,
    write_run,
    write_text,
)
from hf_tfopt.run.progress import ProgressBar
from hf_tfopt.trainer import TfoptTrainer

INTERVALS = 0.95  # the level of the final numbers' bootstrap intervals


def begin(recipe: TrainingKeys, is_resumed: bool) -> Path:
    """Check what needs no data, and claim the run's folder, which is returned.

    Raises:
        ValueError: an optimizer, schedule, callback, sampler or metric that cannot be; a folder
            that holds another run; a repository that cannot be pushed to.
    """
    if recipe.seeds is not None or recipe.search is not None:
        raise ValueError("seeds and search are several runs, which carry_out makes of a recipe")
    disable_progress_bar()  # of every file that is read or written; that of the training stays
    datasets.disable_progress_bars()
    process = PartialState(cpu=recipe.device == "cpu")
    optimizer(**run_optimizer(recipe))
    run_schedule(recipe)
    run_callbacks(recipe)
    run_sampler(recipe)
    check_select(recipe, recipe.selectable_names())
    folder = Path(str(recipe.output_dir))
    if process.is_main_process:
        if recipe.push_to is not None:
            check_push(recipe.push_to, recipe.private is not False)
        claim(folder, is_resumed)
        check_unchanged(folder, dataclasses.asdict(recipe), recipe.may_change_on_resume())
    return folder


def settle(
    recipe: TrainingKeys,
    folder: Path,
    num_rows: int,
    is_resumed: bool,
    whose: str = "",
    is_drawn: bool = True,
) -> Path | None:
    """The checkpoint to go on from, if any; and recipe.yaml, where the run begins.

    Args:
        recipe: the run's.
        folder: the run's.
        num_rows: rows to train on.
        is_resumed: whether to go on from a checkpoint.
        whose: stands before what is said, where a script trains several models.
        is_drawn: whether held-out rows were drawn; the keys that say how are null where not.

    Raises:
        ValueError: a schedule that does not fit into the steps, or a run that is finished.
    """
    process = PartialState()
    total = recipe.total_steps(num_rows, process.num_processes)
    device: Any = process.device
    training_arguments(recipe, total, device)
    before = f"{whose:<10} " if whose else ""
    checkpoint = None
    if is_resumed:
        check_unstopped(recipe, folder)
        checkpoint = checkpoint_to_resume(
            folder, total, lambda words: process.print(before + words)
        )
    if process.is_main_process:
        write_text(folder / RECIPE, recipe.to_yaml(() if is_drawn else OF_THE_DRAW))
    return checkpoint


def trainer_of(
    recipe: TrainingKeys,
    model: Any,
    rows: Mapping[str, Any],
    *,
    trainer_class: type[Any] = TfoptTrainer,
    scores: Scores | Callable[..., dict[str, float]] | None = None,
    arguments_class: type[TrainingArguments] = TrainingArguments,
    arguments: Mapping[str, Any] | None = None,
    is_padded: bool = False,
    **parts: Any,
) -> Any:
    """The host's Trainer for a recipe, our parts in its slots.

    Args:
        recipe: the run's.
        model: what is trained.
        rows: those of "train" and of "eval".
        trainer_class: `TfoptTrainer` or `TfoptSeq2SeqTrainer`.
        scores: what an evaluation tells beside the loss.
        arguments_class: of the host's arguments.
        arguments: such as no recipe has a key for.
        is_padded: whether batches are padded to their longest row: without a sampler of the
            recipe's, rows of like lengths then stand together.
        parts: of the Trainer: data_collator, processing_class, objective ...
    """
    process = PartialState()
    device: Any = process.device
    steps = recipe.total_steps(len(rows["train"]), process.num_processes)
    others: dict[str, Any] = {"prediction_loss_only": scores is None}
    if is_padded and recipe.sampler is None:
        others["train_sampling_strategy"] = "group_by_length"
    others |= arguments or {}
    if isinstance(scores, Scores):
        check_select(recipe, (*scores.keys, "perplexity", *(recipe.selectable_names() or ())))
        others["batch_eval_metrics"] = True  # logits are dropped batch by batch
        parts["preprocess_logits_for_metrics"] = scores.preprocess
    trainer = trainer_class(
        model,
        training_arguments(recipe, steps, device, arguments_class, **others),
        train_dataset=rows["train"],
        eval_dataset=rows["eval"],
        compute_metrics=scores,
        optimizer_cls_and_kwargs=optimizer(**run_optimizer(recipe)),
        schedule=run_schedule(recipe),
        sampler=run_sampler(recipe),
        **parts,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressBar())
    return attach(trainer, callbacks=run_callbacks(recipe))


def train(trainer: Any, checkpoint: Path | None) -> dict[str, float]:
    """Train to the end, from a checkpoint if one is given; the numbers that every run has."""
    begun = checkpoint_step(checkpoint) if checkpoint else 0
    devices = [torch.device("cuda", n) for n in range(trainer.args.n_gpu)]
    used = devices if len(devices) > 1 else [trainer.args.device]
    with EnergyMeter(used, is_first=PartialState().is_local_main_process) as meter:
        output = trainer.train(resume_from_checkpoint=str(checkpoint) if begun else None)
    return {
        "train_seconds": output.metrics["train_runtime"],
        **energy_numbers(meter),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "parameters": trainer.model.num_parameters(),
        **selected_metrics(trainer),
        **({"resumed_from_step": begun} if begun else {}),
    }


def save(trainer: Any, folder: Path) -> None:
    """Save the trained model, before anything that may fail; all processes wait until it is there.

    Not what the host leaves beside it: a pickle of its arguments, with this machine's paths.
    """
    trainer.save_model(str(folder))
    process = PartialState()
    if process.is_main_process:
        (folder / "training_args.bin").unlink(missing_ok=True)
    process.wait_for_everyone()


def finish(
    recipe: TrainingKeys,
    folder: Path,
    trainer: Any,
    metrics: Mapping[str, float],
    task: str,
    data: Mapping[str, Mapping[str, Any]],
    examples: Sequence[Mapping[str, Any]] = (),
    attention: Sequence[Mapping[str, Any]] = (),
    lacking: str = "",
    environment: Mapping[str, Any] | None = None,
) -> Run:
    """Leave metrics, card and report beside the saved model, and push; on the main process alone.

    Args:
        recipe: the run's.
        folder: the run's, with the saved model.
        trainer: that has trained it.
        metrics: final numbers.
        task: as the Hub calls it.
        data: facts of "train" and "eval".
        examples: what the model makes of some of the held-out data.
        attention: maps of chosen sentences.
        lacking: what of the metrics is not there, and why: such a run is not pushed.
        environment: versions and hardware of the training; None: it was here.
    """
    record = Run(
        name=folder.resolve().name,
        task=task,
        metrics=metrics,
        recipe=dataclasses.asdict(recipe),
        history=trainer.state.log_history,
        data=data,
        model=model_facts(trainer.model),
        examples=examples,
        attention=attention,
        environment=environment or environment_facts(trainer.args.device, trainer.args.world_size),
        hub_names=hub_names(dataclasses.asdict(recipe)),
        unfinished=lacking,
    )
    write_run(folder, record)
    write_report([folder])
    write_card(folder)  # with the report's curves
    if recipe.push_to is not None and not lacking:  # last: whatever comes of it, the run is whole
        push_or_tell(folder, recipe.push_to, recipe.private is not False)
    return record
