"""Divergences of two outputs against `F.kl_div` and sums written out."""

import pytest
import torch
import torch.nn.functional as F

from hf_tfopt.losses.consistency import kl_from, squared_distance, symmetric_kl
from tests.references.adversarial import kl

# fp32 against fp64: a few roundings of numbers near 1.
TOLERANCE = 1e-5


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = (3 * torch.randn(*shape, generator=generator) for _ in range(2))
    return first.requires_grad_(), second.requires_grad_()


def bernoulli(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = p.sigmoid(), q.sigmoid()
    return p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs.to(ours), rtol=TOLERANCE, atol=0)
    found = torch.autograd.grad(ours, inputs, retain_graph=True)
    expected = torch.autograd.grad(theirs, inputs)
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=1e-5)


def test_symmetric_kl() -> None:
    first, second = pair(4, 5, 11)
    term = symmetric_kl(first, second)
    expected = (kl(first.double(), second.double()) + kl(second.double(), first.double())).sum()
    assert_same(term.sum, expected, (first, second))
    assert term.count == 20


def test_symmetric_kl_of_several_labels() -> None:
    first, second = pair(4, 5)
    term = symmetric_kl(first, second, is_multi_label=True)
    p, q = first.double(), second.double()
    assert_same(term.sum, (bernoulli(p, q) + bernoulli(q, p)).sum(), (first, second))
    assert term.count == 20


def test_only_the_second_is_trained_by_kl_from() -> None:
    for is_multi_label in (False, True):
        fixed, logits = pair(4, 5)
        term = kl_from(fixed, logits, is_multi_label)
        each = bernoulli if is_multi_label else kl
        expected = each(fixed.detach().double(), logits.double()).sum()
        assert_same(term.sum, expected, (logits,))
        assert torch.autograd.grad(term.sum, fixed, allow_unused=True) == (None,)
        assert term.count == (20 if is_multi_label else 4)


def test_squared_distance() -> None:
    first, second = pair(4, 1)
    term = squared_distance(first, second)
    assert_same(term.sum, F.mse_loss(first, second, reduction="sum"), (first, second))
    assert term.count == 4


def test_half_precision_is_summed_in_fp32() -> None:
    first, second = (x.detach().bfloat16() for x in pair(4, 11))
    assert symmetric_kl(first, second).sum.dtype == torch.float32
    same = symmetric_kl(first, first)
    assert same.sum == 0 and kl_from(first, first).sum.abs() < 1e-6


def test_shapes_must_match() -> None:
    with pytest.raises(ValueError, match=r"shapes \(2, 3\) and \(2, 4\)"):
        symmetric_kl(torch.zeros(2, 3), torch.zeros(2, 4))
