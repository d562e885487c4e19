"""R-Drop against the batch given twice, for language models and every kind of labels."""

import logging
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.consistency import NUM_LOOKS, RDrop
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.model_loss import ModelLoss
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.models import tiny
from tests.objectives.adversarial_models import (
    SETTINGS,
    assert_same,
    classes,
    classifier,
    gradients,
    tokens,
    trained,
)
from tests.references import adversarial as twins


def with_dropout(model: Any) -> Any:
    """The tiny models have none; here each layer norm of the body loses some of its outputs."""
    for module in model.base_model.modules():
        if isinstance(module, torch.nn.LayerNorm) or type(module).__name__ == "T5LayerNorm":
            module.register_forward_hook(
                lambda _module, _inputs, out: torch.nn.functional.dropout(out, 0.2, model.training)
            )
    return model


@pytest.mark.parametrize("name", SETTINGS)
def test_it_equals_the_obvious_way(name: str) -> None:
    setting = SETTINGS[name]
    model, batch = with_dropout(setting.model()).train(), setting.batch()
    objective = RDrop(setting.objective(), alpha=3.0)
    objective.prepare(model, batch)
    torch.manual_seed(0)
    means = trained(objective, model, batch)
    torch.manual_seed(0)
    loss, expected = twins.r_drop(model, batch, setting.items, alpha=3.0)
    assert_same(gradients(model), expected)
    assert means["consistency"] > 1e-5
    found = means["cross_entropy"] + 3.0 * means["consistency"]
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=0)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_that_are_numbers(problem: str) -> None:
    torch.manual_seed(1)
    model = with_dropout(classifier(problem_type=problem)).train()
    batch = {**classes(), "labels": torch.rand(4, 3)}
    objective = RDrop(Classification(), alpha=2.0)
    objective.prepare(model, batch)
    torch.manual_seed(0)
    means = trained(objective, model, batch)
    torch.manual_seed(0)
    both = model(**{name: torch.cat([value, value]) for name, value in batch.items()})
    first, second = both.logits.chunk(2)
    apart = (first - second).square()
    if problem != "regression":
        apart = (first.sigmoid() - second.sigmoid()) * (first - second)
    loss = both.loss + 2.0 * apart.mean() / 2
    assert_same(gradients(model), twins.gradient_of(model, loss))
    assert set(means) == {objective.objective.counts(batch).copy().popitem()[0], "consistency"}


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_from_full_logits_it_is_the_same(name: str) -> None:
    model, batch = with_dropout(SETTINGS[name].model()).train(), tokens()
    found = []
    for at_head in (True, False):
        objective = RDrop(LanguageModeling(at_head=at_head), alpha=3.0)
        objective.prepare(model, batch)
        torch.manual_seed(0)
        trained(objective, model, batch)
        found.append(gradients(model))
    assert_same(*found)


def test_pictures_have_dropout_too() -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
        hidden_dropout_prob=0.1,
        num_labels=3,
    )
    batch = {"pixel_values": torch.randn(4, 3, 8, 8), "labels": torch.arange(4) % 3}
    means = trained(RDrop(Classification()), ViTForImageClassification(config).train(), batch)
    assert means["consistency"] > 1e-5


def test_examples_without_labels_are_compared_too() -> None:
    model, batch = with_dropout(classifier()).train(), classes()
    batch["labels"][0] = -100
    objective = RDrop(Classification())
    objective.prepare(model, batch)
    assert objective.counts(batch) == {"cross_entropy": 3, "consistency": 4}
    terms, _ = objective.terms(model, model, batch, False)
    assert terms["cross_entropy"].count == 3 and terms["consistency"].count == 4


def test_evaluation_is_plain() -> None:
    model, batch = with_dropout(tiny("bert")).train(), tokens()
    objective = RDrop(LanguageModeling())
    objective.prepare(model, batch)
    terms, _ = objective.terms(model.eval(), model, batch, False)
    loss = terms["cross_entropy"].sum / terms["cross_entropy"].count
    assert set(terms) == {"cross_entropy"}
    torch.testing.assert_close(loss, model(**batch).loss, rtol=1e-5, atol=0)


def test_a_model_without_dropout_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    batch = tokens()
    with caplog.at_level(logging.WARNING):
        trained(RDrop(LanguageModeling()), with_dropout(tiny("bert")).train(), batch)
    assert "R-Drop" not in caplog.text
    objective, model = RDrop(LanguageModeling()), tiny("bert").train()
    with caplog.at_level(logging.WARNING):
        for _ in range(NUM_LOOKS - 1):
            trained(objective, model, batch)
        assert not caplog.text
        trained(objective, model, batch)
        trained(objective, model, batch)
    assert caplog.text.count("R-Drop has no effect: both passes give the same") == 1


@pytest.mark.parametrize("kind", [RDrop, VirtualAdversarial, SMART])
def test_a_language_models_kept_logits_are_told_once(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    objective = kind(LanguageModeling())
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            objective.prepare(tiny("bert"), tokens())
        assert caplog.text.count(f"{kind.__name__} compares logits: in training") == 1
        caplog.clear()
        kind(LanguageModeling(at_head=False)).prepare(tiny("bert"), tokens())
        kind(Classification()).prepare(classifier(), classes())
    assert "compares logits" not in caplog.text


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha is 0; it must be above 0"):
        RDrop(LanguageModeling(), alpha=0)
    with pytest.raises(ValueError, match=r"RDrop compares a model's logits .* not ModelLoss"):
        RDrop(ModelLoss())
    with pytest.raises(ValueError, match="RDrop cannot wrap RDrop"):
        RDrop(RDrop(LanguageModeling()))
