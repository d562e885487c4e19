"""Pre-train a masked language model: text -> tokenizer -> rows -> model -> Trainer -> a folder.

    python scripts/pretrain.py                    # the preset bert-mini, three minutes on two cores
    python scripts/pretrain.py recipe.yaml --learning_rate 1e-3 --max_steps 200
    python scripts/pretrain.py runs/bert-mini/recipe.yaml --resume --max_steps 1000
    python scripts/pretrain.py bert-tiny --objective mlm+nsp       # pairs of texts too, as BERT had
    torchrun --nproc_per_node 2 scripts/pretrain.py bert-mini --corpus my_texts/

A recipe is a YAML file or a preset's name; `hf-tfopt list presets keys` tells what there is.
"""

# ruff: noqa: E402 - mistakes are answered, and the allocator is set, before torch is imported
import sys

from hf_tfopt.allocator import tune_allocator
from hf_tfopt.recipe.command_line import recipe_from_command_line, recipe_or_exit

IS_SCRIPT = __name__ == "__main__"
COMMAND = recipe_or_exit(sys.argv[1:], __doc__) if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import datasets
from accelerate import PartialState
from transformers import AutoModelForMaskedLM, ProgressCallback, set_seed
from transformers.utils.logging import disable_progress_bar

import hf_tfopt as tfo
from hf_tfopt.hub import write_card
from hf_tfopt.recipe.host_arguments import (
    run_callbacks,
    run_optimizer,
    run_sampler,
    run_schedule,
    training_arguments,
)
from hf_tfopt.recipe.keys import Recipe
from hf_tfopt.recipe.masked_lm import (
    masked_lm_corpus,
    masked_lm_model,
    masked_lm_rows,
    masked_lm_tokenizer,
    model_config,
    run_objective,
)
from hf_tfopt.recipe.training_keys import MAY_CHANGE_ON_RESUME
from hf_tfopt.report import write_report
from hf_tfopt.run.attention_maps import attention_maps
from hf_tfopt.run.checkpoints import checkpoint_step, checkpoint_to_resume
from hf_tfopt.run.completions import blanks, complete
from hf_tfopt.run.facts import data_facts, environment_facts, model_facts
from hf_tfopt.run.folder import Run, check_unchanged, claim, write_run, write_text
from hf_tfopt.run.progress import ProgressBar
from hf_tfopt.run.tables import TERMS, duration, example_lines, number, summary_lines


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: Recipe
    folder: Path
    corpus: Any
    rows: Any
    data: dict[str, Any]
    trainer: Any
    checkpoint: Path | None


def prepare(recipe: Recipe, is_resumed: bool) -> Prepared:
    """Folder, corpus, tokenizer, rows, model, Trainer; every mistake of the user's ends here."""
    disable_progress_bar()  # of every file that is read or written; that of the training stays
    datasets.disable_progress_bars()
    process = PartialState(cpu=recipe.device == "cpu")
    folder = Path(recipe.output_dir)
    model_config(recipe)  # before the corpus is read: these tell most of what can be wrong
    tfo.optimizer(**run_optimizer(recipe))
    run_schedule(recipe)
    run_callbacks(recipe)
    run_sampler(recipe)
    if process.is_main_process:
        claim(folder, is_resumed)
        check_unchanged(folder, dataclasses.asdict(recipe), MAY_CHANGE_ON_RESUME)
    with process.main_process_first():  # the others find tokenizer and rows on disk
        corpus = masked_lm_corpus(recipe)
        tokenizer = masked_lm_tokenizer(recipe, corpus["train"]["text"], folder)
        set_seed(recipe.seed)
        model = masked_lm_model(recipe, tokenizer)
        rows = {name: masked_lm_rows(recipe, part, tokenizer) for name, part in corpus.items()}
        total_steps = recipe.total_steps(len(rows["train"]), process.num_processes)
        arguments = training_arguments(recipe, total_steps, process.device)
        checkpoint = (
            checkpoint_to_resume(folder, total_steps, process.print) if is_resumed else None
        )
        if recipe.initialization == "corpus" and checkpoint is None:
            tfo.initialize_from_corpus(model, tfo.ArrowRows(rows["train"]), tokenizer)
        if process.is_main_process:
            tokenizer.save_pretrained(folder)
            write_text(folder / "recipe.yaml", recipe.to_yaml())
    data = {name: data_facts(corpus[name], rows[name], recipe.max_length) for name in rows}
    trainer = _trainer(recipe, arguments, model, tokenizer, rows)
    return Prepared(recipe, folder, corpus, rows, data, trainer, checkpoint)


def _trainer(recipe: Recipe, arguments: Any, model: Any, tokenizer: Any, rows: Any) -> Any:
    """The host's Trainer, our parts in its slots."""
    trainer = tfo.TfoptTrainer(
        model,
        arguments,
        data_collator=tfo.MaskedLMCollator(
            tokenizer,
            unit=recipe.masking_unit,
            probability=recipe.masking_probability,
            eval_probability=recipe.eval_masking_probability,
            seed=recipe.seed,
            model=model,
        ),
        train_dataset=tfo.ArrowRows(rows["train"]),
        eval_dataset=tfo.ArrowRows(rows["eval"]),
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=tfo.optimizer(**run_optimizer(recipe)),
        objective=run_objective(recipe),
        schedule=run_schedule(recipe),
        sampler=run_sampler(recipe),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(ProgressBar())
    return tfo.attach(trainer, callbacks=run_callbacks(recipe))


def train(prepared: Prepared) -> dict[str, float]:
    """Train, evaluate, and save the model; returns the final numbers."""
    trainer, begun = (
        prepared.trainer,
        checkpoint_step(prepared.checkpoint) if prepared.checkpoint else 0,
    )
    output = trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if begun else None)
    evaluated = trainer.evaluate()
    trainer.save_model(str(prepared.folder))
    arguments, data = trainer.args, prepared.data["train"]
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    tokens = (trainer.state.global_step - begun) * rows * data["tokens"] / data["rows"]
    seconds = output.metrics["train_runtime"]
    plan, callbacks = trainer.batch_plan, prepared.recipe.callbacks or {}
    is_whole = (plan is None or plan.has_whole_batches) and "length_curriculum" not in callbacks
    return {
        "eval_loss": evaluated["eval_loss"],
        "perplexity": evaluated["eval_perplexity"],
        **{name: evaluated[name] for name in TERMS if name in evaluated},
        "train_seconds": seconds,
        # else what a step has of tokens is another number in each; the log has them counted
        **({"tokens_per_second": tokens / seconds} if is_whole else {}),
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "parameters": trainer.model.num_parameters(),
        **({"resumed_from_step": begun} if begun else {}),
    }


def tell(prepared: Prepared, metrics: dict[str, float]) -> Run:
    """Leave metrics, card and report, and what the saved model makes of held-out sentences."""
    trainer = prepared.trainer
    (prepared.folder / "training_args.bin").unlink(
        missing_ok=True
    )  # a pickle, with this machine's paths
    model = AutoModelForMaskedLM.from_pretrained(prepared.folder)  # as anyone would open it
    sentences = blanks(
        prepared.corpus["eval"]["text"], trainer.processing_class, seed=prepared.recipe.seed
    )
    examples = complete(model, trainer.processing_class, sentences)
    shown = [f"{found['before']}{found['word']}{found['after']}" for found in examples[:2]]
    attention: list[Any] = []
    with suppress(ValueError):  # a model whose attention is not seen has no maps
        attention = attention_maps(model, trainer.processing_class, shown)
    record = Run(
        name=prepared.folder.resolve().name,
        metrics=metrics,
        recipe=dataclasses.asdict(prepared.recipe),
        history=trainer.state.log_history,
        data=prepared.data,
        model=model_facts(trainer.model),
        examples=examples,
        attention=attention,
        environment=environment_facts(trainer.args.device, trainer.args.world_size),
    )
    write_run(prepared.folder, record)
    write_card(prepared.folder)
    write_report([prepared.folder])
    return record


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers."""
    recipe, trainer, data = prepared.recipe, prepared.trainer, prepared.data
    say = PartialState().print
    say(f"Recipe     {recipe.preset or 'of its own'}, {trainer.args.max_steps} steps")
    say(*summary_lines(data, model_facts(trainer.model)), sep="\n")
    say(f"Precision  {'bf16' if trainer.args.bf16 else 'fp32'}")
    if IS_TUNED:
        say("Memory     freed memory is kept for the next step: faster on a CPU, and more is held")
    metrics = train(prepared)
    if PartialState().is_main_process:
        record = tell(prepared, metrics)
        say(*example_lines(record.examples[:3]), sep="\n")
        say(
            f"Perplexity {number(metrics['perplexity'])} on the held-out documents after "
            f"{metrics['steps']} steps, {duration(metrics['train_seconds'])}\n"
            f"Everything is in {prepared.folder}: the model, report.html, README.md ..."
        )
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    """`[RECIPE] [--key value ...] [--resume]` -> the numbers of metrics.json.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    return run(prepare(*recipe_from_command_line(arguments)))


if COMMAND:
    try:
        prepared = prepare(*COMMAND)
    except (ValueError, OSError, ImportError) as error:  # the user's: one line tells it better
        sys.exit(f"error: {error}")
    run(prepared)
