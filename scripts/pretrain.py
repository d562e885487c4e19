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
from hf_tfopt.recipe.command_line import command_or_exit, read_command
from hf_tfopt.recipe.keys import Recipe

IS_SCRIPT = __name__ == "__main__"
COMMAND = command_or_exit(sys.argv[1:], __doc__, Recipe, "bert-mini") if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import AutoModelForMaskedLM, set_seed

import hf_tfopt as tfo
from hf_tfopt.recipe.carry_out import carry_out, carry_out_or_exit
from hf_tfopt.recipe.execution import (
    begin,
    finish,
    save,
    settle,
    train,
    trainer_of,
)
from hf_tfopt.recipe.masked_lm import (
    masked_lm_corpus,
    masked_lm_model,
    masked_lm_rows,
    masked_lm_tokenizer,
    model_config,
)
from hf_tfopt.recipe.masked_objective import run_objective
from hf_tfopt.recipe.opening import opening_lines
from hf_tfopt.run.attention_maps import attention_maps
from hf_tfopt.run.completions import blanks, complete
from hf_tfopt.run.facts import data_facts
from hf_tfopt.run.folder import Run
from hf_tfopt.run.tables import TERMS, corpus_lines, duration, example_lines, number


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: Recipe
    folder: Path
    corpus: Any
    data: dict[str, Any]
    trainer: Any
    checkpoint: Path | None


def prepare(recipe: Recipe, is_resumed: bool) -> Prepared:
    """Folder, corpus, tokenizer, rows, model, Trainer; every mistake of the user's ends here."""
    model_config(recipe)  # before the corpus is read: it tells most of what can be wrong
    folder = begin(recipe, is_resumed)
    process = PartialState()
    with process.main_process_first():  # the others find tokenizer and rows on disk
        corpus = masked_lm_corpus(recipe)
        tokenizer = masked_lm_tokenizer(recipe, corpus["train"]["text"], folder)
        set_seed(recipe.seed)
        model = masked_lm_model(recipe, tokenizer)
        objective = run_objective(recipe, model, tokenizer)
        rows = {name: masked_lm_rows(recipe, part, tokenizer) for name, part in corpus.items()}
        num_rows = len(rows["train"])
        checkpoint = settle(recipe, folder, num_rows, is_resumed, is_drawn=corpus.is_drawn)
        if recipe.initialization == "corpus" and checkpoint is None:
            tfo.initialize_from_corpus(model, tfo.ArrowRows(rows["train"]), tokenizer)
        if process.is_main_process:
            tokenizer.save_pretrained(folder)
    width = recipe.max_length
    data = {name: data_facts(corpus[name], rows[name], width=width) for name in rows}
    trainer = trainer_of(
        recipe,
        model,
        {name: tfo.ArrowRows(part) for name, part in rows.items()},
        data_collator=tfo.MaskedLMCollator(
            tokenizer,
            unit=recipe.masking_unit,
            probability=recipe.masking_probability,
            eval_probability=recipe.eval_masking_probability,
            seed=recipe.seed,
            model=model,
        ),
        processing_class=tokenizer,
        objective=objective,
    )
    return Prepared(recipe, folder, corpus, data, trainer, checkpoint)


def measured(prepared: Prepared) -> dict[str, float]:
    """Train, evaluate, and save the model; returns the final numbers."""
    trainer = prepared.trainer
    trained = train(trainer, prepared.checkpoint)
    save(trainer, prepared.folder)
    evaluated = trainer.evaluate()
    return {
        "eval_loss": evaluated["eval_loss"],
        "perplexity": evaluated["eval_perplexity"],
        **{name: evaluated[name] for name in TERMS if name in evaluated},
        **trained,
        **speed(prepared, trained),
    }


def speed(prepared: Prepared, trained: dict[str, float]) -> dict[str, float]:
    """Tokens a second, where every step has as many; else the log has them counted."""
    trainer, callbacks = prepared.trainer, prepared.recipe.callbacks or {}
    plan = trainer.batch_plan
    if (plan and not plan.has_whole_batches) or "length_curriculum" in callbacks:
        return {}
    arguments, data = trainer.args, prepared.data["train"]
    rows = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    steps = trained["steps"] - trained.get("resumed_from_step", 0)
    tokens = steps * rows * data["tokens"] / data["rows"]
    return {"tokens_per_second": tokens / trained["train_seconds"]}


def tell(prepared: Prepared, metrics: dict[str, float]) -> Run:
    """Leave metrics, card and report, and what the saved model makes of held-out sentences."""
    recipe, folder, trainer = prepared.recipe, prepared.folder, prepared.trainer
    model = AutoModelForMaskedLM.from_pretrained(folder)  # as anyone would open it
    tokenizer = trainer.processing_class
    sentences = blanks(prepared.corpus["eval"]["text"], tokenizer, seed=recipe.seed)
    examples = complete(model, tokenizer, sentences)
    shown = [f"{found['before']}{found['word']}{found['after']}" for found in examples[:2]]
    attention: list[Any] = []
    with suppress(ValueError):  # a model whose attention is not seen has no maps
        attention = attention_maps(model, tokenizer, shown)
    return finish(
        *(recipe, folder, trainer, metrics, "fill-mask", prepared.data),
        examples=examples,
        attention=attention,
    )


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers."""
    say = PartialState().print
    counted = corpus_lines(prepared.data, prepared.corpus.is_drawn)
    is_begun = prepared.checkpoint is not None
    say(*opening_lines(prepared.recipe, prepared.trainer, counted, is_begun), sep="\n")
    if IS_TUNED:
        say("Memory     freed memory is kept for the next step: faster on a CPU, and more is held")
    metrics = measured(prepared)
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
    return carry_out(read_command(arguments, Recipe, "bert-mini"), prepare, run)


if COMMAND:
    carry_out_or_exit(COMMAND, prepare, run)
