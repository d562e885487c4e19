"""Fine-tuning a classifier, end to end: what it leaves, how it goes on, and what it refuses."""

import csv
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
)

from hf_tfopt.data.labelled_source import read_tables
from hf_tfopt.data.tokenizer import train_tokenizer
from hf_tfopt.recipe.classification_keys import ClassificationRecipe
from hf_tfopt.recipe.command_line import read_command
from hf_tfopt.recipe.loading import load
from tests.killed import killed_after
from tests.processes import TwoInterpreters
from tests.scripts.loaded import (
    NOUNS,
    SHORT_RUN,
    SIZES,
    WORDS,
    as_flags,
    history,
    load_script,
    save_models,
    script_path,
    sentences,
)

SCRIPT = script_path("finetune_classification")


finetune = load_script("finetune_classification")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of all problems, an encoder, a classifier of texts and one of tokens, in one folder."""
    folder = tmp_path_factory.mktemp("finetune")
    found = {"train": sentences(96, 5), "dev": sentences(24, 3)}
    for name, rows in found.items():
        lines = "".join(f"{text},{label}\n" for text, label in rows)
        (folder / f"{name}.csv").write_text("text,label\n" + lines)
        pairs = [
            {"first": text, "second": text[-9:], "gap": 0.5 + n % 5}
            for n, (text, _) in enumerate(rows)
        ]
        write_lines(folder / f"{name}-pairs.jsonl", pairs)
        several = [f'"{text}","{label}|{text.split()[1]}"\n' for text, label in rows]
        (folder / f"{name}-several.csv").write_text("text,label\n" + "".join(several))
        tagged = [
            "".join(f"{word} {'B-' + word if word in NOUNS else 'O'}\n" for word in text.split())
            for text, _ in rows
        ]
        (folder / f"{name}.conll").write_text("\n".join(tagged))
    texts = [text for text, _ in found["train"]]
    tokenizer = train_tokenizer(texts, 160, model_max_length=32)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), **SIZES)
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    of_words = {"id2label": {0: "O", 1: "B-film"}, "label2id": {"O": 0, "B-film": 1}}
    models = {
        "encoder": BertModel(config),
        "classifier": BertForSequenceClassification(
            BertConfig(vocab_size=len(tokenizer), **SIZES, **labels)
        ),
        "tagger": BertForTokenClassification(
            BertConfig(vocab_size=len(tokenizer), **SIZES, **of_words)
        ),
    }
    save_models(models, tokenizer, folder)
    return folder


def flags(place: Path, out: Path, **keys: Any) -> list[str]:
    given = {
        **SHORT_RUN,
        "model": place / "encoder",
        "train": place / "train.csv",
        "eval": place / "dev.csv",
        "max_length": 32,
        "batch_size": 8,
        "eval_steps": 3,
        "shared_examples": "keep",
        "learning_rate": 3e-3,
        "output_dir": out,
        **keys,
    }
    return as_flags(given)


def said(out: Path) -> list[dict[str, str]]:
    with (out / "predictions.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("reported")
def test_everything_is_left_behind(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    metrics = finetune.main(flags(place, out, max_steps=90, eval_steps=30))
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.problem_type == "single_label_classification"
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["steps"] == 90
    assert metrics["accuracy"] >= 0.9 and metrics["f1"] >= 0.9
    assert metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"]
    examples = json.loads((out / "run.json").read_text())["examples"]
    assert [example["input"] for example in examples] == [text for text, _ in sentences(24, 3)][
        ::4
    ][:5]
    rows = said(out)
    assert [(row["text"], row["label"]) for row in rows] == sentences(24, 3)
    right = sum(row["label"] == row["predicted"] for row in rows) / len(rows)
    assert right == pytest.approx(metrics["accuracy"]), "the same model, of the same rows"
    assert all(0.5 <= float(row["score"]) <= 1 for row in rows)
    assert {"README.md", "report.html", "tokenizer.json", "log.jsonl"} <= {
        path.name for path in out.iterdir()
    }
    assert not (out / "training_args.bin").exists(), "it names the machine's paths"
    assert str(place) not in (out / "README.md").read_text()
    found = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (found["problem"], found["select"]) == ("single_label_classification", "accuracy")
    assert load(ClassificationRecipe, out / "recipe.yaml") == ClassificationRecipe(**found)


PROBLEMS = {
    "regression": (
        {
            "train": "train-pairs.jsonl",
            "eval": "dev-pairs.jsonl",
            "text_column": "first",
            "text_pair_column": "second",
            "label_column": "gap",
        },
        {"spearman", "pearson", "mean_squared_error"},
    ),
    "multi_label_classification": (
        {"train": "train-several.csv", "eval": "dev-several.csv", "label_separator": "|"},
        {"micro_f1", "macro_f1", "exact_match"},
    ),
    "token_classification": (
        {"train": "train.conll", "eval": "dev.conll"},
        {"entity_f1", "entity_precision", "entity_recall", "accuracy"},
    ),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_a_problem_is_seen_from_the_rows(problem: str, place: Path, tmp_path: Path) -> None:
    keys, measures = PROBLEMS[problem]
    keys = {k: place / v if k in ("train", "eval") else v for k, v in keys.items()}
    out = tmp_path / "out"
    metrics = finetune.main(
        flags(place, out, **keys, max_steps=60, eval_steps=60, learning_rate=1e-2)
    )
    assert measures <= metrics.keys()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["problem"] == problem
    rows = said(out)
    assert len(rows) == 24
    if problem == "token_classification":
        model = AutoModelForTokenClassification.from_pretrained(out)
        assert model.config.id2label[4] == "O"
        assert rows[0]["text"].split()[0] == "the"
        assert len(rows[0]["predicted"].split()) == 4
        assert metrics["entity_f1"] > 0.8, "the words themselves are the tags"
        return
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.problem_type == problem
    if problem == "regression":
        assert model.config.num_labels == 1
        assert rows[0]["text_pair"] == rows[0]["text"][-9:]
        error = [(float(row["label"]) - float(row["predicted"])) ** 2 for row in rows]
        # 6 digits are written
        assert sum(error) / 24 == pytest.approx(metrics["mean_squared_error"], rel=1e-4)
    else:
        assert sorted(model.config.id2label.values()) == sorted([*WORDS, *NOUNS])
        exact = sum({*row["label"].split("|")} == {*row["predicted"].split("|")} for row in rows)
        assert exact / 24 == pytest.approx(metrics["exact_match"])


def test_a_classifier_keeps_its_head_and_its_order_of_classes(place: Path, tmp_path: Path) -> None:
    keys = {"model": place / "classifier", "test": place / "dev.csv", "max_steps": 1}
    ready = prepared(place, tmp_path / "out", **keys)
    own = BertForSequenceClassification.from_pretrained(place / "classifier")
    assert torch.equal(ready.trainer.model.classifier.weight.cpu(), own.classifier.weight)
    assert ready.rows.names == ["good", "bad"]
    wanted = [["good", "bad"].index(name) for _, name in sentences(24, 3)]
    assert list(ready.rows.tokens["test"]["labels"]) == wanted


def test_a_new_head_is_new(place: Path, tmp_path: Path) -> None:
    """The tagger's has the same name and shape, and would be read with the body."""
    keys = {"model": place / "tagger", "new_head": "true"}
    model = prepared(place, tmp_path / "out", **keys).trainer.model
    own = BertForTokenClassification.from_pretrained(place / "tagger")
    assert model.classifier.weight.shape == own.classifier.weight.shape
    assert not torch.equal(model.classifier.weight.cpu(), own.classifier.weight)
    body, theirs = model.bert.embeddings.word_embeddings, own.bert.embeddings.word_embeddings
    assert torch.equal(body.weight.cpu(), theirs.weight)


def test_packed_rows_are_examined_as_padded_ones(place: Path, tmp_path: Path) -> None:
    metrics = {
        packing: finetune.main(flags(place, tmp_path / packing, packing=packing, max_steps=2))
        for packing in ("true", "false")
    }
    # dropout draws other numbers in training: what is compared is that both are measured
    assert metrics["true"].keys() == metrics["false"].keys()
    texts = [[row["text"] for row in said(tmp_path / packing)] for packing in metrics]
    assert texts[0] == texts[1]


def test_losses_around_the_loss(place: Path, tmp_path: Path) -> None:
    keys = {
        "objective": "{r_drop: {alpha: 2}}",
        "label_smoothing": 0.1,
        "class_weights": "{balanced: true}",
        "layer_decay": 0.8,
        "head_dropout": 0.3,
        "max_steps": 2,
        "eval_steps": 2,
    }
    ready = prepared(place, tmp_path / "out", **keys)
    assert ready.trainer.model.dropout.p == 0.3
    assert ready.trainer.model.bert.embeddings.dropout.p == 0.1
    finetune.run(ready)
    assert history(tmp_path / "out", "consistency"), "the term that R-Drop adds"


def prepared(place: Path, out: Path, *more: str, **keys: Any) -> Any:
    given = [*flags(place, out, **keys), *more]
    return finetune.prepare(*read_command(given, ClassificationRecipe))


@pytest.mark.invariant
def test_stop_and_resume_equals_never_stopped(place: Path, tmp_path: Path) -> None:
    """Stopped between two checkpoints, and gone on with by the same command."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    finetune.main(flags(place, whole))
    with killed_after(4):
        finetune.main(flags(place, cut))
    metrics = finetune.main([*flags(place, cut), "--resume"])
    assert metrics["resumed_from_step"] == 3
    for name in ("model.safetensors", "predictions.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    with pytest.raises(ValueError, match="is finished, with 6 steps: give more --max_steps"):
        prepared(place, cut, "--resume")
    with pytest.raises(ValueError, match="max_length"):
        prepared(place, cut, "--resume", max_length=16)


def test_two_processes_make_one_model(
    place: Path, tmp_path: Path, two_interpreters: TwoInterpreters
) -> None:
    """The same held-out rows, each once and in order, although 24 rows do not fill two batches."""
    out = tmp_path / "out"
    keys = {"max_steps": 3, "batch_size": 5}
    done = two_interpreters.run(SCRIPT, *flags(place, out, **keys))
    assert done.stdout.count("Everything is in") == 1
    metrics, rows = json.loads((out / "metrics.json").read_text()), said(out)
    assert [row["text"] for row in rows] == [text for text, _ in sentences(24, 3)]
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert right / 24 == pytest.approx(metrics["accuracy"])


def three(folder: Path, name: str, *rows: str) -> Path:
    path = folder / name
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": None}, "model: none given"),
        ({"model": "nowhere"}, "cannot be opened"),
        ({"model": "tagger"}, "is a BertForTokenClassification, and this is single_label"),
        ({"model": "classifier", "train": "x,a", "eval": "y,b"}, "one class only"),
        ({"model": "classifier", "train": "x,a|y,b|z,c", "eval": "v,b"}, "tells 2 classes apart"),
        (
            {"model": "classifier", "problem": "regression", "train": "x,1|y,2", "eval": "z,3"},
            "has 2 outputs",
        ),
        ({"label_column": "lable"}, r"no column 'lable'.*did you mean 'label'"),
        (
            {"train": "1,2|3,4"},
            "column 'text' holds numbers, and single_label_classification reads",
        ),
        ({"train": "x,1.5|y,nan"}, "row 1 has 'nan' as 'label'; a regression needs a finite"),
        ({"train": "x,1.5|y,2.5", "eval": "z,inf"}, "eval: row 0 has inf.*needs a finite"),
        ({"train": "x,a|y,b", "eval": "z,bb"}, r"eval: row 0 .*'bb', which no training row has"),
        ({"train": ""}, "train.csv has no rows"),
        ({"train": "x,a|y,b", "eval": ""}, "eval.csv has no rows"),
        (
            {"train": "x,a|y,b", "eval": "x,a|z,a", "shared_examples": "refuse"},
            "1 of 2 rows of eval are also trained on, 1 with",
        ),
        ({"train": "x,a|y,b|z,a", "eval": "x,b|x,a", "shared_examples": "drop"}, None),
        (
            {"train": "x,a|x,b", "eval": "x,a", "shared_examples": "drop"},
            "nothing is left to train",
        ),
        ({"max_length": 33}, "the model has 32 positions: --max_length 32"),
        ({"metrics": "acuracy"}, "did you mean 'accuracy'"),
        ({"metrics": "spearman"}, "unknown metric of single_label_classification .*'spearman'"),
        ({"positive": "goood"}, r"unknown class \(positive\) 'goood' \(did you mean 'good'"),
        ({"objective": "{rdrop: {}}"}, "did you mean 'r_drop'"),
        ({"objective": "{r_drop: {alfa: 1}}"}, "did you mean 'alpha'"),
        ({"class_weights": "{goood: 2}"}, "did you mean 'good'"),
        ({"select": "accurac"}, "did you mean 'accuracy'"),
        ({"problem": "regression", "label_smoothing": 0.1}, "a regression has no classes"),
    ],
)
def test_mistakes_end_before_anything_is_trained(
    keys: dict[str, Any], message: str | None, place: Path, tmp_path: Path
) -> None:
    given = dict(keys)
    if keys.get("model"):
        given["model"] = place / keys["model"]
    for part in {"train", "eval"} & {*keys}:
        given[part] = three(tmp_path, f"{part}.csv", *keys[part].split("|"))
    if "train" in keys and "eval" not in keys:
        given["eval"] = None
    if message is None:
        assert len(prepared(place, tmp_path / "out", **given).rows.tokens["train"]) == 2
        return
    with pytest.raises(ValueError, match=message):
        finetune.main(flags(place, tmp_path / "out", **given))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("recipe.yaml"))


def test_a_model_without_a_padding_token_takes_the_one_that_ends_a_text(
    place: Path, tmp_path: Path
) -> None:
    tokenizer = finetune.classifier_tokenizer("model", str(place / "encoder"), "regression", [])
    tokenizer.eos_token, tokenizer.pad_token = tokenizer.sep_token, None
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=1,
        n_head=2,
        n_positions=32,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
    )
    GPT2Model(config).save_pretrained(tmp_path / "gpt")
    tokenizer.save_pretrained(tmp_path / "gpt")
    keys = {"model": tmp_path / "gpt", "max_steps": 2, "eval_steps": 2}
    ready = prepared(place, tmp_path / "out", **keys)
    assert ready.told[1:] == ["No padding token: [SEP], which ends a text, is taken for it"]
    finetune.run(ready)
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert found.pad_token_id == tokenizer.sep_token_id


def test_texts_that_are_cut_are_told(place: Path, tmp_path: Path) -> None:
    ready = prepared(place, tmp_path / "out", max_length=4)
    assert ready.told[-2:] == [
        f"{num} texts of {part} are longer than max_length, and cut"
        for part, num in [("train", 96), ("eval", 24)]
    ]
    facts = ready.rows.facts()
    assert (facts["train"]["texts_cut"], facts["eval"]["texts_cut"]) == (96, 24)


def test_f1_of_two_classes_is_of_the_class_that_is_named(place: Path, tmp_path: Path) -> None:
    """Of 97 and 3 nothing is found of the rare one, whatever the alphabet says."""
    scores = {
        positive: finetune.classification_scores(
            ClassificationRecipe(model="x", train="x", metrics="f1", positive=positive),
            ["fraud", "legit"],
        )((torch.tensor([[0.0, 1.0]] * 100), torch.tensor([1] * 97 + [0] * 3)))["f1"]
        for positive in ("fraud", "legit", None)
    }
    legit = 2 * 97 / (2 * 97 + 3)
    assert scores == pytest.approx({"fraud": 0.0, "legit": legit, None: legit / 2}, rel=1e-9)


def test_all_seeds_are_examined_on_the_same_rows(place: Path) -> None:
    given = {"model": "x", "train": str(place / "train.csv"), "shared_examples": "drop"}
    found = [
        finetune.read_splits(ClassificationRecipe(**given, **keys)).parts["eval"].column("text")
        for keys in ({"seed": 1}, {"seed": 2}, {"seed": 1, "split_seed": 1})
    ]
    assert found[0] == found[1] != found[2]


def test_a_test_split_is_not_what_checkpoints_are_chosen_by(tmp_path: Path) -> None:
    table = datasets.Dataset.from_dict({"text": [*"abcdefghijkl"], "label": [0, 1] * 6})
    own = datasets.Dataset.from_dict({"text": ["y", "z"], "label": [0, 1]})
    datasets.DatasetDict({"train": table, "test": own}).save_to_disk(tmp_path)
    given = {"model": "x", "train": str(tmp_path), "eval_fraction": 0.25}
    splits = finetune.read_splits(ClassificationRecipe(**given, test=str(tmp_path)))
    assert splits.parts["test"].column("text") == ["y", "z"]
    assert {*splits.parts["eval"].column("text")} < {*"abcdefghijkl"}
    with pytest.raises(ValueError, match=r"eval: .* has no such split, only train, test"):
        finetune.read_splits(
            ClassificationRecipe(model="x", train=str(tmp_path), eval=str(tmp_path))
        )


def test_tags_of_the_first_shared_task_are_read_as_iob2(tmp_path: Path) -> None:
    text = "{0}Jim I-PER\nDow I-PER\nsaw O\nRome I-LOC\nOslo B-LOC\n\n"
    for part in ("train", "eval"):
        (tmp_path / f"{part}.conll").write_text(text.format(part) + text.format("other" + part))
    paths = {part: str(tmp_path / f"{part}.conll") for part in ("train", "eval")}
    splits = finetune.read_splits(ClassificationRecipe(model="x", **paths))
    assert splits.classes == ["B-LOC", "B-PER", "I-PER", "O"]
    tags = ["B-PER", "I-PER", "O", "B-LOC", "B-LOC"]
    assert splits.parts["eval"].column("label") == [tags, tags]
    assert splits.told[1].startswith("4 tags of eval begin an entity with I")


def test_a_full_folder_is_not_written_to(place: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(ValueError, match="is not empty"):
        finetune.main(flags(place, tmp_path))


@pytest.mark.parametrize("rows", ["text\n{0}\n{1}", "text,label\n{0},-1\n{1},-1"])
def test_rows_without_labels_are_predicted_and_not_measured(
    rows: str, place: Path, tmp_path: Path, capsys: Any
) -> None:
    texts = ["the film is warm", sentences(1, 5)[0][0]]
    (tmp_path / "test.csv").write_text(rows.format(*texts) + "\n")
    out = tmp_path / "out"
    keys = {"test": tmp_path / "test.csv", "max_steps": 2, "eval_steps": 2}
    metrics = finetune.main(flags(place, out, **keys))
    printed = capsys.readouterr().out
    assert "Note       test has no labels: its rows are predicted" in printed
    assert "On eval: accuracy" in printed
    assert [row["text"] for row in said(out)] == texts, "though one of them is trained on"
    assert said(out)[0].keys() == {"text", "predicted", "score"}
    assert "accuracy" in metrics and "eval_accuracy" not in metrics, "it is of the held-out rows"
    found = json.loads((out / "run.json").read_text())
    assert found["data"]["test"] == {"words": 8, "tokens": 12, "rows": 2, "labels": "none"}
    assert [example["expected"] for example in found["examples"]] == [None, None]
    assert "its test split" not in (out / "README.md").read_text()
    (result,) = {r.dataset_split for r in ModelCard.load(out / "README.md").data.eval_results}
    assert result is None, "a score of rows that nobody has labelled"


@pytest.mark.parametrize("problem", PROBLEMS)
def test_of_every_problem(problem: str, place: Path, tmp_path: Path) -> None:
    """And as well as if the labels were there."""
    keys, _ = PROBLEMS[problem]
    keys = {k: place / v if k in ("train", "eval") else v for k, v in keys.items()}
    table = next(iter(read_tables(keys["eval"]).values()))
    table.remove_columns(keys.get("label_column", "label")).to_parquet(tmp_path / "test.parquet")
    given = {**keys, "max_steps": 2, "eval_steps": 2}
    for name, test in (("with", keys["eval"]), ("without", tmp_path / "test.parquet")):
        finetune.main(flags(place, tmp_path / name, **given, test=test))
    labelled, bare = said(tmp_path / "with"), said(tmp_path / "without")
    assert len(bare) == 24 and "label" not in bare[0]
    assert bare == [{k: v for k, v in row.items() if k != "label"} for row in labelled]


def test_rows_of_which_some_have_no_label_are_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("text,label\nx,0\ny,-1\n")
    (tmp_path / "train.csv").write_text("text,label\nv,0\nw,1\n")
    keys = {"train": tmp_path / "train.csv", "eval": tmp_path / "train.csv"}
    with pytest.raises(ValueError, match="test: row 1 has -1 as 'label'; it stands for none"):
        prepared(place, tmp_path / "out", **keys, test=tmp_path / "test.csv")
