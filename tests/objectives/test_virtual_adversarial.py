"""VAT and SMART against explicit `inputs_embeds`, two passes and an autograd of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_tfopt.losses.keyed_noise import normal_noise
from hf_tfopt.losses.perturbation import padded_examples
from hf_tfopt.losses.reduction import combine
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.virtual_adversarial import SMART, VirtualAdversarial
from tests.models import batch_for, tiny
from tests.objectives.adversarial_models import (
    SETTINGS,
    assert_same,
    classes,
    classifier,
    gradients,
    num_hooks,
    tokens,
    trained,
)
from tests.references import adversarial as twins

# In fp64: of the difference of two near outputs fp32 keeps few digits, and the gradient of a
# divergence, which gives the direction, is one. The host's own losses of causal models are fp32.
TOLERANCE = 1e-6
BOTH = pytest.mark.parametrize("kind", [VirtualAdversarial, SMART])


def start_of(model: Any, batch: dict[str, Tensor], seed: int, step: int) -> Tensor:
    width = twins.embeddings(model, batch).shape[-1]
    examples = padded_examples(batch["attention_mask"])
    return normal_noise(batch["input_ids"], examples, width, seed, step).double()


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_vat_equals_the_obvious_way(name: str, steps: int) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().double().train(), setting.batch()
    options: Any = {"epsilon": 0.7, "steps": steps, "xi": 0.2, "weight": 3.0}
    trained(VirtualAdversarial(setting.objective(), seed=4, **options), model, batch, step=6)
    start = start_of(model, batch, seed=4, step=6)
    expected = twins.vat(model, batch, start, setting.items, **options)
    assert_same(gradients(model), expected, TOLERANCE)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", SETTINGS)
def test_smart_equals_the_obvious_way(name: str, steps: int) -> None:
    setting = SETTINGS[name]
    model, batch = setting.model().double().train(), setting.batch()
    options: Any = {"epsilon": 0.1, "steps": steps, "step_size": 0.3, "weight": 3.0}
    trained(SMART(setting.objective(), sigma=0.05, seed=4, **options), model, batch, step=6)
    start = 0.05 * start_of(model, batch, seed=4, step=6)
    expected = twins.smart(model, batch, start, setting.items, **options)
    assert_same(gradients(model), expected, TOLERANCE)


@BOTH
def test_the_perturbation_found_is_worse_than_a_random_one(kind: Any) -> None:
    model, batch = classifier().train(), classes()
    terms = trained(kind(Classification(), steps=3), model, batch)
    options = {"epsilon": 1.0} if kind is VirtualAdversarial else {"step_size": 1e-9}
    objective = kind(Classification(), **options)
    if kind is VirtualAdversarial:
        objective._climbed = lambda at, gradient, is_last: at.delta.detach() / objective.xi
    assert terms["consistency"] > 2 * trained(objective, model, batch)["consistency"] > 0


@BOTH
def test_the_start_depends_on_seed_and_step_alone(kind: Any) -> None:
    model, batch = classifier().train(), classes()

    def found(seed: int, step: int) -> float:
        torch.rand(3)  # the process's own random state is not used
        means = trained(kind(Classification(), seed=seed), model, batch, step)
        return float(means["consistency"])

    assert found(1, 2) == found(1, 2)
    assert len({found(1, 2), found(1, 3), found(2, 2)}) == 3


@BOTH
def test_examples_without_labels_are_trained_too(kind: Any) -> None:
    model, batch = classifier().train(), classes()
    batch["labels"][1:] = -100
    objective = kind(Classification())
    objective.prepare(model, batch)
    assert objective.counts(batch) == {"cross_entropy": 1, "consistency": 4}
    terms, _ = objective.terms(model, model, batch, False)
    assert (terms["cross_entropy"].count, terms["consistency"].count) == (1, 4)


@BOTH
@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_labels_that_are_numbers(kind: Any, problem: str) -> None:
    model = classifier(problem_type=problem).double().train()
    batch = {**classes(), "labels": torch.rand(4, 3).double()}
    means = trained(kind(Classification()), model, batch)
    own = "squared_error" if problem == "regression" else "binary_cross_entropy"
    assert set(means) == {own, "consistency"} and means["consistency"] > 0
    torch.testing.assert_close(means[own], model(**batch).loss.detach(), rtol=1e-6, atol=0)


@BOTH
def test_evaluation_is_plain(kind: Any) -> None:
    model, batch = tiny("bert").train(), tokens()
    objective = kind(LanguageModeling())
    objective.prepare(model, batch)
    terms, outputs = objective.terms(model.eval(), model, batch, True)
    assert set(terms) == {"cross_entropy"} and outputs.logits.shape == (4, 12, 97)


@BOTH
@pytest.mark.parametrize("name", ["classes", "bert"])
def test_autocast_keeps_the_gradients(kind: Any, name: str) -> None:
    """Its copies of the weights from the pass without gradients must not be used again."""
    setting = SETTINGS[name]
    model, batch = setting.model().train(), setting.batch()
    # a large perturbation: bf16 must not round it away
    options = {"epsilon": 3.0} if kind is VirtualAdversarial else {"epsilon": 0.5, "step_size": 9}
    trained(kind(setting.objective(), **options), model, batch)
    expected = gradients(model)
    objective = kind(setting.objective(), **options)
    objective.prepare(model, batch)
    counts = objective.counts(batch)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = objective.terms(model, model, batch, False)
    combine(terms, counts, objective.weights).backward()
    found = gradients(model)
    assert found.keys() == expected.keys()
    flat = [torch.cat([g.flatten() for g in each.values()]) for each in (found, expected)]
    assert torch.cosine_similarity(*flat, dim=0) > 0.98  # 8 bits a number


# PyTorch's of reentrant checkpoints, in front of its error: the clean pass needs no gradients
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
@BOTH
def test_checkpointed_activations_change_nothing(kind: Any) -> None:
    model, batch = tiny("bert").double().train(), tokens()
    trained(kind(LanguageModeling()), model, batch)
    expected = gradients(model)
    model.activation_checkpointing_enable()
    trained(kind(LanguageModeling()), model, batch)
    assert_same(gradients(model), expected, TOLERANCE)
    model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(RuntimeError, match="use_reentrant"):
        trained(kind(LanguageModeling()), model, batch)


@BOTH
def test_nothing_is_left_behind(kind: Any) -> None:
    model, batch = tiny("gpt2").train(), batch_for(None)
    objective = kind(LanguageModeling())
    objective.prepare(model, batch)
    terms, _ = objective.terms(model, model, batch, False)
    assert num_hooks(model) == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    assert terms["consistency"].sum.requires_grad

    def fail(*_: Any) -> None:
        raise RuntimeError("no memory")

    handle = model.transformer.ln_f.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        objective.terms(model, model, batch, False)
    handle.remove()
    assert num_hooks(model) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda it: VirtualAdversarial(it, xi=0), "xi is 0; it must be above 0"),
        (lambda it: VirtualAdversarial(it, steps=0), "steps is 0; it must be a whole number"),
        (lambda it: SMART(it, sigma=-1), "sigma is -1"),
        (lambda it: SMART(it, weight=0), "weight is 0"),
        (lambda it: SMART(VirtualAdversarial(it)), "SMART cannot wrap VirtualAdversarial"),
    ],
)
def test_bad_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(LanguageModeling())
