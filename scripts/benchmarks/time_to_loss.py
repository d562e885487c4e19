"""Seconds of training until a held-out masked-LM loss: stock Trainer, engineered AdamW, ours.

Everyone trains the same BERT-mini (vocabulary 30,522, windows of at most 128 tokens) on the
embedded corpus on this machine, and is judged by the same evaluation: 15% of the tokens of held-out
documents, masked once and for all. Sides:

    padded      stock Trainer, DataCollatorForLanguageModeling, windows of documents with padding
    blocks      stock Trainer, the same collator on concatenated blocks of 128, nothing padded
    engineered  labelled positions only, no padding, bf16; AdamW, dropout 0.1, 15% masks
    ours        no padding, bf16 as well; Muon, no dropout, 30% masks, WSD
    ours-...    ours without one of its ingredients (`ablate`)

Each side is tuned over the same number of runs (learning rates below) on the validation documents;
the claim is made on the test documents, three seeds, the sides' runs taking turns. Only training is
timed: evaluations, start-up and data preparation are not. The C allocator is set alike for all.

    python scripts/benchmarks/time_to_loss.py tune      # learning rates, on validation documents
    python scripts/benchmarks/time_to_loss.py claim     # three seeds, on test documents
    python scripts/benchmarks/time_to_loss.py ablate    # ours without each ingredient
    python scripts/benchmarks/time_to_loss.py table     # what the folder holds, as text and JSON
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, median
from typing import Any

from hf_tfopt.allocator import tune_allocator

MAX_LENGTH = 128
VOCABULARY = 30522
BATCH = 32


@dataclass(frozen=True)
class Side:
    """How one side trains; `steps` is a full schedule for `--size 1`."""

    rates: tuple[float, ...]
    steps: int
    data: str = "unpadded"  # padded | blocks | unpadded
    optimizer: str = "adamw"
    schedule: str = "linear"
    dropout: float = 0.1
    masks: float = 0.15
    is_stock: bool = False
    is_bf16: bool = True
    at_head: bool = True
    evaluate_every: int = 10
    adamw_rate: float = 3e-3


OURS = Side(
    rates=(0.02, 0.03, 0.045),
    steps=200,
    optimizer="muon",
    schedule="warmup_stable_decay",
    dropout=0.0,
    masks=0.3,
    evaluate_every=5,
)
ADAMW_RATES = (1e-3, 2e-3, 4e-3)
SIDES = {
    "padded": Side(ADAMW_RATES, 640, "padded", is_stock=True, is_bf16=False, evaluate_every=10),
    "blocks": Side(ADAMW_RATES, 520, "blocks", is_stock=True, is_bf16=False, evaluate_every=10),
    "engineered": Side(ADAMW_RATES, 640, evaluate_every=10),
    "ours": OURS,
}
ABLATIONS = {
    "ours-muon": replace(OURS, optimizer="adamw", rates=(3e-3,)),
    "ours-wsd": replace(OURS, schedule="linear"),
    "ours-no-dropout": replace(OURS, dropout=0.1),
    "ours-more-masks": replace(OURS, masks=0.15),
    "ours-bf16": replace(OURS, is_bf16=False),
    "ours-head": replace(OURS, at_head=False),
    "ours-unpadded": replace(OURS, data="padded"),
}


@dataclass
class Clock:
    """Training time without evaluations, and the held-out loss against it."""

    seconds: float = 0.0
    started: float = 0.0
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    def start(self) -> None:
        """Training goes on."""
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Training pauses, or has ended."""
        self.seconds += time.perf_counter() - self.started


def prepare(folder: Path) -> None:
    """Tokenizer, windows and the two held-out sets, made once and read by every run."""
    import hf_tfopt as tfo

    if (folder / "data" / "done").exists():
        return
    corpus = tfo.load_corpus("embedded", eval_fraction=0.02)
    tokenizer = tfo.train_tokenizer(corpus["train"]["text"], vocab_size=VOCABULARY)
    tokenizer.save_pretrained(folder / "data" / "tokenizer")
    train = tfo.tokenize(corpus["train"], tokenizer, MAX_LENGTH)
    train.save_to_disk(folder / "data" / "train")
    held_out = corpus["eval"]
    halves = {"validation": range(0, len(held_out), 2), "test": range(1, len(held_out), 2)}
    for name, documents in halves.items():
        rows = tfo.tokenize(held_out.select(documents), tokenizer, MAX_LENGTH)
        rows.save_to_disk(folder / "data" / name)
    (folder / "data" / "done").touch()


def blocks_of(dataset: Any) -> Any:
    """Concatenate all tokens and cut every 128, as the library's own example does."""
    import datasets
    import numpy as np

    tokens = np.concatenate([np.asarray(row) for row in dataset["input_ids"]])
    cut = tokens[: len(tokens) // MAX_LENGTH * MAX_LENGTH].reshape(-1, MAX_LENGTH)
    return datasets.Dataset.from_dict({"input_ids": cut.tolist()})


def trainer_for(side: Side, rate: float, steps: int, seed: int, folder: Path) -> tuple[Any, Any]:
    """The trainer and the collator of the common evaluation."""
    import datasets
    import torch
    import transformers

    import hf_tfopt as tfo

    torch.manual_seed(seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "data" / "tokenizer")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=1024,
        hidden_dropout_prob=side.dropout,
        attention_probs_dropout_prob=side.dropout,
    )
    model = transformers.BertForMaskedLM(config)
    rows = datasets.load_from_disk(str(folder / "data" / "train"))
    rows = blocks_of(rows) if side.data == "blocks" else rows
    schedule: dict[str, Any] = {"lr_scheduler_type": side.schedule, "warmup_steps": 0.1}
    if side.schedule == "warmup_stable_decay":
        options = {"num_decay_steps": int(0.4 * steps), "decay_type": "1-sqrt"}
        schedule = {**schedule, "warmup_steps": 0.05, "lr_scheduler_kwargs": options}
    args = transformers.TrainingArguments(
        str(folder / "runs"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=rate,
        bf16=side.is_bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=seed,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **schedule,
    )
    evaluation = tfo.MaskedLMCollator(tokenizer, seed=1, model=model)
    if side.is_stock:
        collator = transformers.DataCollatorForLanguageModeling(
            tokenizer, mlm_probability=side.masks
        )
        return transformers.Trainer(model, args, collator, rows), evaluation
    if side.data == "unpadded":
        tfo.unpadded_attention(model)
    options = {"adamw_lr": side.adamw_rate} if side.optimizer == "muon" else {}
    trainer = tfo.TfoptTrainer(
        model,
        args,
        tfo.MaskedLMCollator(tokenizer, probability=side.masks, seed=seed),
        tfo.ArrowRows(rows),
        optimizer_cls_and_kwargs=tfo.optimizer(
            side.optimizer, lr=rate, weight_decay=0.01, **options
        ),
        objective=tfo.LanguageModeling(at_head=side.at_head),
    )
    return trainer, evaluation


def held_out_loss(model: Any, batches: list[dict[str, Any]]) -> float:
    """Mean over all masked tokens, in fp32, the same for every side."""
    import torch

    from hf_tfopt.losses import cross_entropy
    from hf_tfopt.losses.reduction import add, divide

    was_training = model.training
    model.eval()
    terms = []
    with torch.no_grad():
        for batch in batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            states = model.bert(**inputs)[0]
            kept = batch["labels"] != -100
            terms.append(cross_entropy(model.cls(states[kept]), batch["labels"][kept]))
    model.train(was_training)
    return float(divide(*add(terms)))


def run(name: str, rate: float, seed: int, split: str, options: argparse.Namespace) -> None:
    """One training run; its curve (step, seconds, held-out loss) goes to a file of its own."""
    import datasets
    import transformers

    side = {**SIDES, **ABLATIONS}[name]
    steps = max(20, int(side.steps * options.size))
    folder = Path(options.folder)
    trainer, collator = trainer_for(side, rate, steps, seed, folder)
    rows = datasets.load_from_disk(str(folder / "data" / split))
    batches = [collator([rows[i] for i in range(j, j + 64)]) for j in range(0, 256, 64)]
    clock = Clock()

    class Timer(transformers.TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % side.evaluate_every and state.global_step != steps:
                return
            clock.stop()
            loss = held_out_loss(trainer.model, batches)
            clock.curve.append((state.global_step, clock.seconds, loss))
            control.should_training_stop = loss <= options.target
            clock.start()

    trainer.add_callback(Timer())
    trainer.train()
    result = {"side": name, "rate": rate, "seed": seed, "split": split, "steps": steps}
    result["curve"] = clock.curve
    path = folder / "results" / f"{split}-{name}-{rate:g}-{seed}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result))
    print(f"{name} lr {rate:g} seed {seed}: {clock.curve[-1]}", flush=True)


def in_turn(jobs: list[tuple[str, float, int, str]], options: argparse.Namespace) -> None:
    """Each run in a fresh process, one after the other; runs that are there already are kept."""
    for name, rate, seed, split in jobs:
        path = Path(options.folder) / "results" / f"{split}-{name}-{rate:g}-{seed}.json"
        if path.exists():
            continue
        job = ["--run", json.dumps([name, rate, seed, split])]
        size = ["--size", str(options.size), "--target", str(options.target)]
        command = [sys.executable, __file__, "run", "--folder", options.folder, *size, *job]
        subprocess.run(command, check=True)


def results(options: argparse.Namespace, split: str) -> list[dict[str, Any]]:
    paths = sorted((Path(options.folder) / "results").glob(f"{split}-*.json"))
    return [json.loads(path.read_text()) for path in paths]


def best_rates(options: argparse.Namespace) -> dict[str, float]:
    """Of each side, the rate with the lowest validation loss at the end of its schedule."""
    best: dict[str, tuple[float, float]] = {}
    for entry in results(options, "validation"):
        final = (entry["curve"][-1][2], entry["rate"])
        best[entry["side"]] = min(best.get(entry["side"], final), final)
    return {name: rate for name, (_, rate) in best.items()}


def seconds_to(target: float, curve: list[list[float]]) -> float:
    """Training time at the first evaluation at or below the target; infinite if there is none."""
    return next((seconds for _, seconds, loss in curve if loss <= target), float("inf"))


def table(options: argparse.Namespace) -> dict[str, Any]:
    """Median seconds to the target by side, and ours as a share of each.

    Without a target it is the lowest loss that every run reached.
    """
    runs = results(options, "test")
    target = options.target or max(run["curve"][-1][2] for run in runs)
    times: dict[str, list[float]] = {}
    for entry in runs:
        times.setdefault(entry["side"], []).append(seconds_to(target, entry["curve"]))
    ours = median(times.get("ours", [float("nan")]))
    print(f"target {target:.3f}; seconds of training until the held-out loss is there")
    for name, values in sorted(times.items(), key=lambda item: -mean(item[1])):
        spread = ", ".join(f"{value:.1f}" for value in values)
        share = ours / median(values)
        print(f"{name:18}{median(values):>9.1f}   ({spread})   ours / this: {share:.3f}")
    summary = {"target": target, "seconds": times, "rates": best_rates(options)}
    print(json.dumps(summary))
    return summary


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["tune", "claim", "ablate", "table", "run"])
    parser.add_argument("--folder", default="runs/time_to_loss", help="data and results")
    parser.add_argument("--size", type=float, default=1.0, help="length of every schedule")
    parser.add_argument(
        "--target", type=float, default=0.0, help="held-out loss to stop at; none: run on"
    )
    parser.add_argument("--rates", type=int, default=3, help="tuning runs of each side, at most 3")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="*", default=list(SIDES))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    tune_allocator()
    if options.stage == "run":
        run(*json.loads(options.run), options)
        return
    if options.stage == "table":
        table(options)
        return
    prepare(Path(options.folder))
    if options.stage == "tune":
        width = range(options.rates)
        sides = [(name, SIDES[name].rates) for name in options.sides]
        jobs = [(name, rates[i], 0, "validation") for i in width for name, rates in sides]
        in_turn(jobs, options)
        return
    rates = best_rates(options)
    names = options.sides if options.stage == "claim" else list(ABLATIONS)
    seeds = range(1, 1 + options.seeds)
    jobs = []
    for seed in seeds:
        for name in names:
            muon_less = name == "ours-muon"
            rate = ABLATIONS[name].rates[0] if muon_less else rates[name.split("-")[0]]
            jobs.append((name, rate, seed, "test"))
    in_turn(jobs, options)
    table(options)


if __name__ == "__main__":
    main()
