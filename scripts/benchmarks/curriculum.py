"""Seconds of training until a held-out masked-LM loss, with and without a length curriculum.

Everyone trains the preset bert-mini, on the embedded corpus and on this machine, and is judged by
the same evaluation, of whole rows. Sides:

    plain      the preset
    truncate   examples cut to a length that grows over a share of the run; more steps, until the
               model has seen as many tokens as in `plain`
    reshape    the same lengths, but what is cut off is an example of its own: as many steps, with
               as many tokens each

The learning rate's schedule has each side's own number of steps. The target is the loss with which
`plain` of the same seed ends. A side's time is that of its steps, batches included, up to the first
evaluation at or below the target; evaluations and start-up count for none. Sides take turns, seed
by seed, each run in a fresh process: leave the machine alone meanwhile.

    python scripts/benchmarks/curriculum.py                   # three seeds
    python scripts/benchmarks/curriculum.py --seeds 1 --steps 40 --every 5
    python scripts/benchmarks/curriculum.py --start 16 --share 0.2
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

SIDES = ("plain", "truncate", "reshape")
END = 128  # tokens, the preset's longest example


def material(options: argparse.Namespace) -> tuple[Any, Any, Any, Any]:
    """The preset, its tokenizer, and its rows of training and evaluation."""
    from hf_tfopt.recipe.keys import load_recipe
    from hf_tfopt.recipe.masked_lm import masked_lm_corpus, masked_lm_rows, masked_lm_tokenizer

    recipe = load_recipe("bert-mini", {"device": "cpu", "max_steps": str(options.steps)})
    assert recipe.max_length == END
    corpus = masked_lm_corpus(recipe)
    tokenizer = masked_lm_tokenizer(recipe, corpus["train"]["text"], Path(options.folder))
    tokenizer.save_pretrained(options.folder)
    rows = {name: masked_lm_rows(recipe, corpus[name], tokenizer) for name in ("train", "eval")}
    return recipe, tokenizer, rows["train"], rows["eval"]


def example_sizes(rows: Any) -> Any:
    """The tokens of every example in packed rows."""
    import numpy as np

    from hf_tfopt.data.segments import segment_lengths

    return np.concatenate([segment_lengths(np.asarray(row)) for row in rows["position_ids"]])


def num_steps(side: str, sizes: Any, options: argparse.Namespace) -> int:
    """The steps in which a side sees as many tokens as `plain` does."""
    from hf_tfopt.data.curriculum import sequence_length

    if side != "truncate":
        return options.steps
    share = {n: float(sizes.clip(max=n).sum() / sizes.sum()) for n in range(1, END + 1)}
    steps = options.steps
    while True:
        growth = max(1, round(options.share * steps))
        lengths = [sequence_length(t, options.start, END, growth) for t in range(steps)]
        if sum(share[length] for length in lengths) >= options.steps:
            return steps
        steps += 1


def run(side: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The curve of one training: [step, seconds, held-out loss]."""
    import torch
    from transformers import PrinterCallback, TrainerCallback, set_seed

    import hf_tfopt as tfo
    from hf_tfopt.recipe.host_arguments import run_optimizer, run_schedule, training_arguments
    from hf_tfopt.recipe.masked_lm import masked_lm_model

    recipe, tokenizer, rows, held_out = material(options)
    steps = num_steps(side, example_sizes(rows), options)
    set_seed(seed)
    arguments = training_arguments(recipe, steps, torch.device("cpu"))
    arguments.output_dir, arguments.seed, arguments.data_seed = options.folder, seed, seed
    arguments.max_steps, arguments.disable_tqdm = steps, True
    arguments.eval_strategy = arguments.save_strategy = "no"
    model = masked_lm_model(recipe, tokenizer)
    tfo.initialize_from_corpus(model, tfo.ArrowRows(rows), tokenizer)
    collator = tfo.MaskedLMCollator(
        tokenizer, probability=recipe.masking_probability, seed=seed, model=model
    )
    curriculum = None
    if side != "plain":
        growth = max(1, round(options.share * steps))
        curriculum = tfo.LengthCurriculum(options.start, growth, end=END, mode=side)
    curve: list[list[float]] = []
    trainer = tfo.TfoptTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=tfo.ArrowRows(rows),
        eval_dataset=tfo.ArrowRows(held_out),
        optimizer_cls_and_kwargs=tfo.optimizer(**run_optimizer(recipe)),
        schedule=run_schedule(recipe),
        curriculum=curriculum,
    )

    class Clock(TrainerCallback):
        """Seconds of steps; it stands still while the model is evaluated."""

        seconds, begun = 0.0, 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            step = state.global_step
            self.seconds += time.perf_counter() - self.begun
            if step % options.every == 0 or step == steps:
                loss = trainer.evaluate()["eval_loss"]
                curve.append([step, self.seconds, loss])
            self.begun = time.perf_counter()

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Clock())
    trainer.train()
    print(f"{side}, seed {seed}: {curve[-1]}", flush=True)
    return {"side": side, "seed": seed, "curve": curve}


def seconds_to(target: float, curve: list[list[float]]) -> float:
    """Until the first evaluation at or below the target; infinite if there is none."""
    return next((seconds for _, seconds, loss in curve if loss <= target), float("inf"))


def table(found: list[dict[str, Any]]) -> None:
    """Each side against `plain` of the same seed, as text and as JSON."""
    curves = {(entry["side"], entry["seed"]): entry["curve"] for entry in found}
    seeds = sorted({seed for _, seed in curves})
    claims: dict[str, Any] = {}
    print(f"{'':10}{'steps':>7}{'seconds':>9}{'last loss':>11}{'to target':>11}  ratio (seeds)")
    for side in SIDES:
        lasts = [curves[side, seed][-1] for seed in seeds]
        targets = [curves["plain", seed][-1][2] for seed in seeds]
        times = [seconds_to(t, curves[side, s]) for t, s in zip(targets, seeds, strict=True)]
        plain = [curves["plain", seed][-1][1] for seed in seeds]
        ratios = [ours / theirs for ours, theirs in zip(times, plain, strict=True)]
        shown = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        numbers = [median(last[column] for last in lasts) for column in range(3)]
        print(
            f"{side:10}{numbers[0]:>7.0f}{numbers[1]:>9.1f}{numbers[2]:>11.4f}"
            f"{median(times):>11.1f}  {median(ratios):.3f} ({shown})"
        )
        claims[side] = {"targets": targets, "seconds": times, "ratios": ratios}
    print(json.dumps(claims))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=420, help="of the plain side")
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations")
    parser.add_argument("--start", type=int, default=32, help="tokens in the first step")
    parser.add_argument("--share", type=float, default=0.3, help="of the run, until full length")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    tune_allocator()
    if options.job is not None:
        side, seed, path = json.loads(options.job)
        Path(path).write_text(json.dumps(run(side, seed, options)))
        return
    flags = [f"--{n}={getattr(options, n)}" for n in ("steps", "every", "start", "share")]
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for side in SIDES:
                path = str(Path(folder) / "result.json")
                job = ["--folder", folder, "--job", json.dumps([side, seed, path])]
                subprocess.run([sys.executable, __file__, *flags, *job], check=True)
                found.append(json.loads(Path(path).read_text()))
    table(found)


if __name__ == "__main__":
    main()
