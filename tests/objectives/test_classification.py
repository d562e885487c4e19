"""Classification equals the host's own losses, and refuses what it cannot be."""

from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, BertForTokenClassification

from hf_tfopt.losses.reduction import unlabelled
from hf_tfopt.objectives.classification import Classification
from tests.invariants.cases.classification import (
    NUM_CLASSES,
    bert,
    distilbert,
    numbers,
    several,
    single,
    t5,
    tokens,
    with_end,
)

# fp32 means of the same numbers in another order.
TOLERANCE = 1e-6
HEADS = {
    "single": (lambda: bert(BertForSequenceClassification, num_labels=3), single),
    "distilbert": (distilbert, single),
    "t5": (t5, with_end),
    "several": (lambda: bert(BertForSequenceClassification, num_labels=3), several),
    "numbers": (lambda: bert(BertForSequenceClassification, num_labels=1), numbers),
    "tokens": (lambda: bert(BertForTokenClassification, num_labels=3), tokens),
}


def prepared(model: Any, batch: Any, **options: Any) -> Classification:
    objective = Classification(**options)
    objective.prepare(model, batch)
    return objective


def mean(objective: Classification, model: Any, batch: Any) -> torch.Tensor:
    terms, _ = objective.terms(model, model, batch, False)
    (term,) = terms.values()
    return term.sum / term.count


@pytest.mark.parametrize("name", HEADS)
def test_equals_the_models_own_loss(name: str) -> None:
    make, columns = HEADS[name]
    model, batch = make().train(), columns(6, 0)
    objective = prepared(model, batch)
    assert model.training
    own = model(**batch).loss
    torch.testing.assert_close(mean(objective, model, batch), own, rtol=TOLERANCE, atol=0)
    assert objective.counts(batch).keys() == objective.terms(model, model, batch, False)[0].keys()


def test_the_saved_model_knows_its_problem() -> None:
    model = bert(BertForSequenceClassification, num_labels=3)
    assert model.config.problem_type is None
    prepared(model, several(4, 0))
    assert model.config.problem_type == "multi_label_classification"


def test_options_are_for_training_only() -> None:
    model, batch = distilbert().train(), single(6, 0)
    objective = prepared(model, batch, label_smoothing=0.2, class_weights=[1.0, 2.0, 3.0])
    labels = batch["labels"]
    weighted = torch.nn.functional.cross_entropy(
        model(batch["input_ids"], batch["attention_mask"]).logits,
        labels,
        torch.tensor([1.0, 2.0, 3.0]),
        label_smoothing=0.2,
    )
    torch.testing.assert_close(mean(objective, model, batch), weighted)
    (count,) = objective.counts(batch).values()
    assert float(count) == float(torch.tensor([1.0, 2.0, 3.0])[labels[labels >= 0]].sum())
    own = model.eval()(**batch).loss
    torch.testing.assert_close(mean(objective, model, batch), own, rtol=TOLERANCE, atol=0)


@pytest.mark.parametrize("name", HEADS)
def test_examples_without_targets_do_not_count(name: str) -> None:
    make, columns = HEADS[name]
    model, batch = make().eval(), columns(6, 0)
    objective = prepared(model, batch)
    some = mean(objective, model, unlabelled(batch, objective.targets, 4, 6))
    four = {key: column[:4] for key, column in batch.items()}
    torch.testing.assert_close(some, mean(objective, model, four), rtol=1e-5, atol=0)


def test_bad_options_and_labels_are_refused() -> None:
    model = bert(BertForSequenceClassification, num_labels=NUM_CLASSES)
    batch = single(4, 0)
    with pytest.raises(ValueError, match="did you mean 'regression'"):
        Classification(problem="regresion")
    with pytest.raises(ValueError, match=r"class_weights\[1\] is -1.0; each must be"):
        Classification(class_weights=[1.0, -1.0])
    with pytest.raises(ValueError, match="2 class_weights for a model with 3 classes"):
        prepared(model, batch, class_weights=[1.0, 2.0])
    with pytest.raises(ValueError, match="the batch has no labels, only input_ids"):
        Classification().prepare(model, {"input_ids": batch["input_ids"]})
    one = bert(BertForSequenceClassification, num_labels=1)
    with pytest.raises(ValueError, match="are for classes; this is a regression"):
        prepared(one, numbers(4, 0), label_smoothing=0.1)
    with pytest.raises(ValueError, match="several labels at once have no softmax"):
        prepared(bert(BertForSequenceClassification, num_labels=3), several(4, 0), z_loss=0.1)
    with pytest.raises(ValueError, match=r"fractions, 0.0 or 1.0 for each class"):
        prepared(model, batch, problem="multi_label_classification")
    nan = numbers(4, 0)
    objective = prepared(one, nan)
    nan["labels"][2] = torch.nan
    with pytest.raises(ValueError, match="a label is NaN; leave examples without"):
        objective.counts(nan)


def test_a_label_outside_the_range_is_never_class_0() -> None:
    model, batch = bert(BertForSequenceClassification, num_labels=3), single(4, 0)
    objective = prepared(model, batch)
    for label in (-1, 3):
        batch["labels"][0] = label
        with pytest.raises(ValueError, match=rf"label {label} is outside \[0, 3\)"):
            objective.terms(model, model, batch, False)


class WithPenalty(BertForSequenceClassification):
    def forward(self, *inputs: Any, **options: Any) -> Any:
        outputs = super().forward(*inputs, **options)
        if outputs.loss is not None:
            outputs.loss = outputs.loss + 0.1
        return outputs


def test_a_model_with_another_loss_is_refused() -> None:
    model = bert(WithPenalty, num_labels=3)
    with pytest.raises(ValueError, match="it has terms that this objective does not know"):
        prepared(model, single(4, 0))
