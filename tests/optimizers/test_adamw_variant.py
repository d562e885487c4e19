from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import hf_tfopt as tfo
from hf_tfopt.optimizers.adamw_variant import AdamWVariant
from hf_tfopt.optimizers.from_torch import adamw
from tests.references.adamw_variant import NaiveAdamWVariant


@pytest.mark.parametrize(
    ("cautious", "stable", "decay"),
    list(product([False, True], [False, True], ["lr_coupled", "decoupled"])),
)
def test_equals_the_reference_for_50_steps(cautious: bool, stable: bool, decay: str) -> None:
    print("seed 0")
    torch.manual_seed(0)
    options: dict[str, Any] = {"cautious": cautious, "stable": stable, "decay": decay}
    parameters = [nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(11))]
    optimizer = AdamWVariant(parameters, 1e-2, 0.01, (0.8, 0.9), 1e-6, **options)
    twins = [
        NaiveAdamWVariant(p.detach(), 1e-2, 0.01, (0.8, 0.9), 1e-6, **options) for p in parameters
    ]
    for step in range(50):
        rate = 1e-2 * (1 - step / 100)
        optimizer.param_groups[0]["lr"] = rate
        for parameter, twin in zip(parameters, twins, strict=True):
            # sudden growth, which `stable` is for
            parameter.grad = torch.randn(parameter.shape) * (10 if step % 10 == 9 else 1)
            parameter.grad[step % len(parameter)] = 0  # as of a word that is not in the batch
            twin.lr = rate
            twin.step(parameter.grad)
        optimizer.step()
    for parameter, twin in zip(parameters, twins, strict=True):
        expected = torch.tensor(twin.theta, dtype=torch.float64).view(parameter.shape)
        # fp32 against float64 over 50 steps, each of rounding 6e-8
        torch.testing.assert_close(parameter.detach().double(), expected, rtol=2e-5, atol=1e-6)


def test_without_options_it_is_adamw() -> None:
    print("seed 0")
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.full((6, 3), 0.5)) for _ in range(2))
    plain = torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1)
    variant = AdamWVariant([ours], lr=1e-2, weight_decay=0.1)
    for _ in range(10):
        ours.grad = theirs.grad = torch.randn(6, 3)
        plain.step()
        variant.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)  # in another order of roundings


def test_a_weight_that_momentum_moves_against_its_gradient_stands_still() -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = AdamWVariant([parameter], lr=0.1, cautious=True)
    parameter.grad = torch.tensor([1.0, 1.0, 1.0])
    optimizer.step()
    before = parameter.detach().clone()
    parameter.grad = torch.tensor([1.0, 1.0, -0.1])
    optimizer.step()
    assert parameter[2] == before[2]
    assert (parameter[:2] < before[:2]).all()


def test_the_rows_of_a_table_that_are_read_keep_their_pace() -> None:
    parameter = nn.Parameter(torch.zeros(1000, 8))
    optimizer = AdamWVariant([parameter], lr=1e-3, cautious=True)
    parameter.grad = torch.zeros(1000, 8)
    parameter.grad[:5] = 1.0
    optimizer.step()
    assert parameter.abs().max() < 1e-3 and parameter[:5].abs().min() > 0.9e-3


def test_stable_shortens_the_step_after_a_jump_only() -> None:
    lengths = {}
    for stable in (False, True):
        parameter = nn.Parameter(torch.zeros(4))
        optimizer = AdamWVariant([parameter], lr=0.1, stable=stable)
        moved = []
        for size in (1.0, 1.0, 100.0):
            before = parameter.detach().clone()
            parameter.grad = torch.full((4,), size)
            optimizer.step()
            moved.append(float((parameter.detach() - before).norm()))
        lengths[stable] = moved
    assert lengths[True][:2] == pytest.approx(lengths[False][:2])
    # g is 100 and v̂ its mean square so far: RMS(g / √v̂) = √3
    assert lengths[True][2] == pytest.approx(lengths[False][2] / 3**0.5, rel=1e-3)


def test_a_decoupled_decay_does_not_know_the_peak_rate() -> None:
    """Two groups of other rates lose the same share, and half of it at half the rate."""
    parameters = [nn.Parameter(torch.ones(2, 2)) for _ in range(2)]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(parameters, (1e-3, 1e-1), strict=True)]
    optimizer = adamw(groups, lr=1.0, weight_decay=0.25, decay="decoupled")
    for factor, left in ((1, 0.75), (0.5, 0.75 * 0.875)):
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        for parameter in parameters:
            parameter.grad = torch.zeros(2, 2)
        optimizer.step()
        for parameter in parameters:
            torch.testing.assert_close(parameter.detach(), torch.full((2, 2), left))


@pytest.mark.parametrize("options", [{}, {"cautious": True}, {"stable": True}])
def test_the_plain_one_stays_torchs(options: dict[str, Any]) -> None:
    optimizer = tfo.build_optimizer(nn.Linear(2, 2), "adamw", lr=1e-3, **options)
    assert type(optimizer) is (AdamWVariant if options else torch.optim.AdamW)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"decay": "decuopled"}, "did you mean 'decoupled'"),
        ({"stable": True, "eps": 0.0}, "eps must be a number above 0, got 0.0"),
        ({"cautious": True, "betas": (0.9, 1.0)}, r"betas\[1\]"),
    ],
)
def test_refuses_what_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        adamw([nn.Parameter(torch.zeros(3))], lr=1e-3, **options)
