"""What monitors cost: steps of a BERT-mini with them and without, against naive ones.

Claims: with `tfo.monitors()` at their default interval (the logged steps, every tenth in the preset
bert-mini) training takes at most 1% longer, with every monitor at every tenth step at most 3%. The
naive side reads a number back for the gradient and the weight of every parameter, and the mean,
deviation and maximum of every module's output, at every tenth step as well.

Each side is a training of its own, of the preset, with the same rows and weights, in a thread. They
take turns of one step, in an order that changes, while the others stand still. At their defaults
monitors measure what is cheap in every tenth step, and the rest in every fiftieth, so fifty steps
are a round: each of the fifty counts with its median over the rounds, and the ratio is that of
their sums. The first ten steps are not counted. "work" is the same of the processor time of all
cores, which other processes disturb less. "plain again" is what the ratios are uncertain by.

    python scripts/benchmarks/callbacks.py                    # 5 rounds: 7 minutes on two cores
    python scripts/benchmarks/callbacks.py --rounds 1
    python scripts/benchmarks/callbacks.py --accumulation 2   # the noise scale among "everything"
    python scripts/benchmarks/callbacks.py --each             # every monitor by itself, too
"""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

TURN = 10  # steps, from one log to the next
ROUND = 50  # steps


def naive() -> Any:
    """A callback as it is written first."""
    import torch
    from transformers import TrainerCallback

    class Naive(TrainerCallback):
        def __init__(self) -> None:
            self.found: dict[str, float] = {}
            self.hooks: list[Any] = []

        def see(self, name: str) -> Callable[..., None]:
            def hook(module: Any, given: Any, output: Any) -> None:
                output = output[0] if isinstance(output, tuple) else output
                if isinstance(output, torch.Tensor) and output.is_floating_point():
                    values = output.detach()
                    self.found[f"mean/{name}"] = values.mean().item()
                    self.found[f"std/{name}"] = values.std(correction=0).item()
                    self.found[f"absmax/{name}"] = values.abs().max().item()

            return hook

        def on_step_begin(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            if (state.global_step + 1) % TURN == 0:
                self.hooks = [
                    module.register_forward_hook(self.see(name))
                    for name, module in told["model"].named_modules()
                ]

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            if (state.global_step + 1) % TURN == 0:
                for name, parameter in told["model"].named_parameters():
                    self.found[f"grad/{name}"] = parameter.grad.norm().item()
                    self.found[f"weight/{name}"] = parameter.detach().norm().item()

        def on_step_end(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            while self.hooks:
                self.hooks.pop().remove()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **told: Any
        ) -> None:
            logs |= self.found

    return Naive()


def sides(accumulation: int, has_each: bool) -> dict[str, Callable[[], list[Any]]]:
    import hf_tfopt as tfo

    noise = [lambda: tfo.NoiseScale(every=TURN)] if accumulation > 1 else []
    found: dict[str, Callable[[], list[Any]]] = {
        "plain": lambda: [],
        "plain again": lambda: [],
        "default": lambda: list(tfo.monitors()),
        "everything": lambda: [*tfo.monitors(every=TURN), *(make() for make in noise)],
        "naive": lambda: [naive()],
    }
    if has_each:
        for number, monitor in enumerate(tfo.monitors()):
            name = type(monitor).__name__
            found[name] = lambda number=number: [tfo.monitors()[number]]
    return found


class Turns:
    """Lets one of several threads run at a time, and times it."""

    def __init__(self, names: list[str], rounds: int):
        self.seconds: dict[str, list[float]] = {name: [] for name in names}
        self.work: dict[str, list[float]] = {name: [] for name in names}  # of all cores
        self.rounds = rounds
        self.may_run = {name: threading.Event() for name in names}
        self.has_run = threading.Event()
        self.begun = self.begun_work = 0.0
        self.error: BaseException | None = None

    def run(self, start: Callable[[str], None]) -> None:
        """Start every side, and let them take turns."""
        threads = [
            threading.Thread(target=self._guarded, args=(start, name), daemon=True)
            for name in self.may_run
        ]
        for thread in threads:
            thread.start()
        names = list(self.may_run)
        for turn in range(1 + TURN + ROUND * self.rounds):  # in the first nothing but the start
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                self.has_run.clear()
                self.may_run[name].set()
                self.has_run.wait()
                if self.error is not None:
                    raise self.error

    def _guarded(self, start: Callable[[str], None], name: str) -> None:
        try:
            self.wait(name)
            start(name)
        except BaseException as error:
            self.error = error
            self.has_run.set()

    def wait(self, name: str) -> None:
        """Until it is one's turn."""
        self.may_run[name].wait()
        self.may_run[name].clear()
        self.begun, self.begun_work = time.perf_counter(), time.process_time()

    def hand_over(self, name: str) -> None:
        """The turn is over."""
        self.seconds[name].append(time.perf_counter() - self.begun)
        self.work[name].append(time.process_time() - self.begun_work)
        self.has_run.set()
        self.wait(name)


def baton(turns: Turns, name: str) -> Any:
    """A callback that hands over after every step, its log included."""
    from transformers import TrainerCallback

    class Baton(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **told: Any) -> None:
            turns.hand_over(name)

    return Baton()


def material(folder: Path, overrides: dict[str, str]) -> tuple[Any, Any, Any]:
    """The preset, its tokenizer and its rows."""
    from hf_tfopt.recipe.keys import load_recipe
    from hf_tfopt.recipe.masked_lm import masked_lm_corpus, masked_lm_rows, masked_lm_tokenizer

    recipe = load_recipe("bert-mini", overrides)
    corpus = masked_lm_corpus(recipe)["train"]
    tokenizer = masked_lm_tokenizer(recipe, corpus["text"], folder)
    return recipe, tokenizer, masked_lm_rows(recipe, corpus, tokenizer)


def trainer_for(
    folder: Path, recipe: Any, tokenizer: Any, rows: Any, steps: int, callbacks: list[Any]
) -> Any:
    import torch
    from transformers import PrinterCallback, set_seed

    import hf_tfopt as tfo
    from hf_tfopt.recipe.host_arguments import run_optimizer, run_schedule, training_arguments
    from hf_tfopt.recipe.masked_lm import masked_lm_model

    set_seed(recipe.seed)
    arguments = training_arguments(recipe, steps, torch.device("cpu"))
    arguments.output_dir = str(folder)
    arguments.max_steps, arguments.disable_tqdm = steps, True
    arguments.eval_strategy = arguments.save_strategy = "no"
    model = masked_lm_model(recipe, tokenizer)
    collator = tfo.MaskedLMCollator(
        tokenizer, probability=recipe.masking_probability, seed=recipe.seed, model=model
    )
    trainer = tfo.TfoptTrainer(
        model,
        arguments,
        data_collator=collator,
        train_dataset=tfo.ArrowRows(rows),
        optimizer_cls_and_kwargs=tfo.optimizer(**run_optimizer(recipe)),
        schedule=run_schedule(recipe),
    )
    trainer.remove_callback(PrinterCallback)
    return tfo.attach(trainer, callbacks=callbacks)


def of_a_round(measured: list[float]) -> float:
    """The sum over the steps of a round, each in the median over the rounds."""
    steps = measured[1 + TURN :]
    return sum(median(steps[position::ROUND]) for position in range(ROUND))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches of a step")
    parser.add_argument("--each", action="store_true", help="every monitor by itself, too")
    options = parser.parse_args(argv)
    tune_allocator()
    import torch

    overrides = {"device": "cpu", "gradient_accumulation_steps": str(options.accumulation)}
    steps = TURN * 3 + ROUND * options.rounds
    everyone = sides(options.accumulation, options.each)
    turns = Turns(list(everyone), options.rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe, tokenizer, rows = material(folder, overrides)
        assert recipe.logging_steps == TURN
        trainers: dict[str, Any] = {}
        for side, make in everyone.items():
            parts = (folder / side, recipe, tokenizer, rows, steps)
            trainers[side] = trainer_for(*parts, [*make(), baton(turns, side)])
        turns.run(lambda side: trainers[side].train())
    result = {
        side: {
            "milliseconds": 1e3 * of_a_round(turns.seconds[side]) / ROUND,
            "time": of_a_round(turns.seconds[side]) / of_a_round(turns.seconds["plain"]),
            "work": of_a_round(turns.work[side]) / of_a_round(turns.work["plain"]),
            "last_loss": trainers[side].state.log_history[-1]["loss"],
        }
        for side in everyone
    }
    width = max(map(len, result))
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds of {ROUND} steps")
    print(f"{'':{width}}{'ms a step':>11}{'time':>8}{'work':>8}{'last loss':>11}")
    for side, row in result.items():
        print(
            f"{side:{width}}{row['milliseconds']:>11.1f}{row['time']:>8.4f}{row['work']:>8.4f}"
            f"{row['last_loss']:>11.5f}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
