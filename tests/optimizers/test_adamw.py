import pytest
import torch
from torch import nn

from hf_tfopt.optimizers.from_torch import adamw
from tests.references.muon import NaiveAdamW


def test_equals_the_reference_for_50_steps() -> None:
    print("seed 0")
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5, 7))
    optimizer = adamw([parameter], lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6)
    twin = NaiveAdamW(parameter.detach(), 1e-2, 0.1, (0.8, 0.9), 1e-6)
    for _ in range(50):
        parameter.grad = torch.randn(5, 7)
        optimizer.step()
        twin.step(parameter.grad)
    # fp32 against float64
    torch.testing.assert_close(parameter.detach().double(), twin.theta, rtol=1e-5, atol=1e-6)


def test_is_fused_where_there_is_a_kernel() -> None:
    assert adamw([nn.Parameter(torch.zeros(3))], lr=1e-3).defaults["fused"] is True
    assert adamw([nn.Parameter(torch.zeros(3, device="meta"))], lr=1e-3).defaults["fused"] is None


def test_groups_keep_their_own_numbers() -> None:
    group = {"params": [nn.Parameter(torch.zeros(3))], "lr": 1e-4, "weight_decay": 0.5}
    found = adamw([group], lr=1e-3).param_groups[0]
    assert (found["lr"], found["weight_decay"]) == (1e-4, 0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"betas": (1.0, 0.9)}, r"betas\[0\] must be at least 0 and below 1, got 1.0"),
        ({"betas": (0.9, "0.99")}, r"betas\[1\] .* got the text '0.99'"),
        ({"eps": -1.0}, "eps must be a number, 0 or above, got -1.0"),
    ],
)
def test_refuses_numbers_outside_their_range(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        adamw([nn.Parameter(torch.zeros(3))], lr=1e-3, **options)
