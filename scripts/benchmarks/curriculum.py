"""Seconds of training to end at a held-out masked-LM loss, with and without a length curriculum.

Everyone trains the preset bert-mini, on the embedded corpus and on this machine, and is judged by
the same evaluation of whole rows, at the end of a run. Sides:

    plain      the preset
    truncate   examples cut to a length that grows over a share of the run, and so more steps for as
               many tokens
    reshape    the same lengths, but what is cut off is an example of its own: as many steps for as
               many tokens

The target is the loss that `plain` of the same seed ends with. Each other side has two budgets,
shares of the tokens that `plain` sees, and each of its runs a learning rate's schedule that is
whole. The seconds that a side needs lie on the line through its two runs; a target that is not
between their losses is marked. A run's seconds are those of its steps, batches included. Runs take
turns, seed by seed, each in a fresh process: leave the machine alone meanwhile.

    python scripts/benchmarks/curriculum.py                   # three seeds
    python scripts/benchmarks/curriculum.py --seeds 1 --steps 40
    python scripts/benchmarks/curriculum.py --start 16 --share 0.2
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from itertools import product
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


def num_steps(side: str, budget: float, sizes: Any, options: argparse.Namespace) -> int:
    """The steps in which a side sees a budget of tokens: a share of what `plain` sees."""
    from hf_tfopt.data.curriculum import sequence_length

    wanted = round(budget * options.steps)
    if side != "truncate":
        return wanted
    share = {n: float(sizes.clip(max=n).sum() / sizes.sum()) for n in range(1, END + 1)}
    steps = wanted
    while True:
        growth = max(1, round(options.share * steps))
        lengths = [sequence_length(t, options.start, END, growth) for t in range(steps)]
        if sum(share[length] for length in lengths) >= wanted:
            return steps
        steps += 1


def run(side: str, budget: float, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The steps and seconds of one training, and its held-out loss."""
    import torch
    from transformers import PrinterCallback, TrainerCallback, set_seed

    import hf_tfopt as tfo
    from hf_tfopt.recipe.host_arguments import run_optimizer, run_schedule, training_arguments
    from hf_tfopt.recipe.masked_lm import masked_lm_model

    recipe, tokenizer, rows, held_out = material(options)
    steps = num_steps(side, budget, example_sizes(rows), options)
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
        """Seconds of the steps."""

        begun, ended = 0.0, 0.0

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            self.begun = self.begun or time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            self.ended = time.perf_counter()

    clock = Clock()
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(clock)
    trainer.train()
    seconds, loss = clock.ended - clock.begun, trainer.evaluate()["eval_loss"]
    print(f"{side} {budget}, seed {seed}: {steps} steps, {seconds:.1f} s, {loss:.4f}", flush=True)
    return {"seconds": seconds, "loss": loss, "steps": steps}


def seconds_to(target: float, runs: list[dict[str, Any]]) -> float:
    """On the line through two runs; not a number if more steps did not lower the loss."""
    first, second = runs
    gained = first["loss"] - second["loss"]
    if gained <= 0:
        return float("nan")
    slope = (second["seconds"] - first["seconds"]) / gained
    return first["seconds"] + slope * (first["loss"] - target)


def table(found: dict[tuple[str, int], list[dict[str, Any]]], seeds: int) -> None:
    """Each side against `plain` of the same seed, as text and as JSON."""
    claims: dict[str, Any] = {}
    for side in SIDES[1:]:
        ratios: list[float] = []
        shown: list[str] = []
        for seed in range(seeds):
            (plain,), runs = found["plain", seed], found[side, seed]
            ratios.append(seconds_to(plain["loss"], runs) / plain["seconds"])
            is_between = runs[0]["loss"] >= plain["loss"] >= runs[1]["loss"]
            shown.append(f"{ratios[-1]:.3f}" + ("" if is_between else "*"))
        print(f"{side:10}{median(ratios):.3f} of the seconds of plain ({', '.join(shown)})")
        claims[side] = ratios
    print("* the target is not between the losses of the two runs")
    print(json.dumps({"ratios": claims, "runs": [[*key, runs] for key, runs in found.items()]}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=420, help="of the plain side")
    parser.add_argument("--budgets", type=float, nargs=2, default=[0.8, 1.0], help="of others")
    parser.add_argument("--start", type=int, default=32, help="tokens in the first step")
    parser.add_argument("--share", type=float, default=0.3, help="of the run, until full length")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not 0 < options.budgets[0] < options.budgets[1]:
        parser.error(f"--budgets {options.budgets}: two shares, the smaller first")
    tune_allocator()
    if options.job is not None:
        side, budget, seed, path = json.loads(options.job)
        Path(path).write_text(json.dumps(run(side, budget, seed, options)))
        return
    flags = [f"--{n}={getattr(options, n)}" for n in ("steps", "start", "share")]
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "result.json")
        for seed, side in product(range(options.seeds), SIDES):
            for budget in [1.0] if side == "plain" else options.budgets:
                job = ["--folder", folder, "--job", json.dumps([side, budget, seed, path])]
                subprocess.run([sys.executable, __file__, *flags, *job], check=True)
                found.setdefault((side, seed), []).append(json.loads(Path(path).read_text()))
    table(found, options.seeds)


if __name__ == "__main__":
    main()
