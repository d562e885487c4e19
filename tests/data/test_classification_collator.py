"""ClassificationCollator: batches without padding are those with it, in outputs and gradients."""

import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    BertForTokenClassification,
    Trainer,
    TrainingArguments,
)

import hf_tfopt as tfo
from hf_tfopt.data.classification_collator import ClassificationCollator
from hf_tfopt.data.example_labels import labels_of
from hf_tfopt.data.rows import ArrowRows
from tests.data.test_collators import make_tokenizer
from tests.surgery.test_packed_heads import CLASSIFIERS, NUM_CLASSES, classifier

Rows = list[dict[str, Any]]
# fp32 sums of the same numbers in another order: other shapes take other kernels
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}
KINDS = ("classes", "numbers", "several", "tokens")


def examples(kind: str, num: int = 9, seed: int = 0, pad_id: int = 0) -> Rows:
    """Pairs of sentences of 4 to 19 tokens, with labels of one kind."""
    rng = np.random.default_rng(seed)
    rows: Rows = []
    for _ in range(num):
        length = int(rng.integers(4, 20))
        ids = [2, *rng.integers(5, 90, length - 2).tolist(), 3]
        labels: Any = {
            "classes": int(rng.integers(NUM_CLASSES)),
            "numbers": float(rng.normal()),
            "several": rng.integers(0, 2, NUM_CLASSES).astype(float).tolist(),
            "tokens": [-100, *rng.integers(0, NUM_CLASSES, length - 2).tolist(), -100],
        }[kind]
        types = [0] * (length // 2) + [1] * (length - length // 2)
        rows.append({"input_ids": ids, "token_type_ids": types, "labels": labels})
    assert all(pad_id not in row["input_ids"] for row in rows)
    return rows


def model_for(kind: str, name: str = "bert", seed: int = 0) -> Any:
    if kind == "tokens":
        return classifier("bert", seed, kind=BertForTokenClassification)
    return tfo.packed_classification(
        classifier(name, seed, num_labels=1 if kind == "numbers" else NUM_CLASSES)
    )


def attended(model: Any, attention: str) -> Any:
    model.set_attn_implementation("unpadded" if attention == "unpadded" else attention)
    return model


def make(model: Any = None, **options: Any) -> ClassificationCollator:
    return ClassificationCollator(make_tokenizer(), model=model, **options)


def trained(model: Any, batch: dict[str, Any]) -> tuple[Any, dict[str, torch.Tensor]]:
    """The outputs of one step, and the gradients."""
    model.zero_grad()
    outputs = model(**batch)
    outputs.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return outputs, found


@pytest.mark.parametrize("attention", ["unpadded", "sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_loss_and_gradients_are_those_of_the_padded_batch(kind: str, attention: str) -> None:
    rows, model = examples(kind), attended(model_for(kind), attention)
    collator = make(model)
    packed, padded = collator.for_training(rows), make(model, is_packed=False)(rows)
    is_as_trained = collator(rows)["input_ids"].shape == packed["input_ids"].shape
    assert is_as_trained == (kind != "tokens")  # whose metrics need each example's row
    assert packed["input_ids"].numel() < padded["input_ids"].numel()
    assert ("example_starts" in packed) == (kind != "tokens")
    assert (packed["input_ids"].shape[0] == 1) == (attention == "unpadded")
    assert len(padded["input_ids"]) == len(rows)
    (ours, gradients), (theirs, expected) = trained(model, packed), trained(model, padded)
    if kind != "tokens":
        assert torch.equal(packed["labels"], padded["labels"])  # in their order
        torch.testing.assert_close(ours.logits, theirs.logits, **TOLERANCE)
    torch.testing.assert_close(ours.loss, theirs.loss, **TOLERANCE)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], **TOLERANCE, msg=name)


@pytest.mark.parametrize("attention", ["unpadded", "sdpa"])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_family(name: str, attention: str) -> None:
    model = attended(model_for("classes", name).eval(), attention)
    pad_id = model.config.pad_token_id
    rows = [{k: v for k, v in r.items() if k != "token_type_ids"} for r in examples("classes")]
    tokenizer = make_tokenizer(pad_id) if pad_id == 1 else make_tokenizer()
    for multiple in (None, 8):
        collator = ClassificationCollator(tokenizer, model=model, pad_to_multiple_of=multiple)
        packed = model(**collator(rows)).logits
        collator.is_packed = False
        torch.testing.assert_close(packed, model(**collator(rows)).logits, **TOLERANCE)


def trainer(
    folder: Path, kind: str, form: str, is_packed: bool, rows: Any, **options: Any
) -> Trainer:
    """One of the three ways to train: "own" loss, "attach", "tfopt"."""
    model = attended(model_for(kind), "unpadded")
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    collator = make(is_packed=is_packed)
    made = (tfo.TfoptTrainer if form == "tfopt" else Trainer)(
        model,
        TrainingArguments(str(folder), **settings | options),
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[collator],
    )
    return tfo.attach(made) if form == "attach" else made


def losses(trained: Trainer) -> list[float]:
    return [entry["loss"] for entry in trained.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("classes", "own"),
        ("classes", "attach"),
        ("classes", "tfopt"),
        ("numbers", "own"),
        ("several", "tfopt"),
        ("tokens", "own"),
    ],
)
def test_a_trainer_trains_and_evaluates_as_on_padded_batches(
    tmp_path: Path, kind: str, form: str
) -> None:
    rows = datasets.Dataset.from_list(examples(kind, 11))  # 4, 4 and 3 in a batch
    runs = [trainer(tmp_path, kind, form, packed, rows) for packed in (True, False)]
    widths: list[list[tuple[int, ...]]] = []
    for run in runs:
        shapes: list[tuple[int, ...]] = []
        widths.append(shapes)
        run.model.register_forward_pre_hook(
            lambda _model, _inputs, options, shapes=shapes: (
                shapes.append(tuple(options["input_ids"].shape)) if _model.training else None
            ),
            with_kwargs=True,
        )
        run.train()
    assert {shape[0] for shape in widths[0]} == {1} and {s[0] for s in widths[1]} == {3, 4}
    # Adam divides by the gradients' own size, so that fp32 rounding comes back at 1e-4 of a step
    assert np.allclose(losses(runs[0]), losses(runs[1]), rtol=1e-3)
    ours, theirs = (run.predict(run.eval_dataset) for run in runs)
    assert np.array_equal(ours.label_ids, theirs.label_ids)
    assert ours.predictions.shape == theirs.predictions.shape and len(ours.predictions) == 11
    assert np.allclose(ours.predictions, theirs.predictions, atol=1e-3)
    assert np.isclose(ours.metrics["test_loss"], theirs.metrics["test_loss"], rtol=1e-3)
    if kind != "tokens":
        assert np.array_equal(ours.label_ids, np.array(rows["labels"], dtype=ours.label_ids.dtype))


def test_a_batch_by_hand() -> None:
    rows = [
        {"input_ids": [5, 6, 7], "label": 2},
        {"input_ids": [8] * 5, "label": 0},
        {"input_ids": [9, 9], "label": 1},
    ]
    model = attended(model_for("classes"), "sdpa")
    batch = make(model, pad_to_multiple_of=2)(rows)
    # the longest in a row of 6 by itself, the others together; rows by their first examples
    assert batch["input_ids"].tolist() == [[5, 6, 7, 9, 9, 0], [8, 8, 8, 8, 8, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0]]
    assert batch["labels"].tolist() == [2, 0, 1] and batch["labels"].dtype == torch.int64
    assert batch["example_starts"].tolist() == [0, 6, 3]
    joined = make(attended(model, "unpadded"), pad_to_multiple_of=4)(rows)
    assert joined["input_ids"].tolist() == [[5, 6, 7, 8, 8, 8, 8, 8, 9, 9, 0, 0]]
    assert joined["example_starts"].tolist() == [0, 3, 8]
    assert joined["cu_seq_lens_q"].tolist() == [0, 3, 8, 10, 12]
    assert "labels" not in make(model)([{"input_ids": [5, 6]}])  # as for predict()
    numbers = make(model_for("numbers"))([{"input_ids": [5, 6], "label": 3}])
    assert numbers["labels"].tolist() == [3.0] and numbers["labels"].dtype == torch.float32


def test_arrow_rows_and_a_copy_in_a_worker_give_the_same() -> None:
    for kind in KINDS:
        rows, model = examples(kind), attended(model_for(kind), "unpadded")
        collator, table = make(model), datasets.Dataset.from_list(rows)
        expected = collator.for_training(rows)
        arrow = ArrowRows(table)
        found = [
            collator.for_training(arrow.__getitems__(range(len(rows)))),
            collator.for_training([table.with_format("torch")[i] for i in range(len(rows))]),
            pickle.loads(pickle.dumps(collator)).for_training(rows),
        ]
        for batch in found:
            assert batch.keys() == expected.keys()
            for name, value in expected.items():
                same = torch.equal(batch[name], value) if torch.is_tensor(value) else None
                assert batch[name] == value if same is None else same, (kind, name)


ROW = {"input_ids": [2, 5, 6, 3], "labels": 1}
TOO_LONG = {"input_ids": [5] * 65, "labels": 0}
REFUSED: dict[str, tuple[Rows, str]] = {
    "too long": ([ROW, TOO_LONG], "an example of 65 tokens does not fit the 64 positions"),
    "empty": ([ROW, {"input_ids": [], "labels": 0}], "row 1 of a batch has no tokens"),
    "all empty": ([{"input_ids": [], "labels": 0}], "every row of this batch is empty"),
    "other tokenizer": ([ROW, {"input_ids": [200], "labels": 0}], "token id 200 is none of"),
    "no ids": ([{"text": "a", "labels": 0}], "tokenize first"),
    "padded": ([{"input_ids": [2, 5, 3, 0], "labels": 0}], "padded already"),
    "padded on the left": ([{"input_ids": [0, 2, 5, 3], "labels": 0}], "padded already"),
    "masked": ([ROW | {"attention_mask": [1, 1, 0, 1]}], "masked by their attention_mask"),
    "packed": ([ROW | {"position_ids": [0, 1, 0, 1]}], "packed already"),
    "no label": ([ROW, ROW | {"labels": None}], "row 1 of a batch has no label"),
    "text": ([ROW | {"labels": "good"}], "a label is 'good'"),
    "nested": ([ROW | {"labels": [[1.0]]}], "a label is"),
    "out of range": ([ROW, ROW | {"labels": -1}], r"label -1 is not in \[0, 3\).*GLUE"),
    "too many classes": ([ROW | {"labels": 3}], r"label 3 is not in \[0, 3\)"),
    "uneven": ([ROW | {"labels": [1.0]}, ROW | {"labels": [1.0, 0.0]}], r"\(1,\) and \(2,\)"),
    "one and several": ([ROW, ROW | {"labels": [1.0, 0.0]}], r"shapes \(\) and \(2,\)"),
    "whole numbers": ([ROW | {"labels": [1, 0, 1]}], "3 whole numbers as labels and 4 tokens"),
    "of tokens": ([ROW | {"labels": [0, 1, 1, 0]}], "labels of tokens, but BertForSequence"),
    "half typed": (
        [ROW | {"token_type_ids": [0] * 4}, ROW | {"token_type_ids": [0]}],
        "4 input_ids and 1 token_type_ids",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_do_not_fit(name: str) -> None:
    rows, message = REFUSED[name]
    model = classifier(max_position_embeddings=64)
    collator = make(attended(tfo.packed_classification(model), "unpadded"))
    collator([ROW])
    with pytest.raises(ValueError, match=message):
        collator(rows)


def test_models_and_options_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"pass model=... to the collator, or callbacks"):
        make()([ROW])
    assert make(is_packed=False)([ROW])["attention_mask"].all()
    with pytest.raises(ValueError, match=r"call tfo.packed_classification"):
        make(classifier())([ROW])
    with pytest.raises(ValueError, match="pad_to_multiple_of is 0"):
        make(pad_to_multiple_of=0)
    with pytest.raises(ValueError, match=r"call model.resize_token_embeddings"):
        make(classifier(vocab_size=100))
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="has no pad token"):
        ClassificationCollator(tokenizer)


def test_a_padding_token_that_ends_texts_too_is_no_sign_of_padding() -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = tokenizer.sep_token
    ids = [2, 5, tokenizer.sep_token_id]
    batch = ClassificationCollator(tokenizer, is_packed=False)([{"input_ids": ids, "label": 0.5}])
    assert batch["input_ids"].tolist() == [ids] and batch["labels"].dtype == torch.float32


def test_what_labels_are() -> None:
    def of(*values: Any) -> Any:
        lengths = np.full(len(values), 2)
        found = labels_of([{"label_ids": value} for value in values], lengths)
        return found and (found.values.tolist(), found.values.dtype.name, found.is_by_token)

    assert of(1, 0) == ([1, 0], "int64", False)
    assert of(True, np.int32(0)) == ([1, 0], "int64", False)
    assert of(1, 0.5) == ([1.0, 0.5], "float32", False)
    assert of([1.0, 0.0], np.zeros(2)) == ([[1.0, 0.0], [0.0, 0.0]], "float32", False)
    assert of([1, -100], torch.tensor([0, 2])) == ([1, -100, 0, 2], "int64", True)
    assert of(None, None) is None
    for first in ({}, {"labels": None}):
        with pytest.raises(ValueError, match="row 0 of a batch has no label"):
            labels_of([first, {"label": 1}], np.array([1, 1]))
    assert labels_of([{"input_ids": [1]}], np.array([1])) is None


@pytest.mark.parametrize(
    ("objective", "attention"),
    [("FGM", "sdpa"), ("SMART", "sdpa"), ("SMART", "unpadded"), ("RDrop", "sdpa")],
)
def test_objectives_that_perturb_or_repeat_a_batch(objective: str, attention: str) -> None:
    rows, found = examples("classes"), []
    for is_packed in (True, False):
        model = attended(model_for("classes"), attention).train()
        trained: Any = getattr(tfo, objective)(tfo.Classification())
        batch = make(model, is_packed=is_packed)(rows)
        trained.prepare(model, batch)
        trained.batch_counts = trained.counts(batch)
        sums: Any = {}
        for sums in trained.passes(model, model, batch):
            sum(term.sum for term in sums.values()).backward()
        found.append({name: float((t.sum / t.count).detach()) for name, t in sums.items()})
    for name, value in found[1].items():
        # a gradient's direction is an fp32 number divided by one as small
        assert np.isclose(found[0][name], value, rtol=1e-3, atol=1e-6), (name, found)


def test_objectives_that_would_take_rows_for_examples_refuse_them() -> None:
    model = attended(model_for("classes"), "sdpa")
    batch = make(model)(examples("classes"))
    with pytest.raises(ValueError, match=r"ModelLoss\(\) takes each row for an example"):
        tfo.ModelLoss(mean="labels").prepare(model, batch)
    with pytest.raises(ValueError, match=r"call tfo.packed_classification\(teacher\)"):
        tfo.Distillation(classifier(seed=1)).prepare(model, batch)
    teacher = attended(tfo.packed_classification(classifier(seed=1)), "unpadded")
    with pytest.raises(ValueError, match="the teacher's 'unpadded' would read them"):
        tfo.Distillation(teacher).prepare(model, batch)


def test_a_streamed_dataset_is_not_cut_by_its_rows(tmp_path: Path) -> None:
    streamed = datasets.IterableDataset.from_generator(lambda: iter(examples("classes", 11)))
    by_rows = trainer(tmp_path, "classes", "own", True, streamed, max_steps=2)
    with pytest.raises(ValueError, match="'dispatch_batches': False"):
        by_rows.train()
    whole: dict[str, Any] = {"accelerator_config": {"dispatch_batches": False}}
    own = trainer(tmp_path, "classes", "own", True, streamed, max_steps=2, **whole)
    own.train()
    labels = [row["labels"] for row in examples("classes", 11)]
    assert own.predict(streamed).label_ids.tolist() == labels
