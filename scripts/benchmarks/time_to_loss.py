"""Seconds of training until a held-out masked-LM loss: stock Trainer, engineered AdamW, ours.

Everyone trains the same BERT-mini (vocabulary 30,522, windows of at most 128 tokens) on the
embedded corpus on this machine, and is judged by the same evaluation: 15% of the tokens of held-out
documents, masked once and for all. Sides:

    padded      stock Trainer, DataCollatorForLanguageModeling, windows of documents with padding
    blocks      stock Trainer, the same collator on concatenated blocks of 128, nothing padded
    engineered  labelled positions only, no padding, bf16; AdamW, dropout 0.1, 15% masks
    ours        no padding, bf16 as well; the words' frequencies and vectors from the corpus before
                the first step, Muon, no dropout, 45% masks, WSD
    ours-...    ours without one of its ingredients (`ablate`)

Two things are measured apart, and their product is the claim. `tune`, `claim` and `ablate` give the
held-out loss by step, which depends on no clock: tuned on the validation documents, claimed on the
test documents, three seeds. `pace` times the steps: the sides in turn, a fresh process each, on
a machine that does nothing else, with the same C allocator. A side's time to a loss is what it does
before its first step (ours: the corpus' statistics) and its steps to that loss times the
median seconds of a step. Evaluation, start-up and tokenizing count for none.

The three AdamW sides share the tuning of `engineered`: in exact arithmetic `padded` is the same
training. Each opponent has a target of its own, the loss that all of its seeds reach at the end.

    python scripts/benchmarks/time_to_loss.py tune      # learning rates, on validation documents
    python scripts/benchmarks/time_to_loss.py claim     # three seeds, on test documents
    python scripts/benchmarks/time_to_loss.py ablate    # ours without each ingredient
    python scripts/benchmarks/time_to_loss.py pace      # seconds of a step; leave the machine alone
    python scripts/benchmarks/time_to_loss.py table     # what the folder holds, as text and JSON
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from hf_tfopt.allocator import tune_allocator

MAX_LENGTH = 128
VOCABULARY = 30522
BATCH = 32


@dataclass(frozen=True)
class Side:
    """How one side trains; `steps` is a full schedule for `--size 1`."""

    steps: int
    rates: tuple[float, ...] = ()
    tuned_as: str = "engineered"  # the side whose tuning chooses the rate
    data: str = "unpadded"  # padded | blocks | unpadded
    initialization: str = "random"  # random | frequencies | corpus
    optimizer: str = "adamw"
    schedule: str = "linear"
    dropout: float = 0.1
    masks: float = 0.15
    is_stock: bool = False
    is_bf16: bool = True
    at_head: bool = True
    evaluate_every: int = 10
    adamw_rate: float = 1e-3


ADAMW_RATES = (1e-3, 2e-3, 4e-3)
OURS = Side(
    steps=80,
    rates=(0.01, 0.02, 0.03),
    tuned_as="ours",
    initialization="corpus",
    optimizer="muon",
    schedule="warmup_stable_decay",
    dropout=0.0,
    masks=0.45,
    evaluate_every=2,
)
SIDES = {
    "padded": Side(530, data="padded", is_stock=True, is_bf16=False),
    "blocks": Side(260, data="blocks", is_stock=True, is_bf16=False),
    "engineered": Side(1000, rates=ADAMW_RATES),
    "ours": OURS,
}
ABLATIONS = {
    "ours-initialization": replace(OURS, initialization="random"),
    "ours-vectors": replace(OURS, initialization="frequencies"),
    "ours-muon": replace(OURS, optimizer="adamw", rates=ADAMW_RATES, tuned_as="ours-muon"),
    "ours-wsd": replace(OURS, schedule="linear"),
    "ours-no-dropout": replace(OURS, dropout=0.1),
    "ours-more-masks": replace(OURS, masks=0.15),
    "ours-bf16": replace(OURS, is_bf16=False),
    "ours-head": replace(OURS, at_head=False),
    "ours-unpadded": replace(OURS, data="padded"),
}
EVERYONE = {**SIDES, **ABLATIONS}
PACE_STEPS, PACE_WARMUP = 24, 4


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


def trainer_for(
    side: Side, rate: float, steps: int, seed: int, folder: Path
) -> tuple[Any, Any, float]:
    """The trainer, the collator of the common evaluation, and the seconds of an initialization."""
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
    before = 0.0
    if side.initialization != "random":
        begun = time.perf_counter()
        fresh = model.get_input_embeddings().weight.detach().clone()
        tfo.initialize_from_corpus(model, tfo.ArrowRows(rows), tokenizer)
        before = time.perf_counter() - begun
        if side.initialization == "frequencies":
            model.get_input_embeddings().weight.data.copy_(fresh)
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
        return transformers.Trainer(model, args, collator, rows), evaluation, before
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
    return trainer, evaluation, before


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
    """One training run; its curve (step, held-out loss) goes to a file of its own."""
    import datasets
    import transformers

    side, folder = EVERYONE[name], Path(options.folder)
    steps = max(20, int(side.steps * options.size))
    trainer, collator, _ = trainer_for(side, rate, steps, seed, folder)
    rows = datasets.load_from_disk(str(folder / "data" / split))
    batches = [collator([rows[i] for i in range(j, j + 64)]) for j in range(0, 256, 64)]
    curve: list[tuple[int, float]] = []

    class Evaluation(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step % side.evaluate_every == 0 or state.global_step == steps:
                curve.append((state.global_step, held_out_loss(trainer.model, batches)))

    trainer.add_callback(Evaluation())
    trainer.train()
    result = {"side": name, "rate": rate, "seed": seed, "split": split, "steps": steps}
    write(folder / "results" / f"{split}-{name}-{rate:g}-{seed}.json", {**result, "curve": curve})
    print(f"{name} lr {rate:g} seed {seed}: {curve[-1]}", flush=True)


def time_steps(name: str, turn: int, options: argparse.Namespace) -> None:
    """The first steps of a run, timed: what comes before them, and each from its batch on."""
    import transformers

    side, folder = EVERYONE[name], Path(options.folder)
    steps = PACE_WARMUP + PACE_STEPS
    trainer, _, before = trainer_for(side, 1e-3, steps, turn, folder)
    times = []

    class Timer(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.append(time.perf_counter())

    trainer.add_callback(Timer())
    trainer.train()
    seconds = [end - begin for begin, end in pairwise(times[PACE_WARMUP - 1 :])]
    result = {"side": name, "before": before, "seconds": seconds}
    write(folder / "pace" / f"{name}-{turn}.json", result)
    print(f"{name}: {before:.1f} s, then {median(seconds):.3f} s a step", flush=True)


def write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result))


def in_turn(stage: str, jobs: dict[Path, list[Any]], options: argparse.Namespace) -> None:
    """Each job in a fresh process, one after the other; results that are there already are kept."""
    for path, job in jobs.items():
        if not (Path(options.folder) / path).exists():
            flags = ["--folder", options.folder, "--size", str(options.size)]
            command = [sys.executable, __file__, stage, *flags, "--job", json.dumps(job)]
            subprocess.run(command, check=True)


def runs_of(jobs: list[tuple[str, float, int, str]]) -> dict[Path, list[Any]]:
    return {Path("results") / f"{j[3]}-{j[0]}-{j[1]:g}-{j[2]}.json": list(j) for j in jobs}


def read(options: argparse.Namespace, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(options.folder).glob(pattern))]


def best_rates(options: argparse.Namespace) -> dict[str, float]:
    """Of each tuned side, the rate with the lowest validation loss at the end of its schedule."""
    best: dict[str, tuple[float, float]] = {}
    for entry in read(options, "results/validation-*.json"):
        final = (entry["curve"][-1][1], entry["rate"])
        best[entry["side"]] = min(best.get(entry["side"], final), final)
    return {name: rate for name, (_, rate) in best.items()}


def steps_to(target: float, curve: list[list[float]]) -> float:
    """The first evaluation at or below the target; infinite if there is none."""
    return next((step for step, loss in curve if loss <= target), float("inf"))


def paces(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """By side: median seconds before the first step, and of a step."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in read(options, "pace/*.json"):
        entries.setdefault(entry["side"], []).append(entry)
    return {
        name: (
            median(entry["before"] for entry in group),
            median(seconds for entry in group for seconds in entry["seconds"]),
        )
        for name, group in entries.items()
    }


def table(options: argparse.Namespace) -> None:
    """Ours against each opponent, at the loss that all of the opponent's seeds reach."""
    pace, curves = paces(options), {}
    for entry in read(options, "results/test-*.json"):
        curves.setdefault(entry["side"], []).append(entry["curve"])

    def seconds(name: str, target: float) -> list[float]:
        before, step = pace[name]
        return [before + step * steps_to(target, curve) for curve in curves[name]]

    claims = {}
    print(f"without a pace, and so without a time: {sorted(curves.keys() - pace.keys())}")
    print("opponent     target     its seconds (seeds)              ours (seeds)       ratio")
    timed = sorted(curves.keys() & pace.keys()) if {"ours"} <= curves.keys() & pace.keys() else []
    for name in [name for name in timed if name in SIDES and name != "ours"]:
        target = max(curve[-1][1] for curve in curves[name])
        both = seconds(name, target), seconds("ours", target)
        ratio = median(both[1]) / median(both[0])
        cells = [f"{median(v):.1f} ({', '.join(f'{x:.1f}' for x in v)})" for v in both]
        print(f"{name:12} {target:.3f}  {cells[0]:>32}  {cells[1]:>24}  {ratio:.3f}")
        claims[name] = {"target": target, "seconds": both, "ratio": ratio}
    print("\nside                    steps   final loss (seeds)         seconds a step")
    for name, group in sorted(curves.items()):
        finals = ", ".join(f"{curve[-1][1]:.3f}" for curve in group)
        step = f"{pace[name][1]:.3f}" if name in pace else "-"
        print(f"{name:22}  {group[0][-1][0]:>5}   {finals:24}  {step:>8}")
    print(json.dumps({"claims": claims, "pace": pace, "rates": best_rates(options)}))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    stages = ["tune", "claim", "ablate", "pace", "table", "run", "time_steps"]
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--folder", default="runs/time_to_loss", help="data and results")
    parser.add_argument("--size", type=float, default=1.0, help="length of every schedule")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turns", type=int, default=3, help="of each side, for pace")
    parser.add_argument("--sides", nargs="*", help="only these")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    tune_allocator()
    if options.stage == "run":
        return run(*json.loads(options.job), options)
    if options.stage == "time_steps":
        return time_steps(*json.loads(options.job), options)
    prepare(Path(options.folder))
    names = options.sides or list(ABLATIONS if options.stage == "ablate" else SIDES)
    if options.stage == "tune":
        tuned = [name for name in options.sides or EVERYONE if EVERYONE[name].tuned_as == name]
        jobs = [(n, EVERYONE[n].rates[i], 0, "validation") for i in range(3) for n in tuned]
        return in_turn("run", runs_of(jobs), options)
    if options.stage == "pace":
        names = options.sides or list(EVERYONE)
        jobs = {Path("pace") / f"{n}-{i}.json": [n, i] for i in range(options.turns) for n in names}
        in_turn("time_steps", jobs, options)
    elif options.stage in ("claim", "ablate"):
        rates, seeds = best_rates(options), range(1, 1 + options.seeds)
        jobs = [(n, rates[EVERYONE[n].tuned_as], s, "test") for s in seeds for n in names]
        in_turn("run", runs_of(jobs), options)
    table(options)
    return None


if __name__ == "__main__":
    main()
