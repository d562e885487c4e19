"""`check_loss_scaling` says what the stock Trainer then really does."""

import pytest
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

import hf_tfopt as tfo
from tests.models import SIZES, tiny

WRONG = ["bert", "roberta", "distilbert", "electra", "albert", "deberta-v2", "t5", "bart"]
RIGHT = ["modernbert", "gpt2", "llama"]


@pytest.mark.parametrize("name", WRONG)
def test_heads_that_ignore_the_count(name: str) -> None:
    found = tfo.check_loss_scaling(tiny(name), gradient_accumulation_steps=4, num_processes=2)
    assert not found.is_right and found.factor == 8
    assert "8 times too large" in str(found)


@pytest.mark.parametrize("name", RIGHT)
def test_heads_that_use_the_count(name: str) -> None:
    found = tfo.check_loss_scaling(tiny(name))
    assert found.is_right and found.factor == 1
    assert "rightly" in str(found)


def test_other_heads() -> None:
    config = BertConfig(**SIZES)
    assert tfo.check_loss_scaling(BertForSequenceClassification(config)).factor == 4
    # No `labels` in the batch: the host counts nothing and divides by the accumulation steps.
    assert tfo.check_loss_scaling(BertForQuestionAnswering(config)).factor == 1


def test_the_model_is_left_as_it_was() -> None:
    model = tiny("bert").train()
    tfo.check_loss_scaling(model)
    assert model.training
