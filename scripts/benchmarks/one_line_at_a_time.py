"""From the stock Trainer to hf_tfopt, one line at a time: seconds and accuracy after each change.

One epoch of SST-2 on a small trained encoder. Each step keeps the lines of those before it; all
steps of a seed run in turn, each in a process of its own, with its training steps alone timed. The
table is that of scripts/README.md.

    pip install 'hf-tfopt[examples]'
    python scripts/benchmarks/one_line_at_a_time.py --data FOLDER_OF_TSV_FILES
"""

import argparse
import json
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

from sst2_finetuning import clock, encoder_folder, parse, result, spread, tokenized

from hf_tfopt.allocator import tune_allocator

ALLOCATOR = "hf_tfopt.allocator.tune_allocator()"
# What each step adds: the line as one writes it, and where it goes.
STEPS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Trainer(...)": lambda tfo: {},
    ALLOCATOR: lambda tfo: {},  # before torch is imported
    "tfo.TfoptTrainer(...)": lambda tfo: {"is_ours": True},
    "sampler=tfo.TokenBudget(max_tokens=1024)": lambda tfo: {
        "parts": {"sampler": tfo.TokenBudget(max_tokens=1024)}
    },
    "bf16=True, use_cpu=True": lambda tfo: {"arguments": {"bf16": True, "use_cpu": True}},
    'optimizer_cls_and_kwargs=tfo.optimizer("adamw", lr=2e-4, layer_decay=0.9)': lambda tfo: {
        "parts": {"optimizer_cls_and_kwargs": tfo.optimizer("adamw", lr=2e-4, layer_decay=0.9)}
    },
    'schedule=tfo.schedule("linear", warmup_steps=0.06)': lambda tfo: {
        "parts": {"schedule": tfo.schedule("linear", warmup_steps=0.06)}
    },
    "callbacks=[*tfo.monitors(), tfo.StabilityGuard()]": lambda tfo: {
        "callbacks": [*tfo.monitors(), tfo.StabilityGuard()]
    },
    "objective=tfo.FGM(tfo.Classification())": lambda tfo: {
        "parts": {"objective": tfo.FGM(tfo.Classification())}
    },
}


def one_run(options: argparse.Namespace, step: int, seed: int) -> dict[str, float]:
    """Training with the lines of all steps up to this one."""
    if step >= list(STEPS).index(ALLOCATOR):
        tune_allocator()
    import numpy as np
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    import hf_tfopt as tfo

    arguments: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    callbacks: list[Any] = []
    is_ours = False
    for added in [add(tfo) for add in list(STEPS.values())[: step + 1]]:
        arguments |= added.get("arguments", {})
        parts |= added.get("parts", {})
        callbacks += added.get("callbacks", [])
        is_ours |= added.get("is_ours", False)
    encoder = encoder_folder(options.encoder)
    tokenizer, timer = AutoTokenizer.from_pretrained(encoder), clock()
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    trainer = (tfo.TfoptTrainer if is_ours else Trainer)(
        model,
        TrainingArguments(
            str(options.output / "trainer"),
            num_train_epochs=1,
            save_strategy="no",
            seed=seed,
            report_to="none",
            disable_tqdm=True,
            **arguments,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=tokenized(options.data / "train.tsv", tokenizer),
        eval_dataset=tokenized(options.data / "dev.tsv", tokenizer),
        compute_metrics=lambda p: {
            "accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
        },
        callbacks=[timer, *callbacks],
        **parts,
    )
    trainer.train()
    found = trainer.evaluate()
    return {
        "seconds": timer.seconds,
        "accuracy": found["eval_accuracy"],
        "loss": found["eval_loss"],
        "steps": trainer.state.global_step,
    }


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv, __doc__, "runs/one-line-at-a-time")
    options.output.mkdir(parents=True, exist_ok=True)
    if options.run:
        step, seed = map(int, options.run.split("_"))
        found = json.dumps(one_run(options, step, seed))
        (options.output / f"{options.run}.json").write_text(found)
        return
    runs: dict[int, list[dict[str, float]]] = {step: [] for step in range(len(STEPS))}
    for seed in options.seeds:
        for step in runs:
            runs[step].append(result(__file__, options, f"{step}_{seed}", argv))
    stock = median(run["seconds"] for run in runs[0])
    print("| the line | seconds | of stock | updates | accuracy (dev) |\n|---|---:|---:|---:|---:|")
    for (line, _), found in zip(STEPS.items(), runs.values(), strict=True):
        seconds = median(run["seconds"] for run in found)
        accuracy, steps = spread([run["accuracy"] for run in found]), found[0]["steps"]
        print(f"| `{line}` | {seconds:.0f} | {seconds / stock:.2f} | {steps} | {accuracy} |")
    print(json.dumps(runs))


if __name__ == "__main__":
    main()
