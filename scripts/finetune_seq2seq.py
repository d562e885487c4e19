"""Train an encoder-decoder: pairs of texts -> tokenizer -> rows -> model -> Trainer -> a folder.

    python scripts/finetune_seq2seq.py dates-tiny     # no download: a first run, half a minute
    python scripts/finetune_seq2seq.py --model Helsinki-NLP/opus-mt-en-de --train pairs.tsv
    python scripts/finetune_seq2seq.py t5-summarization --train pairs.tsv --eval_samples 100
    python scripts/finetune_seq2seq.py transformer-base        # WMT 2014, as Vaswani et al. 2017
    torchrun --nproc_per_node 2 scripts/finetune_seq2seq.py recipe.yaml --resume

Translation and summarisation with T5, BART, Marian, mBART ..., trained ones or new ones.
"""

# ruff: noqa: E402 - mistakes are answered, and the allocator is set, before torch is imported
import sys

from hf_tfopt.allocator import tune_allocator
from hf_tfopt.recipe.command_line import command_or_exit, read_command
from hf_tfopt.recipe.seq2seq_keys import Seq2SeqRecipe

IS_SCRIPT = __name__ == "__main__"
COMMAND = command_or_exit(sys.argv[1:], __doc__, Seq2SeqRecipe) if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq, set_seed
from transformers.trainer_utils import align_special_tokens

import hf_tfopt as tfo
from hf_tfopt.data.text_pairs import TARGET
from hf_tfopt.recipe.carry_out import carry_out, carry_out_or_exit
from hf_tfopt.recipe.execution import (
    INTERVALS,
    begin,
    finish,
    save,
    settle,
    train,
    trainer_of,
)
from hf_tfopt.recipe.host_arguments import checkpointing_arguments
from hf_tfopt.recipe.incomplete import IncompleteRunError, incomplete_run
from hf_tfopt.recipe.opening import opening_lines
from hf_tfopt.recipe.seeds import of_first_process
from hf_tfopt.recipe.seq2seq_generation import (
    GeneratingTrainer,
    Sample,
    check_generation,
    generated,
    generation_config,
    sample_lines,
    sampled,
    text_scores,
    written,
)
from hf_tfopt.recipe.seq2seq_model import seq2seq_config, seq2seq_model, seq2seq_tokenizer
from hf_tfopt.recipe.seq2seq_texts import (
    longer_sides,
    pair_lines,
    part_facts,
    seq2seq_pairs,
    seq2seq_rows,
)
from hf_tfopt.run.folder import Run, write_text
from hf_tfopt.run.score_names import with_doubt
from hf_tfopt.run.tables import duration, example_lines, number

NUM_EXAMPLES = 8


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: Seq2SeqRecipe
    folder: Path
    pairs: Any
    rows: Any
    sample: Sample
    trainer: Any
    checkpoint: Path | None
    before: Run | None


def prepare(recipe: Seq2SeqRecipe, is_resumed: bool) -> Prepared:
    """Folder, pairs, tokenizer, rows, model, Trainer; every mistake of the user's ends here."""
    config = seq2seq_config(recipe)  # before the pairs are read: it tells most of what can be wrong
    scores = text_scores(recipe)
    folder = begin(recipe, is_resumed)
    process = PartialState()
    before = of_first_process(incomplete_run(recipe, folder)) if is_resumed else None
    with process.main_process_first():  # the others find tokenizer and rows on disk
        pairs, is_drawn = seq2seq_pairs(recipe, process.print)
        texts = chain(pairs["train"]["source"], pairs["train"]["target"])
        tokenizer = seq2seq_tokenizer(recipe, texts, folder)
        set_seed(recipe.seed)
        model = seq2seq_model(recipe, config, tokenizer)
        model.generation_config = generation_config(recipe, model, tokenizer)
        rows = {part: seq2seq_rows(recipe, pairs[part], tokenizer) for part in pairs}
        check_generation(model, tokenizer, rows["test"][0]["input_ids"])
        goes_on = is_resumed and before is None
        checkpoint = settle(recipe, folder, len(rows["train"]), goes_on, is_drawn=is_drawn)
        if process.is_main_process:
            tokenizer.save_pretrained(folder)
    own = {"per_device_eval_batch_size": recipe.eval_batch_size or recipe.batch_size}
    has_texts = recipe.eval_samples is not None
    trainer = trainer_of(
        recipe,
        model,
        rows,
        trainer_class=GeneratingTrainer,
        arguments=own | checkpointing_arguments(recipe),
        is_padded=True,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model),
        processing_class=tokenizer,
        objective=tfo.LanguageModeling(label_smoothing=recipe.label_smoothing),
        sample=sampled(pairs["eval"], rows["eval"], recipe.eval_samples) if has_texts else None,
        text_scores=scores,
    )
    if isinstance(trainer.batch_plan, tfo.TokenBudget) and trainer.batch_plan.lengths is None:
        trainer.batch_plan.lengths = longer_sides(rows["train"])  # not the sources' alone
    sample = sampled(pairs["test"], rows["test"], recipe.test_samples)
    return Prepared(recipe, folder, pairs, rows, sample, trainer, checkpoint, before)


def trained(prepared: Prepared) -> dict[str, float]:
    """Train, save the model, and evaluate it, unless a run before has; the numbers of that."""
    trainer, before = prepared.trainer, prepared.before
    if before is not None:
        trainer.state.log_history = [*before.history]
        align_special_tokens(trainer.model, trainer.processing_class)  # as training does first
        if PartialState().is_main_process:  # how it generates may be otherwise now
            trainer.model.generation_config.save_pretrained(prepared.folder)
        PartialState().wait_for_everyone()
        return dict(before.metrics)
    numbers = train(trainer, prepared.checkpoint)
    save(trainer, prepared.folder)
    trainer.sample = None  # what is generated from here on may fail, and the loss be told
    evaluated = trainer.evaluate()
    return {
        "eval_loss": evaluated["eval_loss"],
        "perplexity": evaluated["eval_perplexity"],
        **numbers,
    }


def written_by(prepared: Prepared) -> list[str]:
    """What the saved model, opened as anyone would, writes of the sample's sources."""
    trainer = prepared.trainer
    return generated(
        lambda: AutoModelForSeq2SeqLM.from_pretrained(prepared.folder).to(trainer.args.device),
        trainer.processing_class,
        prepared.sample.rows,
        trainer.args.per_device_eval_batch_size,
        trainer.compute_loss_context_manager,
    )


def measured(prepared: Prepared) -> tuple[dict[str, float], list[str], Exception | None]:
    """The final numbers, what the model wrote, and why it wrote nothing where it did not."""
    metrics = trained(prepared)
    try:
        texts = written_by(prepared)
    except Exception as failure:  # memory, most of all: the training is worth more than the texts
        return metrics, [], failure
    scores = text_scores(prepared.recipe, INTERVALS)
    return metrics | scores((texts, prepared.sample.pairs[TARGET][:])), texts, None


def tell(
    prepared: Prepared, metrics: dict[str, float], texts: list[str], failure: Exception | None
) -> Run:
    """Leave predictions, metrics, card and report."""
    recipe, folder = prepared.recipe, prepared.folder
    examples = written(prepared.sample.pairs, texts) if texts else []
    lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
    write_text(folder / "predictions.jsonl", "".join(lines))
    data = part_facts(prepared.pairs, prepared.rows, len(texts))
    chosen = examples[:: max(1, len(examples) // NUM_EXAMPLES)][:NUM_EXAMPLES]
    shown = [
        {"input": e["source"], "expected": e["target"], "output": e["generated"]} for e in chosen
    ]
    kind = type(failure).__name__
    lacking = f"Its texts could not be generated ({kind}): their scores are missing."
    return finish(
        *(recipe, folder, prepared.trainer, metrics, recipe.task, data),
        examples=shown,
        lacking=lacking if failure else "",
        environment=prepared.before.environment if prepared.before else None,
    )


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers.

    Raises:
        IncompleteRunError: the model is trained, but its texts could not be generated; all else is
            written.
    """
    recipe, process = prepared.recipe, PartialState()
    counted = [
        *pair_lines(prepared.rows),
        *sample_lines(prepared.trainer.sample, prepared.rows["eval"], "in each evaluation"),
        *sample_lines(prepared.sample, prepared.rows["test"], "at the end"),
    ]
    is_begun = (prepared.checkpoint or prepared.before) is not None
    process.print(*opening_lines(recipe, prepared.trainer, counted, is_begun), sep="\n")
    metrics, texts, failure = measured(prepared)
    if process.is_main_process:
        record = tell(prepared, metrics, texts, failure)
        process.print(*example_lines(record.examples[:3]), sep="\n")
    if failure is not None:
        process.wait_for_everyone()  # a launcher ends all processes with the first
        raise IncompleteRunError(
            f"the texts could not be generated ({failure}). The model, its loss, card and report "
            f"are in {prepared.folder}; for the texts give the same command again with --resume "
            f"and a smaller --eval_batch_size (it was "
            f"{prepared.trainer.args.per_device_eval_batch_size})"
        ) from failure
    told = (f"{name} {with_doubt(metrics, name, number)}" for name in text_scores(recipe).keys)
    process.print(
        f"{', '.join(told)} on {len(texts):,} held-out pairs; "
        f"{duration(metrics['train_seconds'])} of training\n"
        f"Everything is in {prepared.folder}: the model, predictions.jsonl, report.html ..."
    )
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    """`[RECIPE] [--key value ...] [--resume]` -> the numbers of metrics.json.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    return carry_out(read_command(arguments, Seq2SeqRecipe), prepare, run)


if COMMAND:
    carry_out_or_exit(COMMAND, prepare, run)
