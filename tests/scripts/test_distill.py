"""Distilling a classifier, end to end: what it leaves, how it goes on, and what it refuses."""

import importlib.util
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.recipe.distillation_keys import DistillationRecipe, load_distillation

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "distill.py"
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distill", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


distill = _script()


def sentences(num_rows: int, seed: int) -> list[tuple[str, str]]:
    print("seed", seed)
    choose = random.Random(seed)
    nouns = ["film", "plot", "score", "cast"]
    words = {"good": ["fine", "bright", "warm"], "bad": ["dull", "cold", "flat"]}
    labels = [choose.choice(list(words)) for _ in range(num_rows)]
    return [(f"the {choose.choice(nouns)} is {choose.choice(words[k])}", k) for k in labels]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, an encoder that is no classifier, and a classifier, in one folder."""
    folder = tmp_path_factory.mktemp("distill")
    for name, num_rows in (("train", 96), ("dev", 24)):
        rows = sentences(num_rows, seed=len(name))
        lines = "".join(f"{text},{label}\n" for text, label in rows)
        (folder / f"{name}.csv").write_text("text,label\n" + lines)
    tokenizer = train_tokenizer([text for text, _ in sentences(96, 0)], 120, model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), **SIZES)
    classes = BertConfig(
        vocab_size=len(tokenizer), **SIZES, id2label={0: "bad", 1: "good"}, num_labels=2
    )
    models = {"encoder": BertModel(config), "classifier": BertForSequenceClassification(classes)}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


def flags(place: Path, out: Path, **keys: Any) -> list[str]:
    given = {
        "teacher": place / "classifier",
        "train": place / "train.csv",
        "eval": place / "dev.csv",
        "batch_size": 8,
        "max_steps": 6,
        "eval_steps": 3,
        "save_steps": 2,
        "logging_steps": 1,
        "learning_rate": 3e-3,
        "device": "cpu",
        "precision": "fp32",
        "output_dir": out,
        **keys,
    }
    return [word for key, value in given.items() for word in (f"--{key}", str(value))]


def history(out: Path, key: str) -> dict[int, float]:
    entries = json.loads((out / "run.json").read_text())["history"]
    return {entry["step"]: entry[key] for entry in entries if key in entry}


def test_everything_is_left_behind(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = distill.main(flags(place, out, layers="0,3"))
    student = AutoModelForSequenceClassification.from_pretrained(out)
    assert student.config.num_hidden_layers == 2
    assert student.config.id2label == {0: "bad", 1: "good"}
    assert student.config.problem_type == "single_label_classification"
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 6
    assert metrics["kept_accuracy"] == metrics["accuracy"] / metrics["teacher_accuracy"]
    assert metrics["times_as_fast"] > 0
    assert {"README.md", "report.html", "curves.png", "recipe.yaml"} <= {
        path.name for path in out.iterdir()
    }
    assert not (out / "training_args.bin").exists(), "it names the machine's paths"
    assert history(out, "distillation").keys() == set(range(1, 7)), "each term by its own name"
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results[0].metric_type == "accuracy"
    assert str(place) not in card.content and str(tmp_path) not in card.content
    found = yaml.safe_load((out / "recipe.yaml").read_text())
    assert load_distillation(out / "recipe.yaml") == DistillationRecipe(**found)


def test_it_learns_from_the_teacher_it_trains_first(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    keys = {"teacher": place / "encoder", "teacher_epochs": 8, "teacher_learning_rate": 3e-3}
    metrics = distill.main(flags(place, out, **keys, max_steps=36, alpha=1))
    assert metrics["teacher_accuracy"] >= 0.95
    assert metrics["accuracy"] >= 0.9, "with alpha 1 it has seen no label"
    saved = AutoModelForSequenceClassification.from_pretrained(out / "teacher")
    assert saved.config.num_hidden_layers == 4
    assert saved.config.id2label == {0: "bad", 1: "good"}
    assert not (out / "teacher.unfinished").exists()


@pytest.mark.invariant
def test_stop_and_resume_equals_never_stopped(place: Path, tmp_path: Path) -> None:
    out, cut = tmp_path / "out", tmp_path / "cut"
    distill.main(flags(place, out))
    shutil.copytree(out, cut)
    for step in range(5, 7):
        shutil.rmtree(cut / f"checkpoint-{step}", ignore_errors=True)
    for left in ("metrics.json", "model.safetensors", "run.json"):
        (cut / left).unlink()
    distill.main([*flags(place, cut), "--resume"])
    ours, theirs = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (cut, out)
    )
    for name, weight in theirs.items():
        assert torch.equal(ours[name], weight), name


def test_two_processes_make_one_student(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launch, "--master_port", "29611", str(SCRIPT), *flags(place, out, max_steps=2)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
    assert done.stdout.count("Everything is in") == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": "encoder"}, "is no classifier; give one, or train it"),
        ({"teacher": "nowhere"}, "has no tokenizer"),
        ({"layers": "0,9"}, "must be rising numbers from 0 to 3"),
        ({"layers": "two"}, "expected numbers such as 0,2,4"),
        ({"alpha": 2}, "must be from 0 to 1"),
        ({"divergence": "reverse"}, r"did you mean 'reverse_kl'"),
        ({"tempreature": 2}, "did you mean 'temperature'"),
        ({"teacher_learning_rate": 0.1}, "read only with teacher_epochs"),
        ({"label_column": "lable"}, "did you mean 'label'"),
    ],
)
def test_mistakes_end_before_anything_is_trained(
    keys: dict[str, Any], message: str, place: Path, tmp_path: Path
) -> None:
    if "teacher" in keys:
        keys = {"teacher": place / keys["teacher"]}
    with pytest.raises(ValueError, match=message):
        distill.main(flags(place, tmp_path / "out", **keys))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_teacher_and_rows_must_be_named() -> None:
    with pytest.raises(ValueError, match="teacher: none given"):
        distill.main(["--train", "x.csv"])
    with pytest.raises(ValueError, match="train: none given"):
        distill.main(["--teacher", "x"])


def test_a_teacher_of_other_classes_is_refused(place: Path, tmp_path: Path) -> None:
    three = tmp_path / "three.csv"
    three.write_text((place / "train.csv").read_text() + "the film is odd,strange\n")
    with pytest.raises(ValueError, match="tells 2 classes apart, the rows have 3: bad, good"):
        distill.main(flags(place, tmp_path / "out", train=three))


def test_a_full_folder_is_not_written_to(place: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        distill.main(flags(place, tmp_path))
