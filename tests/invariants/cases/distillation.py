"""A student and its teacher: every kind of language model, and classifiers."""

import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    PreTrainedModel,
)

from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.features import AttentionMaps, CosineStates, HiddenStates, Relations
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.projection import FeatureProjection
from tests.invariants.cases import Case
from tests.invariants.cases.language_modeling import WEIGHTS
from tests.models import NO_DROPOUT, SIZES, batch_for, tiny

NUM_CLASSES = 3
WIDER = {**SIZES, **NO_DROPOUT, "hidden_size": 48, "num_hidden_layers": 4}


def bert(kind: type[PreTrainedModel], seed: int = 0, **sizes: object) -> PreTrainedModel:
    torch.manual_seed(seed)
    return kind(BertConfig(**{**SIZES, **NO_DROPOUT, **sizes}))


def opinionated(model: PreTrainedModel) -> PreTrainedModel:
    """A teacher whose distribution is worth learning: new models think all is equally likely.

    A divergence near 0 has few digits that fp32 logits determine, too few for this test.
    """
    head = model.get_output_embeddings()
    with torch.no_grad():
        if head is None:
            model.classifier.weight.mul_(200)
        else:
            head.weight.mul_(20)
    return model


def teacher(kind: type[PreTrainedModel], **sizes: object) -> PreTrainedModel:
    return opinionated(bert(kind, 1, **{**WIDER, **sizes}))


def rows(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    return batch_for(None, num_rows, seed)


def padded(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of different lengths, right-padded."""
    batch = batch_for(None, num_rows, seed)
    width = batch["input_ids"].shape[1]
    is_there = torch.arange(width) < (4 + torch.arange(num_rows) * 5 % (width - 3)).unsqueeze(1)
    return {
        "input_ids": torch.where(is_there, batch["input_ids"], 0),
        "attention_mask": is_there.long(),
        "labels": torch.where(is_there, batch["labels"], -100),
    }


def sequences(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = padded(num_rows, seed)
    return {**batch, "labels": batch["input_ids"][:, 0] % NUM_CLASSES}


def many_hot(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = padded(num_rows, seed)
    return {**batch, "labels": (batch["input_ids"][:, :NUM_CLASSES] % 2).float()}


def tokens(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = padded(num_rows, seed)
    return {**batch, "labels": torch.where(batch["labels"] < 0, -100, batch["labels"] % 3)}


LABELS = {"num_labels": NUM_CLASSES}


def in_eager(model: PreTrainedModel) -> PreTrainedModel:
    model.set_attn_implementation("eager")
    return model


CASES = {
    "distillation": Case(
        lambda: bert(BertForMaskedLM), rows, lambda: Distillation(teacher(BertForMaskedLM))
    ),
    "distillation full logits": Case(
        lambda: bert(BertForMaskedLM),
        padded,
        lambda: Distillation(
            teacher(BertForMaskedLM),
            divergence="jsd",
            objective=LanguageModeling(label_smoothing=0.1, at_head=False),
        ),
    ),
    "distillation token weights": Case(
        lambda: bert(BertForMaskedLM),
        padded,
        lambda: Distillation(
            teacher(BertForMaskedLM), objective=LanguageModeling(class_weights=WEIGHTS)
        ),
    ),
    "distillation causal": Case(
        lambda: tiny("gpt2"),
        rows,
        lambda: Distillation(opinionated(tiny("gpt2", 1)), divergence="reverse_kl", alpha=0.9),
    ),
    "distillation seq2seq": Case(
        lambda: tiny("t5"), rows, lambda: Distillation(opinionated(tiny("t5", 1)), temperature=1.0)
    ),
    "distillation sequences": Case(
        lambda: bert(BertForSequenceClassification, **LABELS),
        sequences,
        lambda: Distillation(teacher(BertForSequenceClassification, **LABELS), alpha=0.7),
    ),
    "distillation class weights": Case(
        lambda: bert(BertForSequenceClassification, **LABELS),
        sequences,
        lambda: Distillation(
            teacher(BertForSequenceClassification, **LABELS),
            objective=Classification(class_weights=[0.5, 1.0, 3.0]),
        ),
    ),
    "distillation tokens": Case(
        lambda: bert(BertForTokenClassification, **LABELS),
        tokens,
        lambda: Distillation(teacher(BertForTokenClassification, **LABELS), divergence="jsd"),
    ),
    "distillation many labels": Case(
        lambda: bert(BertForSequenceClassification, **LABELS),
        many_hot,
        lambda: Distillation(teacher(BertForSequenceClassification, **LABELS)),
    ),
    "distillation of features": Case(
        lambda: in_eager(bert(BertForMaskedLM)),
        padded,
        lambda: Distillation(
            in_eager(teacher(BertForMaskedLM, hidden_size=32)),
            features=[
                HiddenStates(weight=0.1, layers={-1: -1, 0: 1, 1: 3}),
                AttentionMaps(),
                Relations(num_heads=4),
                CosineStates(weight=2.0),
            ],
        ),
    ),
    "distillation of relations": Case(
        lambda: tiny("gpt2"),
        rows,
        lambda: Distillation(opinionated(tiny("gpt2", 1)), alpha=0.0, features=[Relations(0.5)]),
    ),
    "distillation through a projection": Case(
        lambda: FeatureProjection(bert(BertForTokenClassification, **LABELS), 48).student,
        tokens,
        lambda: Distillation(
            teacher(BertForTokenClassification, **LABELS), features=[HiddenStates(10.0)]
        ),
    ),
}
