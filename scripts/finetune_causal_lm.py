"""Train a causal language model: documents or answers, all weights or an adapter, a folder.

    python scripts/finetune_causal_lm.py            # the preset gpt-mini: a new GPT-2, in minutes
    python scripts/finetune_causal_lm.py --model FOLDER --corpus my_texts/ --lora_rank 16
    python scripts/finetune_causal_lm.py faq.yaml   # prompt_column, completion_column: answers
    python scripts/finetune_causal_lm.py qlora --model OWNER/NAME --messages_column messages
    torchrun --nproc_per_node 2 scripts/finetune_causal_lm.py recipe.yaml

Documents are packed into full rows and kept apart there. --quantization nf4 with --lora_rank is
QLoRA. The folder holds the adapter alone, unless --merge_adapter true.
"""

# ruff: noqa: E402 - mistakes are answered, and the allocator is set, before torch is imported
import sys

from hf_tfopt.allocator import tune_allocator
from hf_tfopt.recipe.causal_lm_keys import CausalLMRecipe, default_preset
from hf_tfopt.recipe.command_line import command_or_exit, read_command

IS_SCRIPT = __name__ == "__main__"
PRESET = default_preset(sys.argv[1:])
COMMAND = command_or_exit(sys.argv[1:], __doc__, CausalLMRecipe, PRESET) if IS_SCRIPT else None
IS_TUNED = IS_SCRIPT and tune_allocator()

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from transformers import AutoModelForCausalLM, set_seed

import hf_tfopt as tfo
from hf_tfopt.recipe.carry_out import carry_out, carry_out_or_exit
from hf_tfopt.recipe.causal_lm import (
    causal_lm_config,
    causal_lm_model,
    causal_lm_rows,
    causal_lm_texts,
    causal_lm_tokenizer,
    check_rows,
)
from hf_tfopt.recipe.causal_lm_adapter import check_packages, merged
from hf_tfopt.recipe.execution import (
    begin,
    finish,
    save,
    settle,
    train,
    trainer_of,
)
from hf_tfopt.recipe.host_arguments import checkpointing_arguments
from hf_tfopt.recipe.opening import opening_lines
from hf_tfopt.run.continuations import (
    continuations,
    document_beginnings,
    instruction_beginnings,
    write_samples,
)
from hf_tfopt.run.facts import data_facts
from hf_tfopt.run.tables import corpus_lines, duration, number


class Prepared(NamedTuple):
    """All that a run needs, checked: what follows takes long and asks nothing more."""

    recipe: CausalLMRecipe
    folder: Path
    texts: Any
    rows: Any
    data: dict[str, Any]
    trainer: Any
    checkpoint: Path | None


def prepare(recipe: CausalLMRecipe, is_resumed: bool) -> Prepared:
    """Folder, texts, tokenizer, rows, model, Trainer; every mistake of the user's ends here."""
    check_packages(recipe)
    causal_lm_config(recipe)  # before the texts are read: it tells most of what can be wrong
    folder = begin(recipe, is_resumed)
    process = PartialState()
    with process.main_process_first():  # the others find tokenizer and rows on disk
        texts = causal_lm_texts(recipe)
        tokenizer = causal_lm_tokenizer(recipe, texts["train"]["text"], folder)
        rows = {name: causal_lm_rows(recipe, part, tokenizer) for name, part in texts.items()}
        set_seed(recipe.seed)
        model = causal_lm_model(recipe, tokenizer, process.device)
        collator = tfo.CausalLMCollator(tokenizer, model=model)
        check_rows(collator, rows["train"].rows)
        num_rows = len(rows["train"].rows)
        checkpoint = settle(recipe, folder, num_rows, is_resumed, is_drawn=texts.is_drawn)
        if process.is_main_process:
            tokenizer.save_pretrained(folder)
    trainer = trainer_of(
        recipe,
        model,
        {name: tfo.ArrowRows(part.rows) for name, part in rows.items()},
        data_collator=collator,
        processing_class=tokenizer,
        objective=tfo.LanguageModeling(),
        arguments=checkpointing_arguments(recipe),
    )
    width = recipe.max_length
    data = {name: data_facts(texts[name], part.rows, width=width) for name, part in rows.items()}
    return Prepared(recipe, folder, texts, rows, data, trainer, checkpoint)


def measured(prepared: Prepared) -> dict[str, float]:
    """Train, evaluate, and save the model or its adapter; returns the final numbers."""
    recipe, folder, trainer = prepared.recipe, prepared.folder, prepared.trainer
    trained = train(trainer, prepared.checkpoint)
    if not recipe.merge_adapter:
        save(trainer, folder)
    evaluated = trainer.evaluate()
    num_trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if recipe.merge_adapter and PartialState().is_main_process:
        trainer.model = merged(recipe, trainer.model)
        trainer.model.save_pretrained(folder)
    return {
        "eval_loss": evaluated["eval_loss"],
        "perplexity": evaluated["eval_perplexity"],
        **trained,
        "trained_parameters": num_trained,
    }


def tell(prepared: Prepared, metrics: dict[str, float]) -> list[dict[str, str]]:
    """Leave metrics, card, report, and how the model goes on from held-out texts."""
    recipe, folder, trainer = prepared.recipe, prepared.folder, prepared.trainer
    samples: list[dict[str, str]] = []
    try:
        samples = written(prepared)
    except RuntimeError as error:  # memory, as a rule; the run is worth more than its samples
        PartialState().print(f"Samples    none: {error}")
    write_samples(folder, samples)
    shown = [
        {"input": s["prompt"], "expected": s["reference"], "output": s["continuation"]}
        for s in samples
    ]
    finish(recipe, folder, trainer, metrics, "text-generation", prepared.data, examples=shown)
    return samples


def written(prepared: Prepared) -> list[dict[str, str]]:
    """How the model goes on from held-out texts, where it was trained."""
    recipe, trainer = prepared.recipe, prepared.trainer
    tokenizer, held_out = trainer.processing_class, prepared.texts["eval"]
    if recipe.columns:
        beginnings = instruction_beginnings(held_out, tokenizer, seed=recipe.seed)
    else:
        beginnings = document_beginnings(held_out["text"], seed=recipe.seed)
    if recipe.lora_rank is None or recipe.merge_adapter:
        model = AutoModelForCausalLM.from_pretrained(prepared.folder)  # as anyone would open it
        model = model.to(trainer.args.device)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model)
        if recipe.attention == "unpadded":  # which takes no cache
            model.get_base_model().set_attn_implementation("sdpa")
    return continuations(
        model,
        tokenizer,
        beginnings,
        has_specials=recipe.messages_column is None,
        longest_prompt=recipe.max_length,
    )


def run(prepared: Prepared) -> dict[str, float]:
    """Say what is about to run, run it, and say what came of it; returns the final numbers."""
    recipe, say, rows = prepared.recipe, PartialState().print, prepared.rows["train"]
    counted = corpus_lines(prepared.data, prepared.texts.is_drawn)
    if rows.num_cut or rows.num_left_out:
        counted.append(
            f"Answers    {number(rows.num_cut)} are cut at max_length {recipe.max_length}, "
            f"{number(rows.num_left_out)} would begin behind it and are left out"
        )
    is_begun = prepared.checkpoint is not None
    say(*opening_lines(recipe, prepared.trainer, counted, is_begun), sep="\n")
    if recipe.lora_rank is not None:
        bits = f" beside weights of 4 bits ({recipe.quantization})" if recipe.quantization else ""
        say(f"Adapter    rank {recipe.lora_rank}, alpha {recipe.lora_alpha:g}{bits}")
    metrics = measured(prepared)
    if PartialState().is_main_process:
        samples = tell(prepared, metrics)
        for sample in samples[:2]:
            say(f"{sample['prompt']}\n    {' '.join(sample['continuation'].split())}")
        say(
            f"Perplexity {number(metrics['perplexity'])} on the held-out texts after "
            f"{metrics['steps']} steps, {duration(metrics['train_seconds'])}\n"
            f"Everything is in {prepared.folder}: the model, report.html, README.md ..."
        )
    return metrics


def main(arguments: Sequence[str]) -> dict[str, float]:
    """`[RECIPE] [--key value ...] [--resume]` -> the numbers of metrics.json.

    Raises:
        ValueError: for everything that cannot be, before training begins.
    """
    command = read_command(arguments, CausalLMRecipe, default_preset(arguments))
    return carry_out(command, prepare, run)


if COMMAND:
    carry_out_or_exit(COMMAND, prepare, run)
