"""Distilling a classifier, end to end: what it leaves, how it goes on, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
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
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.distillation_keys import DistillationRecipe
from hf_tfopt.recipe.loading import load
from tests.killed import killed_after
from tests.processes import TwoInterpreters
from tests.scripts import loaded
from tests.scripts.loaded import (
    SHORT_RUN,
    as_flags,
    history,
    load_script,
    save_models,
    script_path,
    sentences,
)

SCRIPT = script_path("distill")
SIZES = {**loaded.SIZES, "num_hidden_layers": 4}

distill = load_script("distill")


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
    save_models(models, tokenizer, folder)
    return folder


def flags(place: Path, out: Path, **keys: Any) -> list[str]:
    given = {
        **SHORT_RUN,
        "teacher": place / "classifier",
        "train": place / "train.csv",
        "eval": place / "dev.csv",
        "max_length": 32,
        "shared_examples": "keep",
        "batch_size": 8,
        "eval_steps": 3,
        "save_steps": 2,
        "learning_rate": 3e-3,
        "output_dir": out,
        **keys,
    }
    return as_flags(given)


@pytest.mark.usefixtures("reported")
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
    assert len(json.loads((out / "run.json").read_text())["attention"]) == 2
    assert {"README.md", "report.html", "curves.png", "gradients.png", "log.jsonl"} <= {
        path.name for path in out.iterdir()
    }
    assert not (out / "training_args.bin").exists(), "it names the machine's paths"
    assert history(out, "distillation").keys() == set(range(1, 7)), "each term by its own name"
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.eval_results[0].metric_type == "accuracy"
    assert str(place) not in card.content and str(tmp_path) not in card.content
    found = yaml.safe_load((out / "recipe.yaml").read_text())
    assert load(DistillationRecipe, out / "recipe.yaml") == DistillationRecipe(**found)


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


@pytest.mark.parametrize(
    ("sampler", "keys"),
    [
        ("{token_budget: {max_tokens: 64}}", {"teacher": "encoder", "teacher_epochs": 0.1}),
        ("{difficulty: {score: rarity, num_steps: 2}}", {"teacher": "classifier"}),
    ],
)
def test_a_sampler_orders_the_students_rows(
    sampler: str, keys: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    """And not the teacher's, whose number of steps is of epochs."""
    keys = {**keys, "teacher": place / keys["teacher"], "sampler": sampler, "max_steps": 2}
    assert distill.main(flags(place, tmp_path / "out", **keys))["steps"] == 2


def prepared(place: Path, out: Path, *more: str, **keys: Any) -> Any:
    given = [*flags(place, out, **keys), *more]
    return distill.prepare(*read_command(given, DistillationRecipe))


def renamed(place: Path, folder: Path, names: list[str]) -> Path:
    """The classifier, its outputs called otherwise."""
    shutil.copytree(place / "classifier", folder)
    found = json.loads((folder / "config.json").read_text())
    found["id2label"] = dict(enumerate(names))
    found["label2id"] = {name: number for number, name in enumerate(names)}
    (folder / "config.json").write_text(json.dumps(found))
    return folder


def test_rows_are_numbered_as_the_teacher_numbers_its_classes(place: Path, tmp_path: Path) -> None:
    out, teacher = tmp_path / "out", renamed(place, tmp_path / "teacher", ["good", "bad"])
    ready = prepared(place, out, teacher=teacher, max_steps=1)
    wanted = [["good", "bad"].index(name) for _, name in sentences(96, len("train"))]
    assert list(ready.rows.tokens["train"]["labels"]) == wanted
    distill.run(ready)
    config = AutoModelForSequenceClassification.from_pretrained(out).config
    assert (config.id2label, config.label2id) == ({0: "good", 1: "bad"}, {"good": 0, "bad": 1})


def test_a_teacher_without_names_takes_those_of_the_rows(place: Path, tmp_path: Path) -> None:
    teacher = renamed(place, tmp_path / "teacher", ["LABEL_0", "LABEL_1"])
    config = prepared(place, tmp_path / "out", teacher=teacher).teacher.config
    assert (config.id2label, config.label2id) == ({0: "bad", 1: "good"}, {"bad": 0, "good": 1})


def test_numbers_are_the_teachers_whatever_it_calls_them(place: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "fine,1\ndull,0\n" * 8)
    teacher = renamed(place, tmp_path / "teacher", ["up", "down"])
    ready = prepared(place, tmp_path / "out", teacher=teacher, train=rows, eval=rows)
    assert list(ready.rows.tokens["train"]["labels"]) == [1, 0] * 8
    assert ready.teacher.config.id2label == {0: "up", 1: "down"}


def test_a_teacher_that_calls_its_classes_otherwise_is_refused(place: Path, tmp_path: Path) -> None:
    teacher = renamed(place, tmp_path / "teacher", ["up", "down"])
    with pytest.raises(ValueError, match="knows the classes up, down; those of the rows are bad"):
        distill.main(flags(place, tmp_path / "out", teacher=teacher))


@pytest.mark.invariant
@pytest.mark.parametrize("step", [1, 5])
def test_a_teacher_that_was_stopped_goes_on(
    step: int, place: Path, tmp_path: Path, capsys: Any
) -> None:
    keys = {"teacher": place / "encoder", "teacher_epochs": 0.5, "max_steps": 2}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    distill.main(flags(place, whole, **keys))

    with killed_after(step):
        distill.main(flags(place, cut, **keys))
    assert not (cut / "teacher").exists()
    distill.main([*flags(place, cut, **keys), "--resume"])
    begun = "Going on from checkpoint-4" if step == 5 else "No checkpoint yet: from step 0"
    assert f"Teacher    {begun}" in capsys.readouterr().out
    for name in ("teacher/model.safetensors", "model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (cut / "teacher.unfinished").exists()
    assert not [*(cut / "teacher").glob("checkpoint*"), *(cut / "teacher").glob("*.bin")]


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
    assert (cut / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is finished, with 6 steps: give more --max_steps"):
        prepared(place, cut, "--resume")


def test_two_processes_make_one_student(
    place: Path, tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    out = tmp_path / "out"
    keys = {"teacher": place / "encoder", "teacher_epochs": 0.3, "max_steps": 2}
    done = two_interpreters.run(SCRIPT, *flags(place, out, **keys))
    assert json.loads((out / "metrics.json").read_text())["steps"] == 2
    assert done.stdout.count("Everything is in") == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": "encoder"}, "is no classifier; give one, or train it"),
        ({"teacher": "nowhere"}, "cannot be opened"),
        (
            {"teacher_epochs": 1, "warmup_steps": 20, "max_steps": 40},
            "teacher_epochs 1: warmup_steps 20 are more than the whole run of 12 steps",
        ),
        ({"alpha": 0, "temperature": 7}, "temperature: given, but it is read only with alpha"),
        ({"alpha": 0, "divergence": "jsd"}, "divergence: given, but it is read only with alpha"),
        ({"layers": "0,9"}, "must be rising numbers from 0 to 3"),
        ({"layers": "two"}, "expected numbers such as 0,2,4"),
        ({"alpha": 2}, "must be from 0 to 1"),
        ({"divergence": "reverse"}, r"did you mean 'reverse_kl'"),
        ({"tempreature": 2}, "did you mean 'temperature'"),
        ({"teacher_learning_rate": 0.1}, "read only with teacher_epochs"),
        ({"label_column": "lable"}, "did you mean 'label'"),
        ({"shared_examples": "refuse"}, "24 of 24 rows of eval are also trained on"),
        ({"max_length": 33}, "the model has 32 positions: --max_length 32"),
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
    assert not list(tmp_path.rglob("recipe.yaml"))


def test_options_that_nothing_reads_are_none_and_laid_aside(tmp_path: Path) -> None:
    both = DistillationRecipe(teacher="t", train="x.csv", teacher_epochs=1)
    assert (both.temperature, both.divergence, both.eval_fraction) == (2.0, "kl", 0.1)
    (tmp_path / "recipe.yaml").write_text(both.to_yaml())
    changed = {"alpha": "0", "eval": "y.csv", "teacher_epochs": "none"}
    alone = load(DistillationRecipe, tmp_path / "recipe.yaml", changed)
    assert (alone.temperature, alone.divergence) == (None, None)
    assert (alone.eval_fraction, alone.teacher_learning_rate) == (None, None)


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


def test_a_teacher_of_another_task_is_refused(place: Path, tmp_path: Path) -> None:
    teacher = renamed(place, tmp_path / "teacher", ["bad", "good"])
    found = json.loads((teacher / "config.json").read_text())
    found["architectures"] = ["BertForTokenClassification"]
    (teacher / "config.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="is a BertForTokenClassification, and this is single_l"):
        prepared(place, tmp_path / "out", teacher=teacher)


def test_a_full_folder_is_not_written_to(place: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        distill.main(flags(place, tmp_path))


def test_a_source_with_a_validation_split_is_held_out_by_it(place: Path, tmp_path: Path) -> None:
    """And pairs are read, and labelled test rows are what the final numbers are of."""
    rows = sentences(60, seed=1)
    pairs = [{"first": text, "second": text[-9:], "stars": label} for text, label in rows]
    parts = {"train": pairs[:40], "validation": pairs[40:48], "test": pairs[48:]}
    tables = {part: datasets.Dataset.from_list(found) for part, found in parts.items()}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "rows")
    keys = {
        "train": tmp_path / "rows",
        "eval": None,
        "test": tmp_path / "rows",
        "text_column": "first",
        "text_pair_column": "second",
        "label_column": "stars",
        "max_steps": 2,
    }
    ready = prepared(place, tmp_path / "out", **keys)
    assert ready.told[0] == f"The validation split of {tmp_path / 'rows'} is held out"
    recipe = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert (recipe["eval_fraction"], recipe["split_seed"]) == (None, None), "nothing was drawn"
    found = ready.rows.tokens["eval"][0]
    first, second = (ready.tokenizer(pairs[40][name])["input_ids"] for name in ("first", "second"))
    assert found["input_ids"] == [*first, *second[1:]]
    metrics = distill.run(ready)
    assert "eval_accuracy" in metrics, "beside that of test"
    with (tmp_path / "out" / "predictions.csv").open() as file:
        answers = list(csv.DictReader(file))
    assert [answer["text"] for answer in answers] == [pair["first"] for pair in pairs[48:]]
    right = sum(answer["label"] == answer["predicted"] for answer in answers)
    assert right / 12 == pytest.approx(metrics["accuracy"])


def test_rows_without_labels_are_predicted_and_not_measured(place: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text\nthe film is warm\n")
    out = tmp_path / "out"
    metrics = distill.main(flags(place, out, test=tmp_path / "test.csv", max_steps=2))
    assert metrics["kept_accuracy"] == metrics["accuracy"] / metrics["teacher_accuracy"]
    assert "eval_accuracy" not in metrics, "accuracy is of the held-out rows"
    assert (
        (out / "predictions.csv").read_text().startswith("text,predicted,score\nthe film is warm,")
    )
