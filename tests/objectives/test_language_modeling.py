"""The loss at the head equals the model's own loss on its own logits, for every family."""

import logging

import pytest
import torch
from transformers import (
    BertConfig,
    BertForPreTraining,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from hf_tfopt.losses.head import LogitTail
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.surgery.attention import unpadded_attention
from tests.models import EDITED_LOGITS, NO_DROPOUT, SIZES, TINY, VOCABULARY, batch_for, tiny

# fp32 sums in another order.
TOLERANCE = 1e-5


def prepared(model: PreTrainedModel, **options: float) -> LanguageModeling:
    objective = LanguageModeling(**options)
    objective.prepare(model, batch_for(model))
    return objective


def mean(objective: LanguageModeling, model: PreTrainedModel, with_outputs: bool) -> torch.Tensor:
    terms, _ = objective.terms(model, model, batch_for(model), with_outputs)
    return terms["cross_entropy"].sum / terms["cross_entropy"].count


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize("name", [*TINY, *EDITED_LOGITS])
def test_loss_and_gradients_equal_the_models_own(name: str) -> None:
    model = tiny(name).train()
    objective = prepared(model)
    assert model.training, "preparing must leave the mode as it was"
    assert objective.plan is not None
    assert objective.plan.body is not None and objective.plan.head is not None
    loss = mean(objective, model, with_outputs=False)
    own = model(**batch_for(model)).loss
    torch.testing.assert_close(loss, own, rtol=TOLERANCE, atol=0)
    expected = gradients(model, own)
    found = gradients(model, mean(objective, model, with_outputs=False))
    assert expected.keys() == found.keys()
    for parameter, gradient in expected.items():
        scale = max(float(gradient.abs().max()), 1e-3)
        assert float((found[parameter] - gradient).abs().max()) <= TOLERANCE * scale, parameter


@pytest.mark.parametrize("name", [*TINY, *EDITED_LOGITS])
def test_logits_never_exist(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    objective = prepared(model)
    shapes: list[tuple[int, ...]] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    loss = mean(objective, model, with_outputs=False)
    assert shapes == [(1, 1, 1)]
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "bart-bias"])
def test_what_a_model_does_to_its_logits_is_measured(name: str) -> None:
    plan = prepared(tiny(name)).plan
    assert plan is not None
    tail = plan.tail
    expected = {
        "gemma2": LogitTail(softcap=3.0),
        "cohere": LogitTail(scale=0.0625),
        "granite": LogitTail(scale=1 / 3),
        "bart-bias": LogitTail(),
    }[name]
    assert (tail.scale, tail.softcap) == (expected.scale, expected.softcap)
    assert (tail.bias is not None) == (name == "bart-bias")


@pytest.mark.parametrize("name", ["gemma2", "granite", "gpt2"])
def test_low_precision_models_keep_exact_settings(name: str) -> None:
    model = tiny(name).bfloat16()
    plan = prepared(model).plan
    assert plan is not None and plan.head is not None and plan.is_shifted
    assert plan.tail.scale == (1 / 3 if name == "granite" else 1.0)
    assert plan.tail.softcap == (3.0 if name == "gemma2" else None)


def test_a_head_that_is_not_linear_falls_back_aloud(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(DebertaV2Config(**SIZES, **NO_DROPOUT, legacy=False))
    with caplog.at_level(logging.WARNING):
        objective = prepared(model)
    assert "DebertaV2ForMaskedLM does not end in a plain linear head" in caplog.text
    assert objective.plan is not None
    assert objective.plan.head is None and objective.plan.body == "deberta"
    loss = mean(objective, model, with_outputs=False)
    torch.testing.assert_close(loss, model(**batch_for(model)).loss, rtol=TOLERANCE, atol=0)


def test_a_loss_with_unknown_terms_is_refused() -> None:
    torch.manual_seed(0)
    config = MixtralConfig(
        **SIZES, num_local_experts=2, num_key_value_heads=1, output_router_logits=True
    )
    with pytest.raises(ValueError, match=r"the loss of MixtralForCausalLM is .* terms"):
        prepared(MixtralForCausalLM(config))


def test_pretraining_head_gives_its_word_predictions() -> None:
    torch.manual_seed(0)
    model = BertForPreTraining(BertConfig(**SIZES, **NO_DROPOUT))
    objective = prepared(model)
    assert objective.plan is not None and objective.plan.head == "cls.predictions.decoder"
    full = mean(objective, model, with_outputs=True)
    torch.testing.assert_close(mean(objective, model, False), full, rtol=TOLERANCE, atol=0)


def test_smoothing_is_for_training_only() -> None:
    model = tiny("bert")
    objective = prepared(model, label_smoothing=0.1)
    smoothed, plain = (mean(objective, model.train(mode), False) for mode in (True, False))
    own = model(**batch_for(model)).loss
    torch.testing.assert_close(plain, own, rtol=TOLERANCE, atol=0)
    assert abs((smoothed - plain).item()) > 1e-4
    assert float(objective.metrics({"cross_entropy": 2.0})["perplexity"]) == pytest.approx(7.389056)


def test_without_any_label_there_is_nothing_to_train_on() -> None:
    model = tiny("bert")
    batch = batch_for(model)
    batch["labels"].fill_(-100)
    with pytest.raises(ValueError, match="every label of the batch is -100"):
        LanguageModeling().prepare(model, batch)
    del batch["labels"]
    with pytest.raises(ValueError, match="the batch has no labels, only input_ids"):
        LanguageModeling().prepare(model, batch)


def test_hooks_and_forwards_are_gone_after_an_error() -> None:
    model = tiny("bert")
    objective = prepared(model)
    batch = batch_for(model)
    batch["labels"][0, 0] = VOCABULARY
    with pytest.raises(ValueError, match="outside"):
        objective.terms(model, model, batch, False)
    assert "forward" not in vars(model.get_output_embeddings())
    assert not model.bert._forward_hooks


@pytest.mark.parametrize("is_packed", [False, True])
def test_examples_end_to_end_are_planned_on_one_of_them(is_packed: bool) -> None:
    """Planning keeps full logits for one example only, however many lie in the row."""
    model = unpadded_attention(tiny("bert")).eval()
    batch = batch_for(model)
    rows, width = batch["input_ids"].shape
    ends = torch.arange(0, rows * width + 1, width, dtype=torch.int32)
    shape = (2, -1) if is_packed else (1, -1)
    flat = {
        "input_ids": batch["input_ids"].reshape(shape),
        "position_ids": torch.arange(width).repeat(rows).reshape(shape),
        "labels": batch["labels"].reshape(shape),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": width,
        "max_length_k": width,
    }
    widths: list[int] = []
    handle = model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: widths.append(inputs[0].shape[1])
    )
    objective = LanguageModeling()
    objective.prepare(model, flat)
    handle.remove()
    assert max(widths) == width
    assert objective.plan is not None and objective.plan.head is not None
    terms, _ = objective.terms(model, model, flat, False)
    own = model.set_attn_implementation("sdpa") or model(**batch).loss
    loss = terms["cross_entropy"].sum / terms["cross_entropy"].count
    torch.testing.assert_close(loss, own, rtol=TOLERANCE, atol=0)
