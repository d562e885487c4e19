"""The hook is `inputs_embeds = embedding(input_ids) + delta`, for every family of models."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertForMultipleChoice, ViTConfig, ViTForImageClassification

from hf_tfopt.objective_slot import fitted_objective
from hf_tfopt.objectives.adversarial import FGM
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import model_inputs
from hf_tfopt.objectives.model_loss import ModelLoss
from hf_tfopt.objectives.perturbed_embeddings import Perturbation, ascent, input_embedding, zeros
from hf_tfopt.objectives.virtual_adversarial import SMART
from tests.models import TINY, batch_for, tiny
from tests.objectives.adversarial_models import classes, classifier, num_hooks
from tests.references.adversarial import embeddings

# fp32 sums in another order, of logits around 1.
TOLERANCE = 1e-5


def noise_like(tensor: torch.Tensor, _at: Any = None) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", [name for name in TINY if name not in ("roberta",)])
def test_it_equals_inputs_embeds(name: str) -> None:
    model = tiny(name).eval()
    batch = model_inputs(model, batch_for(model))
    at = Perturbation(model, batch, noise_like)
    with at.added(), torch.no_grad():
        found = model(**batch).logits
    embeds = embeddings(model, batch)
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    expected = model(inputs_embeds=embeds + noise_like(embeds), **rest).logits
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=TOLERANCE)
    assert (found - model(**batch).logits).abs().max() > 1e-3
    assert num_hooks(model) == 0


def test_positions_made_of_token_ids_stay() -> None:
    """RoBERTa's depend on which tokens are padding, and it cannot tell from `inputs_embeds`."""
    model = tiny("roberta").eval()
    batch = batch_for(model)
    batch["input_ids"][:, :3] = model.config.pad_token_id
    batch["attention_mask"][:, :3] = 0
    inputs = model_inputs(model, batch)
    with Perturbation(model, inputs, zeros).added(), torch.no_grad():
        found = model(**inputs).logits
    expected = model(**inputs).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    embeds = embeddings(model, batch)
    other = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
    assert (other - expected).abs().max() > 1e-3


def test_a_decoder_that_shares_the_embedding_sees_it_unchanged() -> None:
    model = tiny("bart").eval()
    model.set_input_embeddings(model.get_input_embeddings())  # as after resizing it
    assert input_embedding(model) is model.model.decoder.embed_tokens
    batch = model_inputs(model, batch_for(model))
    with Perturbation(model, batch, noise_like).added(), torch.no_grad():
        found = model(**batch).logits
    embeds = embeddings(model, batch)
    rest = {key: value for key, value in batch.items() if key != "input_ids"}
    expected = model(inputs_embeds=embeds + noise_like(embeds), **rest).logits
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=TOLERANCE)


def test_of_a_batch_given_twice_the_second_half_moves() -> None:
    model = tiny("bert").eval()
    batch = model_inputs(model, batch_for(model))
    both = {name: torch.cat([value, value]) for name, value in batch.items()}
    with torch.no_grad():
        clean = model(**batch).logits
        at = Perturbation(model, batch, noise_like)
        with at.added():
            perturbed = model(**batch).logits
        with at.added():
            found = model(**both).logits
    torch.testing.assert_close(found, torch.cat([clean, perturbed]), rtol=0, atol=TOLERANCE)


def test_choices_are_examples_of_their_own() -> None:
    torch.manual_seed(0)
    model = BertForMultipleChoice(classifier().config)
    batch = batch_for(None, 6)
    batch = {name: value.view(3, 2, -1) for name, value in batch.items() if name != "labels"}
    at = Perturbation(model, batch, zeros)
    with at.added():
        model(**batch)
    assert at.examples.lengths.tolist() == [12] * 6 and at.delta.shape == (6, 12, 32)


def test_any_objective_of_a_model_with_tokens_can_be_wrapped() -> None:
    model, batch = classifier().train(), classes()
    objective = FGM(ModelLoss())
    objective.prepare(model, batch)
    passes = objective.passes(model, model, batch)
    clean = next(passes)["model_loss"]
    (clean.sum / clean.count).backward()
    assert next(passes)["adversarial_model_loss"].sum > clean.sum


def test_a_model_that_cuts_the_gradient_is_refused() -> None:
    model, batch = classifier().train(), classes()
    model.bert.embeddings.register_forward_hook(lambda _module, _inputs, out: out.detach())
    at = Perturbation(model, batch, zeros)
    with pytest.raises(ValueError, match="no gradient reaches the input embeddings of BertFor"):
        ascent(model, at, lambda: model(**batch).loss)
    with at.added():
        model(**batch).loss.backward()
    with pytest.raises(ValueError, match="no gradient reaches the input embeddings of BertFor"):
        _ = at.gradient


def test_models_without_token_embeddings_are_refused() -> None:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    model = ViTForImageClassification(config)
    with pytest.raises(ValueError, match="the batch has no input_ids, only pixel_values, labels"):
        FGM(ModelLoss()).prepare(model, {"pixel_values": torch.zeros(2, 3, 8, 8), "labels": None})
    with pytest.raises(ValueError, match="Linear has no input embeddings to perturb"):
        FGM(ModelLoss()).bind(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no input embeddings to perturb"):
        SMART(Classification()).bind(torch.nn.Linear(2, 2))


def test_a_model_that_goes_around_its_embedding_is_refused() -> None:
    model, batch = classifier(), classes()
    at = Perturbation(model, batch, zeros)
    embeds = embeddings(model, batch)
    with pytest.raises(ValueError, match="did not call its input embedding"), at.added():
        model(inputs_embeds=embeds)
    shorter = {**batch, "input_ids": batch["input_ids"][:, :5]}
    message = r"gave \(4, 12, 32\) for token ids of shape \(4, 5\)"
    with pytest.raises(ValueError, match=message), Perturbation(model, shorter, zeros).added():
        model(**batch)
    assert num_hooks(model) == 0


def test_deepspeed_is_refused_before_the_first_step() -> None:
    trainer = SimpleNamespace(args=SimpleNamespace(n_gpu=1), is_deepspeed_enabled=True)
    model = tiny("bert")
    batch = batch_for(model)
    with pytest.raises(ValueError, match="FGM takes 2 backward passes"):
        fitted_objective(trainer, FGM(ModelLoss()), model, batch)
    single = ModelLoss()
    assert fitted_objective(trainer, single, model, batch) is single
