import copy
import math

import pytest
import torch
from torch import nn

from hf_tfopt.optimizers import kernels
from hf_tfopt.optimizers.clipping import clip_grad_norm


def with_gradients(scale: float, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Conv1d(2, 3, 2)).to(dtype)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    model[1].bias.grad = None
    return model


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("max_norm", [0.5, 10.0, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equals_torchs(scale: float, max_norm: float, dtype: torch.dtype) -> None:
    print("seed 0")
    ours = with_gradients(scale, dtype)
    theirs = copy.deepcopy(ours)
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        twin.grad = None if parameter.grad is None else parameter.grad.clone()
    found = clip_grad_norm(ours.parameters(), max_norm)
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    # sums in another order: a few roundings of 6e-8
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    for parameter, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, twin.grad, rtol=1e-6, atol=0)


def test_gradients_that_are_short_enough_are_not_written() -> None:
    model = with_gradients(1e-3)
    versions = [p.grad._version for p in model.parameters() if p.grad is not None]
    clip_grad_norm(model.parameters(), 1.0)
    assert versions == [p.grad._version for p in model.parameters() if p.grad is not None]
    clip_grad_norm(model.parameters(), 1e-6)
    assert versions != [p.grad._version for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_told_and_spread_as_torch_does(bad: float) -> None:
    ours, theirs = with_gradients(1.0), with_gradients(1.0)
    for model in (ours, theirs):
        model[0].weight.grad[0, 0] = bad
    norms = [
        clip_grad_norm(ours.parameters(), 1.0),
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0),
    ]
    torch.testing.assert_close(norms[0], norms[1], equal_nan=True)
    torch.testing.assert_close(ours[2].weight.grad, theirs[2].weight.grad, equal_nan=True)


def test_bf16_gradients_have_an_fp32_norm() -> None:
    model = nn.Linear(300, 300, bias=False).bfloat16()
    model.weight.grad = torch.ones_like(model.weight)
    assert clip_grad_norm(model.parameters()).item() == pytest.approx(300)
    assert model.weight.grad.eq(1).all()


@pytest.mark.parametrize("is_compiled", [True, False])
def test_nothing_to_clip_and_a_norm_that_cannot_be(
    is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_compiled:
        monkeypatch.setattr(kernels, "library", lambda name: None)
    assert clip_grad_norm(nn.Linear(2, 2).parameters(), 1.0) == 0
    with pytest.raises(ValueError, match="max_norm must be a number above 0, got 0"):
        clip_grad_norm([], 0)
