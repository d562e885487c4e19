"""Weights of tokens: torch's weighted mean, in training alone, whatever wraps the objective."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedModel,
    TrainingArguments,
)

import hf_tfopt as tfo
from hf_tfopt.losses.head import shift
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.adversarial import FGM
from hf_tfopt.objectives.base import Objective
from hf_tfopt.objectives.class_weights import ClassWeights
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.consistency import RDrop
from hf_tfopt.objectives.distillation import Distillation
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.pretraining import Pretraining
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.invariants.cases import Columns
from tests.invariants.cases.distillation import (
    LABELS,
    bert,
    opinionated,
    sequences,
    teacher,
    tokens,
)
from tests.invariants.cases.pretraining import made, pairs
from tests.models import NO_DROPOUT, SIZES, VOCABULARY, batch_for, tiny
from tests.objectives.gradients import assert_same_training
from tests.references.distillation import naive_distillation

# fp32 sums in another order.
TOLERANCE = 1e-5
# Of 0 for some tokens, so that a label that does not count is among the batch's.
WEIGHTS = torch.arange(VOCABULARY) % 4 / 2
SHIFTED = {"bert": False, "t5": False, "gpt2": True, "gemma2": True, "bart-bias": False}


def deberta() -> PreTrainedModel:
    """Its head is not linear: all logits of the labelled positions are made."""
    torch.manual_seed(0)
    return DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **NO_DROPOUT, legacy=False))


def targets(name: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return shift(batch["labels"]) if SHIFTED[name] else batch["labels"]


def torchs(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """The obvious twin: all logits, and torch's own weighted mean."""
    return F.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), weight=WEIGHTS, label_smoothing=smoothing
    )


def loss_of(objective: Objective, model: PreTrainedModel, batch: Any) -> torch.Tensor:
    """As the trainer makes it: each term by the batch's own count, which the term agrees with."""
    terms, _ = objective.terms(model, model, batch, False)
    counts = objective.counts(batch)
    assert terms.keys() == counts.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term.count, counts[name], check_dtype=False)
    return combine(terms, counts, objective.weights)


def prepared(model: PreTrainedModel, **options: Any) -> LanguageModeling:
    objective = LanguageModeling(class_weights=WEIGHTS, **options)
    objective.prepare(model, batch_for(model))
    return objective


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("at_head", [True, False])
@pytest.mark.parametrize("name", SHIFTED)
def test_equals_torchs_weighted_mean(name: str, at_head: bool, smoothing: float) -> None:
    model = tiny(name).train()
    batch = batch_for(model)
    objective = prepared(model, at_head=at_head, label_smoothing=smoothing)
    assert objective.plan is not None and (objective.plan.head is not None) == at_head
    labels = targets(name, batch)
    theirs = torchs(model(**batch).logits, labels, smoothing)
    assert_same_training(model, loss_of(objective, model, batch), theirs, TOLERANCE)
    full, _ = objective.terms(model, model, batch, True)
    torch.testing.assert_close(combine(full), theirs, rtol=TOLERANCE, atol=0)
    expected = float(WEIGHTS[labels[labels >= 0]].sum())
    assert float(objective.counts(batch)["cross_entropy"]) == expected != int((labels >= 0).sum())


def test_a_head_that_is_not_linear_has_them_too() -> None:
    model = deberta().train()
    batch = batch_for(model)
    objective = prepared(model)
    assert objective.plan is not None and objective.plan.head is None
    theirs = torchs(model(**batch).logits, batch["labels"])
    assert_same_training(model, loss_of(objective, model, batch), theirs, TOLERANCE)


def test_words_are_weighed_and_pairs_are_not() -> None:
    model, batch = made("bert").train(), pairs(5, 0)
    objective = Pretraining(class_weights=WEIGHTS)
    objective.prepare(model, batch)
    outputs = model(**batch)
    of_words = torchs(outputs.prediction_logits, batch["labels"])
    of_pairs = F.cross_entropy(outputs.seq_relationship_logits, batch["next_sentence_label"])
    assert_same_training(model, loss_of(objective, model, batch), of_words + of_pairs, TOLERANCE)


@pytest.mark.parametrize("at_head", [True, False])
def test_evaluation_is_plain(at_head: bool) -> None:
    model = tiny("bert").eval()
    batch = batch_for(model)
    objective = prepared(model, at_head=at_head)
    for with_outputs in (True, False):
        term = objective.terms(model, model, batch, with_outputs)[0]["cross_entropy"]
        assert int(term.count) == int((batch["labels"] >= 0).sum())
        own = model(**batch).loss
        torch.testing.assert_close(term.sum / term.count, own, rtol=TOLERANCE, atol=0)


def test_the_trainers_perplexity_is_of_the_plain_loss(tmp_path: Path) -> None:
    args = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=3,
        max_steps=1,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    model, batch = tiny("bert"), batch_for(None)
    first = float(torchs(model.train()(**batch).logits, batch["labels"]).detach())
    rows = Columns(batch)
    objective = tfo.LanguageModeling(class_weights=WEIGHTS.tolist())
    trainer = tfo.TfoptTrainer(
        model, args, train_dataset=rows, eval_dataset=rows, objective=objective
    )
    trainer.train()
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert logged["loss"] == pytest.approx(first, rel=1e-4)  # the host rounds
    scores = trainer.evaluate()
    plain = float(model.eval()(**batch).loss.detach())
    assert scores["eval_loss"] == pytest.approx(plain, rel=TOLERANCE)
    assert scores["eval_perplexity"] == pytest.approx(math.exp(plain), rel=10 * TOLERANCE)


@pytest.mark.parametrize("kind", [RDrop, VirtualAdversarial, SMART])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_what_compares_two_outputs_weighs_the_labels_term(kind: Any, name: str) -> None:
    model = tiny(name).train()
    batch = batch_for(model)
    objective = kind(LanguageModeling(class_weights=WEIGHTS))
    objective.prepare(model, batch)
    counts = objective.counts(batch)
    term = objective.terms(model, model, batch, False)[0]["cross_entropy"]
    torch.testing.assert_close(term.count, counts["cross_entropy"])
    labels = targets(name, batch)
    assert int(counts["consistency"]) == int((labels >= 0).sum())
    theirs = torchs(model(**batch).logits, labels)
    torch.testing.assert_close(term.sum / term.count, theirs, rtol=TOLERANCE, atol=0)


def test_perturbed_terms_are_divided_by_the_same_count() -> None:
    model = tiny("bert").train()
    batch = batch_for(model)
    objective = FGM(LanguageModeling(class_weights=WEIGHTS), epsilon=1e-6)
    objective.prepare(model, batch)
    passes = objective.passes(model, model, batch)
    clean = next(passes)
    counts = objective.counts(batch)
    combine(clean, counts, objective.weights).backward()
    perturbed = next(passes)
    assert {**clean, **perturbed}.keys() == counts.keys()
    theirs = torchs(model(**batch).logits, batch["labels"])
    for name, term in {**clean, **perturbed}.items():
        torch.testing.assert_close(term.count, counts[name])
        torch.testing.assert_close(term.sum / counts[name], theirs, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("at_head", [True, False])
@pytest.mark.parametrize("name", ["bert", "gemma2"])
def test_a_teacher_is_not_weighed(name: str, at_head: bool, alpha: float) -> None:
    model, wise = tiny(name).train(), opinionated(tiny(name, 1))
    batch = batch_for(model)
    task = LanguageModeling(class_weights=WEIGHTS, at_head=at_head)
    objective = Distillation(wise, alpha=alpha, temperature=3.0, objective=task)
    objective.prepare(model, batch)
    labels = targets(name, batch)
    with torch.no_grad():
        of_teacher = wise(**batch).logits
    logits = model(**batch).logits
    soft = naive_distillation(logits, of_teacher, labels, 1.0, 3.0)
    naive = (1 - alpha) * torchs(logits, labels) + alpha * soft
    assert_same_training(model, loss_of(objective, model, batch), naive, TOLERANCE)
    assert int(objective.counts(batch)["distillation"]) == int((labels >= 0).sum())


@pytest.mark.parametrize(
    ("kind", "rows"),
    [(BertForSequenceClassification, sequences), (BertForTokenClassification, tokens)],
)
def test_a_teacher_of_classes_is_not_weighed(kind: Any, rows: Any) -> None:
    model, wise, batch = bert(kind, **LABELS).train(), teacher(kind, **LABELS), rows(6, 0)
    weights = torch.tensor([0.5, 1.0, 3.0])
    task = Classification(class_weights=weights)
    objective = Distillation(wise, alpha=0.4, temperature=3.0, objective=task)
    objective.prepare(model, batch)
    logits, labels = model(**batch).logits, batch["labels"]
    soft = naive_distillation(logits, wise(**batch).logits.detach(), labels, 1.0, 3.0)
    hard = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), weight=weights)
    assert_same_training(
        model, loss_of(objective, model, batch), 0.6 * hard + 0.4 * soft, TOLERANCE
    )


@pytest.mark.parametrize("at_head", [True, False])
def test_other_than_a_weight_for_each_token_is_refused(at_head: bool) -> None:
    model = tiny("bert")
    for number in (VOCABULARY - 2, VOCABULARY + 1):
        objective = LanguageModeling(class_weights=[1.0] * number, at_head=at_head)
        wrong = f"{number} class_weights for {VOCABULARY} tokens: BertForMaskedLM gives so many"
        with pytest.raises(ValueError, match=wrong):
            objective.prepare(model, batch_for(model))
    with pytest.raises(ValueError, match=r"12 class_weights for 97 tokens: DebertaV2ForMaskedLM"):
        LanguageModeling(class_weights=[1.0] * 12).prepare(deberta(), batch_for(model))
    padded = tiny("bert")
    padded.resize_token_embeddings(VOCABULARY, pad_to_multiple_of=8)
    with pytest.raises(ValueError, match=r"97 class_weights for 104 tokens: .* A tokenizer may"):
        LanguageModeling(class_weights=WEIGHTS).prepare(padded, batch_for(padded))


@pytest.mark.parametrize("kind", [LanguageModeling, Pretraining, Classification])
@pytest.mark.parametrize(
    ("weights", "wrong"),
    [
        ([1.0, -0.5], r"class_weights\[1\] is -0.5; each must be finite and at least 0"),
        ([math.nan, 1.0], r"class_weights\[0\] is nan; each"),
        ([1.0, math.inf], r"class_weights\[1\] is inf; each"),
        (torch.zeros(4), "no number of class_weights is above 0"),
        ([], "no number of class_weights is above 0"),
        (torch.ones(2, 3), r"one number for each class, .* not of the shape \(2, 3\)"),
        (2.0, r"one number for each class, .* not of the shape \(\)"),
        ({5: 2.0}, r"one number for each class, .* not dict \{5: 2.0\}"),
        ("balanced", "one number for each class, .* not str balanced"),
    ],
)
def test_what_is_no_weight_is_refused(kind: Any, weights: Any, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        kind(class_weights=weights)


def test_labels_without_a_weight_are_refused_when_counted() -> None:
    model = tiny("bert")
    objective = prepared(model)
    for label in (VOCABULARY, -1):
        batch = batch_for(model)
        batch["labels"][0, 0] = label
        with pytest.raises(ValueError, match=f"label {label} is outside"):
            objective.counts(batch)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_labels_that_do_not_count_teaches_nothing(smoothing: float) -> None:
    model = tiny("bert").train()
    objective, batch = prepared(model, label_smoothing=smoothing), batch_for(model)
    batch["labels"][batch["labels"] >= 0] = 4  # of weight 0
    loss = loss_of(objective, model, batch)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


def test_weights_are_the_objectives_own() -> None:
    given = torch.ones(3, dtype=torch.float64, requires_grad=True)
    weights = ClassWeights(given)
    with torch.no_grad():
        given.mul_(2)
    kept = weights.on(torch.device("cpu"))
    assert kept is not None and kept.tolist() == [1, 1, 1]
    assert kept.dtype == torch.float32 and not kept.requires_grad
    assert weights.on(torch.device("cpu")) is kept
    assert weights and not ClassWeights(None) and ClassWeights(None).on(given.device) is None
