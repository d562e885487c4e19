"""What a model's own loss is a mean over is measured, and the automatic objective fits its head."""

import logging
from typing import Any

import pytest
import torch
from transformers import (
    BertForMultipleChoice,
    BertForNextSentencePrediction,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    ElectraConfig,
    ElectraForPreTraining,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from hf_tfopt.losses.reduction import unlabelled
from hf_tfopt.objectives.automatic import automatic
from hf_tfopt.objectives.classification import Classification
from hf_tfopt.objectives.language_modeling import LanguageModeling
from hf_tfopt.objectives.model_loss import ModelLoss
from tests.invariants.cases.classification import answers, bert, choices, single, tokens
from tests.models import NARROW, batch_for, tiny


def next_sentence(num_rows: int, seed: int) -> dict[str, torch.Tensor]:
    batch = single(num_rows, seed)
    return {**batch, "labels": batch["input_ids"][:, 0] % 2}


HEADS = {
    "labels": (lambda: tiny("bert"), lambda n, s: batch_for(None, n, s)),
    "shifted labels": (lambda: tiny("gpt2"), lambda n, s: batch_for(None, n, s)),
    "examples": (lambda: bert(BertForQuestionAnswering), answers),
    "labels, of examples": (lambda: bert(BertForMultipleChoice), choices),
    "labels, of pairs": (lambda: bert(BertForNextSentencePrediction), next_sentence),
    "labels, of tokens": (lambda: bert(BertForTokenClassification, num_labels=3), tokens),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_mean_is_measured_and_undone(name: str) -> None:
    make, columns = HEADS[name]
    model, batch = make().train(), columns(6, 0)
    objective = ModelLoss()
    objective.prepare(model, batch)
    assert objective.mean == name.split(",")[0]
    assert model.training
    parts = [{key: value[rows] for key, value in batch.items()} for rows in ([0, 1], [2, 3, 4, 5])]
    pieces = [objective.terms(model, model, part, False)[0]["model_loss"] for part in parts]
    loss = sum(piece.sum for piece in pieces) / sum(piece.count for piece in pieces)
    torch.testing.assert_close(loss, model(**batch).loss, rtol=1e-5, atol=0)  # fp32 sums


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("num_kept", [0, 4])
def test_repeated_examples_do_not_count_in_evaluation(name: str, num_kept: int) -> None:
    make, columns = HEADS[name]
    model, batch = make().eval(), columns(6, 0)
    objective = ModelLoss()
    objective.prepare(model, batch)
    marked = unlabelled(batch, objective.targets, num_kept, 6)
    terms, outputs = objective.terms(model, model, marked, True)
    first = {key: value[:4] for key, value in batch.items()}
    expected = model(**first).loss.item() * objective.counts(first)["model_loss"].item()
    assert terms["model_loss"].sum.item() == pytest.approx(expected if num_kept else 0, rel=1e-5)
    assert outputs[1].shape[0] == 6, "metrics see every row"


@pytest.mark.parametrize("name", HEADS)
def test_one_example_is_enough_to_tell(name: str) -> None:
    make, columns = HEADS[name]
    objective = ModelLoss()
    one = {key: column[3:4] for key, column in columns(6, 0).items()}
    objective.prepare(make(), one)
    assert objective.mean == name.split(",")[0]


def test_the_mean_can_be_said() -> None:
    model = bert(BertForQuestionAnswering)
    said = ModelLoss(mean="examples")
    said.prepare(model, answers(1, 0))
    assert said.counts(answers(3, 0))["model_loss"] == 3
    with pytest.raises(ValueError, match="did you mean 'examples'"):
        ModelLoss(mean="example")


def test_a_mean_over_tokens_is_measured_too() -> None:
    torch.manual_seed(0)
    model = ElectraForPreTraining(ElectraConfig(**NARROW)).train()
    batch = batch_for(None, 6, 0)
    lengths = 4 + torch.arange(6)
    mask = (torch.arange(12) < lengths.unsqueeze(1)).long()
    batch = {**batch, "attention_mask": mask, "labels": batch["input_ids"] % 2}
    objective = ModelLoss()
    objective.prepare(model, batch)
    assert objective.mean == "tokens"
    assert objective.counts(batch)["model_loss"] == lengths.sum()


def test_an_objective_can_go_on_to_another_model() -> None:
    objective = ModelLoss()
    objective.prepare(bert(BertForQuestionAnswering), answers(4, 0))
    objective.prepare(tiny("gpt2"), batch_for(None, 4, 0))
    assert objective.mean == "shifted labels"


def test_a_model_without_a_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="BertForQuestionAnswering gave no loss"):
        batch = single(4, 0)
        del batch["labels"]
        ModelLoss().prepare(bert(BertForQuestionAnswering), batch)


@pytest.mark.parametrize(
    ("make", "columns", "kind"),
    [
        (*HEADS["labels"], LanguageModeling),
        (*HEADS["examples"], ModelLoss),
        (lambda: bert(BertForSequenceClassification, num_labels=3), single, Classification),
        (*HEADS["labels, of tokens"], Classification),
        (*HEADS["labels, of pairs"], ModelLoss),
    ],
)
def test_the_automatic_objective_fits_the_head(
    make: Any, columns: Any, kind: type, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert isinstance(automatic(make(), columns(4, 0)), kind)
    assert not caplog.text


def test_speech_models_get_their_decoders_inputs() -> None:
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=97,
        num_mel_bins=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        d_model=32,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_source_positions=20,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        dropout=0.0,
    )
    model = WhisperForConditionalGeneration(config).train()
    labels = batch_for(None, 3, 0)["labels"]
    batch = {"input_features": torch.randn(3, 8, 40), "labels": labels}
    objective = automatic(model, batch)
    assert isinstance(objective, LanguageModeling)
    term = objective.terms(model, model, batch, False)[0]["cross_entropy"]
    torch.testing.assert_close(term.sum / term.count, model(**batch).loss, rtol=1e-5, atol=0)
