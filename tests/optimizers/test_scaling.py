import pytest
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import hf_tfopt as tfo
from hf_tfopt.optimizers.scaling import (
    linear_scaling,
    mup_multipliers,
    square_root_scaling,
    width_scaling,
)


def test_the_rules_numbers() -> None:
    assert linear_scaling(0.1, 8) == pytest.approx(0.8)  # Goyal et al.: 256 -> 2,048 images
    found = square_root_scaling(1e-3, 4, betas=(0.9, 0.99), eps=1e-6)
    assert found.lr == pytest.approx(2e-3)
    assert found.betas == pytest.approx((0.6, 0.96))
    assert found.eps == pytest.approx(5e-7)
    assert width_scaling(512) == pytest.approx(0.0441942)


def test_there_and_back_again() -> None:
    there = square_root_scaling(3e-4, 2.0)
    back = square_root_scaling(there.lr, 0.5, there.betas, there.eps)
    assert back.lr == pytest.approx(3e-4)
    assert back.betas == pytest.approx((0.9, 0.999))
    assert back.eps == pytest.approx(1e-8)


def test_mup_slows_the_matrices_of_a_wider_model() -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        tie_word_embeddings=False,
    )
    model = BertForMaskedLM(config)
    multipliers = mup_multipliers(model, base_width=8, width=32)
    groups = tfo.param_groups(model, lr=1.0, multipliers=multipliers)
    rates = {group["role"]: group["lr"] for group in groups}
    assert rates == {"matrices": 0.25, "heads": 0.25, "embeddings": 1.0, "vectors": 1.0}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: linear_scaling(0, 2), "lr must be"),
        (lambda: linear_scaling(1, 0), "batch_factor must be"),
        (lambda: square_root_scaling(1e-3, 16), "the rule ends at 10"),
        (lambda: square_root_scaling(1e-3, 2, betas=(0.9, 1.0)), r"betas\[1\]"),
        (lambda: width_scaling(0), "d_model must be"),
        (lambda: mup_multipliers(nn.Linear(2, 2), 0, 4), "base_width must be"),
    ],
)
def test_refuses_numbers_outside_their_range(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()
