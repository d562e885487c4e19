"""Every kind of labels, with the options of its loss, and heads that compute their own."""

from typing import Any

import torch
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    T5Config,
    T5ForSequenceClassification,
)

from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.model_loss import ModelLoss
from tests.invariants.cases import Case
from tests.models import DISTILBERT_SIZES, NO_DROPOUT, SIZES, T5_SIZES, VOCABULARY, batch_for

NUM_CLASSES = 3


def bert(kind: type, **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**SIZES, **NO_DROPOUT, **options))


def distilbert() -> Any:
    torch.manual_seed(0)
    config = DistilBertConfig(
        **DISTILBERT_SIZES,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        num_labels=NUM_CLASSES,
    )
    return DistilBertForSequenceClassification(config)


def t5() -> Any:
    torch.manual_seed(0)
    config = T5Config(**T5_SIZES, dropout_rate=0.0, classifier_dropout=0.0, num_labels=NUM_CLASSES)
    return T5ForSequenceClassification(config)


def single(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows, seed)
    batch["labels"] = batch["input_ids"].sum(1) % NUM_CLASSES
    batch["labels"][1] = -100  # an example without a label is not counted
    return batch


def with_end(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """T5's head reads the state at the end-of-sequence token."""
    batch = single(num_rows, seed)
    batch["input_ids"][:, -1] = 1
    return batch


def several(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows, seed)
    return {**batch, "labels": (batch["input_ids"][:, :NUM_CLASSES] % 2).float()}


def numbers(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows, seed)
    return {**batch, "labels": batch["input_ids"].float().mean(1) / VOCABULARY}


def tokens(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows, seed)
    labels = batch["labels"]
    return {**batch, "labels": torch.where(labels < 0, labels, labels % NUM_CLASSES)}


def answers(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, num_rows, seed)
    del batch["labels"]
    start = batch["input_ids"].sum(1) % 6
    return {**batch, "start_positions": start, "end_positions": start + 3}


def choices(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = batch_for(None, 2 * num_rows, seed)
    return {
        "input_ids": batch["input_ids"].view(num_rows, 2, -1),
        "attention_mask": batch["attention_mask"].view(num_rows, 2, -1),
        "labels": batch["input_ids"][::2, 0] % 2,
    }


def _sequence(**options: Any) -> Any:
    return lambda: bert(BertForSequenceClassification, num_labels=NUM_CLASSES, **options)


WEIGHTS = [0.5, 1.0, 2.0]
CASES = {
    "single label": Case(_sequence(), single, Classification),
    "single label, smooth, weights": Case(
        _sequence(), single, lambda: Classification(0.1, class_weights=WEIGHTS)
    ),
    "single label, focal": Case(distilbert, single, lambda: Classification(focal_gamma=2.0)),
    "single label, seq2seq": Case(t5, with_end, Classification),
    "several labels": Case(
        _sequence(problem_type="multi_label_classification"),
        several,
        lambda: Classification(0.1, class_weights=WEIGHTS),
    ),
    "regression": Case(
        lambda: bert(BertForSequenceClassification, num_labels=1), numbers, Classification
    ),
    "token labels": Case(
        lambda: bert(BertForTokenClassification, num_labels=NUM_CLASSES), tokens, Classification
    ),
    "question answering": Case(
        lambda: bert(BertForQuestionAnswering), answers, lambda: ModelLoss(mean="examples")
    ),
    "multiple choice": Case(
        lambda: bert(BertForMultipleChoice), choices, lambda: ModelLoss(mean="examples")
    ),
    "token labels, model's own": Case(
        lambda: bert(BertForTokenClassification, num_labels=NUM_CLASSES),
        tokens,
        lambda: ModelLoss(mean="labels"),
    ),
}
